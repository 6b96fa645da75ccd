"""The Kubernetes API: who is asked, with which credentials, and what its refusals mean to a person.

Everything goes through the official client's `DynamicClient.request`, with plain dictionaries in and out: objects reach
the server as they were rendered, and answers are read as they came. The client's own discovery is left out; a
resource's path follows from its kind. No message ever holds a header or a credential.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

RAY = "ray.io/v1"
WAIT = (10.0, 30.0)  # seconds to connect, and to wait for an answer
TRIES, AGAIN = 4, 0.5  # of a question whose connection broke or that met a server under load; seconds, times the try
IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Api(NamedTuple):
    """A cluster's API with one namespace of it."""

    client: Any  # kubernetes.dynamic.DynamicClient
    namespace: str
    context: str | None  # of the kubeconfig, as the user named it
    server: str  # its URL, for messages


class Missing(LookupError):
    """What was asked for by name is not there."""


class Taken(ValueError):
    """What should be created is there already, or belongs to somebody else."""


class Gone(LookupError):
    """The version from which changes were asked for is no longer kept: list anew."""


def connect(namespace: str | None = None, context: str | None = None) -> Api:
    """The API that the kubeconfig names (`KUBECONFIG`, else ~/.kube/config), or inside a pod its own cluster's.

    `namespace` is by default the context's. Raises ValueError where there is no configuration or no such context."""
    from kubernetes import client, config, dynamic

    configuration = client.Configuration()
    configuration.retries = False  # `ask` knows better which question to ask again
    file = os.environ.get("KUBECONFIG") or config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION
    there = any(Path(one).expanduser().is_file() for one in file.split(os.pathsep) if one)
    try:
        if there or context or "KUBERNETES_SERVICE_HOST" not in os.environ:
            own = _kubeconfig(configuration, file, there, context)
        else:
            config.load_incluster_config(client_configuration=configuration)
            own = IN_POD.read_text().strip() if IN_POD.is_file() else None
    except (config.ConfigException, OSError) as error:
        raise ValueError(f"kubeconfig {file}: {_line(error)}") from error
    plain = dynamic.DynamicClient(client.ApiClient(configuration), discoverer=lambda *_: None)
    return Api(plain, namespace or own or "default", context, configuration.host)


def chosen(namespace: str | None, context: str | None, needed: bool = True) -> str:
    """The namespace that `connect` would choose; nothing is asked. Raises like it, but where no cluster is `needed`:
    then it is `regrow` by default."""
    try:
        return namespace or connect(None, context).namespace
    except ValueError:
        if needed or context is not None:
            raise
        return "regrow"


def _kubeconfig(configuration: Any, file: str, there: bool, context: str | None) -> str | None:
    """Load it; the namespace that its context names."""
    import yaml
    from kubernetes import config

    if not there:
        raise ValueError(
            f"no kubeconfig at {file}; set KUBECONFIG or make one (`kubectl config view` shows it, your cluster's "
            "provider says how to get it), or run inside a pod with a service account"
        )
    try:
        contexts, active = config.list_kube_config_contexts(file)
    except yaml.YAMLError as error:
        raise ValueError(f"kubeconfig {file} is not YAML: {_line(error)}") from error
    names = {one["name"]: one["context"] for one in contexts}
    if context is not None and context not in names:
        raise ValueError(f"kubeconfig {file} has no context {context!r}; it has: {', '.join(names) or 'none'}")
    config.load_kube_config(file, context, configuration, persist_config=False)
    own: str | None = names[context or active["name"]].get("namespace")
    return own


def path(api: Api, version: str, plural: str, name: str = "", below: str = "") -> str:
    """Where objects of the API version `version` (`v1`, `ray.io/v1`) stand, in the API's namespace."""
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return "/".join(part for part in (f"{root}/namespaces/{api.namespace}/{plural}", name, below) if part)


def plural(kind: str) -> str:
    """The name of a kind in paths, as Kubernetes itself guesses it (apimachinery, `UnsafeGuessKindToResource`)."""
    word = kind.lower()
    return f"{word}es" if word.endswith("s") else f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


def ask(api: Api, verb: str, where: str, body: Any = None, query: dict[str, Any] | None = None, **more: Any) -> Any:
    """The JSON that the server answers. All but POST may be sent twice, and are tried `TRIES` times.

    Raises Missing (404), Taken (409), Gone (410), ValueError (what was sent is wrong), PermissionError (401, 403),
    RuntimeError (no KubeRay, a quota), ConnectionError (not reachable, or a server in trouble)."""
    for left in reversed(range(1 if verb == "post" else TRIES)):
        try:
            with _answer(api, verb, where, body, query, **more) as answer, _reading(api):
                return json.loads(answer.data)
        except ConnectionError:
            if not left:
                raise
            time.sleep(AGAIN * (TRIES - left))
    raise AssertionError


def lines(api: Api, where: str, query: dict[str, Any], quiet: float) -> Iterator[str]:
    """The answer line by line as it comes, until the server ends it. Raises like `ask`; ConnectionError where it breaks
    off, or nothing comes for `quiet` seconds."""
    with _answer(api, "get", where, None, query, _request_timeout=(WAIT[0], quiet)) as answer, _reading(api):
        for line in answer:
            yield line.decode(errors="replace").rstrip("\n")


@contextmanager
def _reading(api: Api) -> Iterator[None]:
    import urllib3

    try:
        yield
    except urllib3.exceptions.HTTPError as error:
        raise ConnectionError(
            f"no answer from {api.server}: {_why(error)}; {_which(api)}; is it the one meant, and is a VPN needed?"
        ) from None


def _answer(api: Api, verb: str, where: str, body: Any, query: dict[str, Any] | None, **more: Any) -> Any:
    """A urllib3.HTTPResponse, to be closed."""
    from kubernetes.client import ApiException

    options = {"_request_timeout": WAIT, "query_params": list((query or {}).items()), "serialize": False} | more
    try:
        with _reading(api):
            return api.client.request(verb, where, body=body, **options)
    except ApiException as error:
        if not error.status:  # TLS; the client words it so
            raise ConnectionError(f"{api.server}: {_line(error.reason)}; {_which(api)}") from None
        raise refusal(api, verb, where, error.status, _said(error.body, error.reason)) from None


def refusal(api: Api, verb: str, where: str, status: int, said: dict[str, Any]) -> Exception:
    """The error that a Kubernetes `Status` with an HTTP status other than 2xx stands for."""
    kind = where.partition(f"/namespaces/{api.namespace}/")[2].split("/")
    what, text = kind[0], str(said.get("message") or "no reason given")
    right = {"get": "get" if len(kind) > 1 else "list", "post": "create"}.get(verb, verb)  # as RBAC names it
    can = f"`kubectl auth can-i {right} {what} -n {api.namespace}`"
    details = said.get("details") or {}
    if status == 401 or (status == 403 and "system:anonymous" in text):
        return PermissionError(
            f"{api.server} does not accept these credentials ({status}): they are missing or out of date; log in to "
            f"the cluster again ({_which(api)})"
        )
    if status == 403 and "exceeded quota" in text:
        return RuntimeError(f"no {what} created: {text}; free some (`kubectl -n {api.namespace} describe quota`)")
    if status == 403 and "because it is being terminated" in text:
        return RuntimeError(f"namespace {api.namespace} is being deleted: {text}")
    if status == 403:
        return PermissionError(f"not allowed to {right} {what} in {api.namespace} (403): {text}; check with {can}")
    if status == 404 and details.get("kind") == "namespaces":
        return ValueError(f"no namespace {api.namespace!r}; `kubectl create namespace {api.namespace}` or name another")
    if status == 404 and not details.get("name") and what.startswith("ray"):
        return RuntimeError(
            f"{api.server} knows no {what}: KubeRay's CRDs (ray.io/v1) are not installed; an administrator installs "
            'KubeRay 1.7 (docs.ray.io, "KubeRay Operator Installation"), or this is another cluster than meant'
        )
    if status == 404:
        return Missing(text)
    if status in (409, 410):
        return Taken(text) if status == 409 else Gone(text)
    if status == 429 or status >= 500:
        return ConnectionError(f"{api.server} is in trouble ({status}) at {right} {what}: {text}")
    causes = [f"{one.get('field')}: {one.get('message')}" for one in details.get("causes") or []]
    older = "; KubeRay's CRDs are older than 1.7" if "unknown field" in text and "ray.io" in where else ""
    return ValueError(f"the cluster refuses {'/'.join(kind)} ({status}): {'; '.join(causes) or text}{older}")


def _said(body: Any, reason: Any) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (TypeError, ValueError):  # a proxy's page, not Kubernetes
        said = None
    return said if isinstance(said, dict) else {"message": str(reason)}


def _which(api: Api) -> str:
    return f"context {api.context!r} names this server" if api.context else "the current context names this server"


def _why(error: Exception) -> str:
    """The innermost words of urllib3's nested errors: `Connection refused`."""
    inner = getattr(error, "reason", None) or error
    return _line(inner).rpartition(": ")[2].strip("()'\" ")


def _line(error: Any) -> str:
    return " ".join(str(error).split())


def ways(api: Api, name: str) -> str:
    """How somebody goes on with the RayJob `name`: the commands that follow and stop it."""
    where = f"--kuberay --namespace {api.namespace}" + (f" --context {api.context}" if api.context else "")
    return f"`regrow jobs logs {name} {where}` follows it, `regrow jobs stop {name} {where}` stops it"
