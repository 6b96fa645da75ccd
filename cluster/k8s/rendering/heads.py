"""The comment above each rendered file: what it is, and what to change for one's own cluster."""

from pathlib import PurePosixPath

MARK = "Rendered by `regrow k8s render` as"
LOST = "Rendered again, changes here are lost: put them into a kustomize patch."
SETTINGS = """\
Settings to look at: image (with your registry's host), resources, tolerations and nodeSelector of the GPU groups."""

HEADS = {
    "rayjob.yaml": f"""\
The run: KubeRay starts a cluster, runs the entrypoint on its head, and removes the cluster when it is done.
Its pods' ServiceAccount, network and shared disk are in base/.
{SETTINGS}
nvidia.com/gpu and the toleration are NVIDIA's device plugin's; on mixed nodes name the card in nodeSelector, for
example `nvidia.com/gpu.product`.""",
    "recipe.yaml": """\
The recipe of the run, every field with its value; head pods see it as /etc/regrow/recipe.toml.
It says what is made; where that runs is in rayjob.yaml.""",
    "serviceaccount.yaml": """\
The ServiceAccount of the pods. Give it your cloud's workload identity, so that no S3 keys are needed, by an annotation:
  eks.amazonaws.com/role-arn, iam.gke.io/gcp-service-account or azure.workload.identity/client-id.""",
    "access/kustomization.yaml": """\
For those who run the cluster: `kubectl apply -k` on this directory lets people submit, watch and end runs.""",
    "access/role.yaml": """\
What people need who submit, watch and end runs. The autoscaler's Role is not here: KubeRay makes one for each
cluster.""",
    "access/rolebinding.yaml": "That Role for a group; write your own group's name.",
    "networkpolicy.yaml": """\
Who talks to these pods: they among themselves, KubeRay's operator, pods of this namespace labelled
regrow/client=true (dashboard, GCS, Ray client), and namespaces labelled regrow/ingress=true (the endpoint) or named
monitoring. Out: DNS, ports 443 and 6443 (S3, the hub, Kubernetes' API).
Change: the operator's namespace; the port of an S3 store of your own; egress to 169.254.170.23/32 port 80 for EKS Pod
Identity, to 169.254.169.252/32 port 988 for GKE's workload identity. Cilium leaves API server and nodes out of ipBlock:
there a CiliumNetworkPolicy with toEntities: [kube-apiserver] is needed.""",
    "scratch.yaml": """\
The disk that these pods share: the model cache, and what a stage hands to workers on other nodes.
storageClassName: one that can ReadWriteMany (EFS, Filestore, Azure Files, CephFS, NFS), writable for group 1000.
On a cluster of one node ReadWriteOnce does.""",
    "service/kustomization.yaml": """\
The endpoint: `kubectl apply -k` on this directory starts it, `kubectl delete -k` ends it alone.""",
    "service/rayservice.yaml": f"""\
The endpoint: the run's models behind an OpenAI-compatible API, on port 8000 of the Service *-api-serve-svc.
Needs the Secrets regrow-api-keys and regrow-redis, and models that are there: apply it when the run is done.
{SETTINGS}
serveConfigV2: models (a changed list is applied in place), min_replicas and max_replicas.""",
    "service/redis.yaml": """\
A Redis that remembers the cluster while its head is replaced. With one of your own: leave this file and its Service out
and write its address in rayservice.yaml, gcsFaultToleranceOptions.redisAddress.""",
    "service/redis-service.yaml": "The Service of redis.yaml.",
    "interactive/kustomization.yaml": """\
A cluster to work on: `kubectl apply -k` on this directory starts it, `kubectl delete -k` ends it alone, with its disk.
`--scratch-claim` makes run and cluster share a disk that is there.""",
    "interactive/raycluster.yaml": f"""\
A cluster to work on by hand; remove it when you are done, or set suspend: true, which gives its nodes back.
{SETTINGS}""",
    "overlays/kueue/resourceflavor.yaml": "Kueue: the nodes that runs get; write node labels to tell GPUs apart.",
    "overlays/kueue/clusterqueue.yaml": "Kueue: how much runs may hold together. As rendered, one run of this size.",
    "overlays/kueue/localqueue.yaml": "Kueue: the queue that runs of this namespace enter.",
    "overlays/kueue/rayjob-queued.yaml": """\
The patch of rayjob.yaml: it waits for Kueue, with a cluster of fixed size, since Kueue admits no RayJob that grows.""",
    "overlays/pdb/pdb.yaml": """\
A node that is drained waits for the run's head. Without it the run starts again from its directory.""",
    "overlays/quota/resourcequota.yaml": "What the namespace may hold. As rendered, one run of this size.",
    "overlays/quota/limitrange.yaml": "What a container gets that asks for nothing.",
    "overlays/monitoring/podmonitor.yaml": """\
For the Prometheus operator. The label `release` must be what your Prometheus selects.
serving/grafana.json is a dashboard for it.""",
    "secrets/kustomization.yaml": "Templates, in no other kustomization. Fill in a copy that no repository sees.",
    "secrets/s3.yaml": """\
A template: fill in a copy that no repository sees. Leave the Secret out where pods have a workload identity.
Also read, where they are there: AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION.""",
    "secrets/hub.yaml": "A template: fill in a copy that no repository sees. For gated models and data sets.",
    "secrets/api-keys.yaml": """\
A template: fill in a copy that no repository sees. Keys that the endpoint lets in, one a line, plain or
sha256:… (docs/serving.md); read again when the Secret changes.""",
    "secrets/redis.yaml": "A template: fill in a copy that no repository sees. The password of service/redis.yaml.",
}


def head(file: str) -> str:
    """The comment of `file`, its name relative to the rendered directory; what several folders have, they have with the
    same comment. Empty where nothing is to be said."""
    return HEADS.get(file) or HEADS.get(PurePosixPath(file).name, "")


def mark(run: str, file: str) -> str:
    """The line by which a file is known as `file` of the manifests of `run`, and of no others."""
    return f"{MARK} {file} of {run}."
