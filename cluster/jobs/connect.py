"""The Jobs API of a Ray cluster, from a machine that is no part of it: address, token, versions, nodes.

docs.ray.io, "Ray Jobs Python SDK" and "Ray token authentication". The token goes as a header and is shown nowhere.
"""

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement

ADDRESS = "RAY_API_SERVER_ADDRESS"  # Ray's own variable
SECONDS = 10.0  # that a dashboard may take to answer at first


class Node(NamedTuple):
    """A living node: its address, whether it is the head, its CPUs and GPUs as Ray counts them."""

    ip: str
    head: bool
    cpus: float
    gpus: float


def connect(address: str, token_file: Path | None = None) -> Any:
    """A `JobSubmissionClient` of the cluster whose dashboard is at `address` (http://HOST:8265).

    The token: the text of `token_file`, or else what Ray itself would take (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or the
    file ~/.ray/auth_token). Raises ValueError for an address or a token that cannot be right, or a cluster whose Ray
    regrow does not work with; ConnectionError where nobody answers."""
    check_address(address)
    token = _token(token_file)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    _check_version(address, _version(address, headers))
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address, headers=headers)


def check_address(address: str) -> None:
    """Raise ValueError where `address` is no dashboard's URL."""
    from urllib.parse import urlsplit

    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--address {address!r} is no URL of a Ray dashboard; give http://HOST:8265 or https://…")
    if parts.username or parts.password:
        raise ValueError(f"--address holds a password for {parts.hostname}; give a token by --token-file instead")


def nodes(client: Any) -> list[Node]:
    """The living nodes, the head first. Raises ConnectionError where the dashboard does not tell."""
    answer = client._do_request("GET", "/api/v0/nodes?detail=true&limit=10000")
    if answer.status_code != 200:
        raise ConnectionError(f"the dashboard does not list its nodes (status {answer.status_code})")
    found = []
    for one in answer.json()["data"]["result"]["result"]:
        if one["state"] == "ALIVE":
            has = one["resources_total"]
            found.append(Node(one["node_ip"], one["is_head_node"], has.get("CPU", 0.0), has.get("GPU", 0.0)))
    return sorted(found, key=lambda node: not node.head)


def _token(file: Path | None) -> str:
    told, path = os.environ.get("RAY_AUTH_TOKEN", ""), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if file is None and told:
        return _checked(told, "RAY_AUTH_TOKEN")
    place = file or (Path(path) if path else Path.home() / ".ray" / "auth_token")
    try:
        token = place.read_text(encoding="utf8")
    except FileNotFoundError:
        if file or path:
            raise ValueError(f"token file {place} does not exist") from None
        return ""
    except UnicodeDecodeError:
        raise ValueError(f"token file {place} is no text") from None
    except OSError as error:
        raise ValueError(f"token file {place} cannot be read: {error.strerror}") from None
    return _checked(token, f"token file {place}")


def _checked(token: str, where: str) -> str:
    """The token, which no message shows."""
    token = token.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError(f"{where} does not hold one token: one line of letters, digits and signs, without blanks")
    return token


def _version(address: str, headers: dict[str, str]) -> str:
    """The Ray version of the cluster, and whether we are let in."""
    import requests

    try:
        answer = requests.get(f"{address.rstrip('/')}/api/version", headers=headers, timeout=SECONDS)
        said = answer.json() if answer.ok else {}
    except requests.exceptions.JSONDecodeError:
        said = {}
    except requests.exceptions.RequestException as error:
        why = "it does not answer in time" if isinstance(error, requests.exceptions.Timeout) else _innermost(error)
        raise ConnectionError(
            f"no Ray dashboard at {address}: {why}; on Kubernetes forward its port first: "
            "kubectl port-forward service/NAME-head-svc 8265"
        ) from None
    if answer.status_code in (401, 403):
        given = "refuses the token" if headers else "wants a token"
        raise ValueError(
            f"the cluster at {address} {given}; give it by --token-file FILE or in RAY_AUTH_TOKEN (KubeRay keeps it in "
            "the Secret with the cluster's name)"
        )
    if not isinstance(said, dict) or "ray_version" not in said:
        raise ConnectionError(f"what answers at {address} is no Ray dashboard (status {answer.status_code})")
    return str(said["ray_version"])


def _check_version(address: str, there: str) -> None:
    asked = next(r for r in map(Requirement, importlib.metadata.requires("regrow") or []) if r.name == "ray")
    here = importlib.metadata.version("ray")
    if not asked.specifier.contains(there, prereleases=True):
        raise ValueError(
            f"the cluster at {address} runs Ray {there}, this regrow works with ray{asked.specifier} (here: {here}); "
            "use the regrow that was made for that cluster, or a cluster with an image of this one"
        )


def _innermost(error: BaseException) -> str:
    """What the operating system said, out of the layers of urllib3."""
    found: BaseException = error
    while (inner := getattr(found, "reason", None) or found.__cause__ or found.__context__) is not None:
        if not isinstance(inner, BaseException):
            break
        found = inner
    return str(getattr(found, "strerror", None) or found)
