"""The RayJob of a run, and the ConfigMap with its recipe."""

from cluster.k8s.rendering import pods, ray_cluster
from cluster.k8s.rendering.pods import Content
from cluster.k8s.rendering.workload import RECIPE, Workload

START_SECONDS = 3600  # for the head's node, its image and the submission
LOG = "job-log"  # the container whose output is the driver's
FILES = "/tmp/ray/session_latest/logs/job-driver-*.log"
TAIL = f"until ls {FILES} >/dev/null 2>&1; do sleep 1; done; exec tail -n +1 -F {FILES}"


def document(w: Workload) -> Content:
    """A RayJob (KubeRay 1.7). A retry is a new cluster and a new job, which goes on from what is in the run's
    directory. The operator submits the job itself (HTTPMode): a pod that submits and follows the log for hours fails
    with its connection, and KubeRay's sidecar cannot be given the security context that `restricted` asks for."""
    cluster = ray_cluster.spec(w, w.gpus, w.gpu_nodes, w.gpu_pod)
    _with_log(w, cluster["headGroupSpec"]["template"]["spec"])
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": w.name, "namespace": w.namespace, "labels": w.labels},
        "spec": {
            "submissionMode": "HTTPMode",
            "entrypoint": w.entrypoint,
            "preRunningDeadlineSeconds": START_SECONDS,
            "activeDeadlineSeconds": w.deadline_seconds,
            "backoffLimit": w.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": w.ttl_seconds,
            "suspend": False,
            "rayClusterSpec": cluster,
        },
    }


def _with_log(w: Workload, pod: Content) -> None:
    """Add a container that prints what the driver writes into a file (kubernetes.io, "Logging Architecture", Streaming
    sidecar container): `kubectl logs` shows the run. KubeRay shares the volume of that name with the autoscaler."""
    files = {"name": "ray-logs", "mountPath": "/tmp/ray"}
    small = {"cpu": "100m", "memory": "128Mi"}
    pod["volumes"].append({"name": "ray-logs", "emptyDir": {}})
    pod["containers"][0]["volumeMounts"].append(files)
    pod["containers"].append(
        {
            "name": LOG,
            "image": w.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/sh", "-c", TAIL],
            "resources": {"requests": small, "limits": dict(small)},
            "securityContext": pods.SECURITY | {"readOnlyRootFilesystem": True},
            "volumeMounts": [files | {"readOnly": True}],
        }
    )


def recipe(w: Workload) -> Content:
    """The ConfigMap that head pods see as /etc/regrow."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{w.own}-recipe", "namespace": w.namespace, "labels": w.labels},
        "data": {RECIPE.rpartition("/")[2]: w.recipe},
    }
