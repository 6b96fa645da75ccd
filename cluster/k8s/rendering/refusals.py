"""What would be refused of a workload: by Kubernetes' API server, by KubeRay, or by this project because it holds a
secret. Messages name the option of `regrow k8s render` and say what to write."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster import secrets
from cluster.k8s.checking.names import is_dns1035, is_label, is_label_value, is_qualified, is_subdomain

if TYPE_CHECKING:
    from cluster.k8s.rendering.workload import Workload

LONGEST = 47  # of a RayJob's name: KubeRay adds six characters for the cluster's, which ends at 53 (utils/constant.go)
SECONDS = 2**31 - 1  # activeDeadlineSeconds is an int32
# Volumes that pods have: those that are rendered, and those that KubeRay adds (its utils/constant.go, common/pod.go).
VOLUMES = "shm home scratch ray-logs kubernetes recipe api-keys shared-mem ray-token ray-tls gcs-storage".split()
# What the image, Ray and Kubernetes have there. A volume above one of these, on it or below it hides or mixes with it.
PLACES = (
    "/bin /boot /dev /etc /home/regrow /lib /lib64 /opt/regrow /proc /root /run /sbin /scratch /sys /tmp /usr /var"
).split()
_PATH = re.compile(r"(/[^\s:/]+)+")
STORES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_ENDPOINT")  # URLs that the network must let through


def check(w: "Workload") -> None:
    """Raise ValueError for the first thing that is wrong with `w`."""
    for fault in (*_secrets(w), *_names(w), *_volumes(w), *_selectors(w), *_stores(w), *_amounts(w)):
        raise ValueError(fault)


def _secrets(w: "Workload") -> Iterator[str]:
    for field in fields(w):
        for text in _texts(getattr(w, field.name)):
            if what := secrets.kind(text):
                yield f"{field.name} holds {what}: manifests are kept and read by many; {secrets.WAY}"
    for name, _ in w.env:
        if secrets.named(name):
            yield f"env {name} is a secret by its name, and a manifest holds none; {secrets.WAY}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _texts(getattr(value, field.name))
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from (*_texts(name), *_texts(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _names(w: "Workload") -> Iterator[str]:
    if not is_dns1035(w.name) or len(w.name) > LONGEST:
        yield f"name {w.name!r} cannot be a RayJob's: up to {LONGEST} small letters, digits and -, a letter first"
    if not w.label or not is_label_value(w.label):
        yield f"run {w.run!r} cannot be a label's value: at most 63 letters, digits, -, _ and ."
    for option, name in {"--namespace": w.namespace, "--operator-namespace": w.operator_namespace}.items():
        if not is_label(name):
            yield f"{option}: {name!r} is no Kubernetes name; up to 63 small letters, digits and - are allowed"
    claims = {f"--volume {volume.name}": volume.claim for volume in w.volumes}
    for option, name in {"--service-account": w.service_account, "--scratch-claim": w.scratch_claim, **claims}.items():
        if name and not is_subdomain(name):
            yield f"{option}: {name!r} is no Kubernetes name; small letters, digits, - and . are allowed"


def _volumes(w: "Workload") -> Iterator[str]:
    for volume in w.volumes:
        option, path = f"--volume {volume.name}={volume.claim}:{volume.path}", volume.path
        if not is_label(volume.name):
            yield f"{option}: {volume.name!r} is no volume's name; up to 63 small letters, digits and - are allowed"
        if volume.name in VOLUMES:
            yield f"{option}: pods have a volume {volume.name!r} already; give another name"
        if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
            yield f"{option}: {path} is no place to mount it; give a plain path like /data"
        if near := [place for place in PLACES if _within(path, place) or _within(place, path)]:
            yield f"{option}: {path} is no place to mount it: pods have {near[0]} there; give a path like /data"
    for what in ("name", "path"):
        for value, count in Counter(getattr(volume, what) for volume in w.volumes).items():
            if count > 1:
                yield f"--volume: the {what} {value} is there {count} times; give each volume its own"


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _selectors(w: "Workload") -> Iterator[str]:
    """Pods with other nodeSelectors are refused (pkg/apis/core/validation/validation.go, ValidatePodSpec)."""
    for option, pairs in {"--gpu-selector": w.gpu_selector, "--spot-selector": w.spot_selector}.items():
        for label, value in pairs:
            if not is_qualified(label):
                yield (
                    f"{option} {label}={value}: {label!r} is no label: write up to 63 letters, digits, -, _ and ., "
                    "and `DOMAIN/` before them where it has one, for example nvidia.com/gpu.product"
                )
            if not is_label_value(value):
                yield (
                    f"{option} {label}={value}: {value!r} cannot be a label's value: write at most 63 letters, digits, "
                    "-, _ and ., a letter or digit first and last"
                )
        for label, count in Counter(label for label, _ in pairs).items():
            if count > 1:
                yield f"{option} {label}: is there {count} times; a node has one value of a label"


def _stores(w: "Workload") -> Iterator[str]:
    for name, value in w.env:
        if name in STORES and value and port(value) is None:
            yield f"--env {name}={value}: write http://HOST:PORT or https://HOST:PORT, for the network to let through"


def port(url: str) -> int | None:
    """The port of an http or https URL, by default 80 or 443; None where it is no such URL."""
    try:
        parts = urlsplit(url)
        known = {"http": 80, "https": 443}.get(parts.scheme)
        return (parts.port or known) if known and parts.hostname else None
    except ValueError:  # a port that is no number, or none that there is
        return None


def _amounts(w: "Workload") -> Iterator[str]:
    if w.gpus and not w.gpus_per_node * w.gpu_nodes > 0:
        yield f"gpus = {w.gpus}, but no GPU pods: set gpus_per_node and gpu_nodes"
    for name in ("deadline_seconds", "retries", "ttl_seconds", "idle_seconds"):
        value = getattr(w, name)
        if not (name == "deadline_seconds") <= value <= SECONDS:
            yield f"{name} = {value} is too {'much' if value > SECONDS else 'little'}"
