"""A Kubernetes API server: HTTP, a bearer token, versions and watches, server-side apply, and the schemas of
KubeRay's CRDs and of core objects as admission. What KubeRay does with a RayJob is in tests/kuberay_operator.py."""

import contextlib
import copy
import datetime
import json
import re
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from cluster.k8s.checking import schema
from tests.tls import self_signed

TOKEN = "eyJhbGciOiJSUzI1NiJ9.not-a-real-one.but-secret"
RAY = {"rayjobs", "rayclusters", "rayservices"}
PATH = re.compile(r"/(?:api|apis/[\w.-]+)/v1/namespaces/([\w-]+)/(\w+)(?:/([\w.-]+))?(?:/(\w+))?")
Content = dict[str, Any]


class Refused(Exception):
    """A Kubernetes Status other than success."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self.body |= {"reason": reason, "message": message, "details": details}


class Kube(ThreadingHTTPServer):
    """The server and what it holds. Faults are set by the test; those that are counts are used up."""

    daemon_threads = True

    def __init__(self, certificate: Path, key: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"https://127.0.0.1:{self.server_address[1]}"
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[tuple[str, str, str], Content] = {}
        self.history: list[tuple[int, str, str, Content]] = []
        self.managers: dict[tuple[str, str, str], dict[str, str]] = {}  # object → path of a field → who applied it
        self.version, self.kept = 100, 0  # versions up to `kept` are no longer there to be watched from
        self.lines: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.forbidden: set[tuple[str, str]] = set()  # (verb, resource)
        self.namespaces, self.crds, self.quota = {"ml", "default"}, True, ""
        self.cut_watches = self.cut_logs = self.lost_answers = 0
        self.away = False  # every connection is closed without an answer
        self.unheard: list[str] = []
        self.operator: Callable[[Kube, str], None] = lambda kube, name: None  # run for every new RayJob

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is none of the server's troubles."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)

    # What the operator, the kubelet and the rest of a cluster do.

    def store(self, kind: str, resource: str, key: tuple[str, str, str], one: Content) -> Content:
        """Keep `one` (or, "DELETED", drop it) as a new version, and tell the watchers."""
        with self.changed:
            self.version += 1
            one["metadata"]["resourceVersion"] = str(self.version)
            if kind == "DELETED":
                self.objects.pop(key, None)
            else:
                self.objects[key] = one
            self.history.append((self.version, kind, resource, copy.deepcopy(one)))
            self.changed.notify_all()
            return one

    def add(self, resource: str, one: Content, namespace: str = "ml") -> Content:
        """A new object, as a controller makes it."""
        meta = one.setdefault("metadata", {})
        meta |= {"namespace": namespace, "uid": uuid.uuid4().hex}
        meta.setdefault("creationTimestamp", now())
        return self.store("ADDED", resource, (namespace, resource, meta["name"]), one)

    def status(self, resource: str, name: str, namespace: str = "ml", **fields: Any) -> None:
        """Change fields of an object's status."""
        with self.changed:
            one = copy.deepcopy(self.objects[namespace, resource, name])
            one["status"] = one.get("status", {}) | fields
            self.store("MODIFIED", resource, (namespace, resource, name), one)

    def drop(self, resource: str, name: str, namespace: str = "ml") -> None:
        """An object goes, and what it owns goes with it."""
        with self.changed:
            gone = self.objects[namespace, resource, name]
            self.store("DELETED", resource, (namespace, resource, name), gone)
            for key, one in list(self.objects.items()):
                if any(ref["uid"] == gone["metadata"]["uid"] for ref in one["metadata"].get("ownerReferences", [])):
                    self.drop(key[1], key[2], key[0])

    def print(self, pod: str, container: str, *texts: str) -> None:
        """Lines of a container's log, each a millisecond after the other."""
        with self.changed:
            for text in texts:
                self.lines.setdefault((pod, container), []).append((now(digits=9), text))
            self.changed.notify_all()

    def get(self, resource: str, name: str, namespace: str = "ml") -> Content:
        return copy.deepcopy(self.objects[namespace, resource, name])

    def names(self, resource: str, namespace: str = "ml") -> list[str]:
        return [name for space, kind, name in self.objects if (space, kind) == (namespace, resource)]


class Handler(BaseHTTPRequestHandler):
    server: Kube
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(self.get)

    def do_POST(self) -> None:
        self.reply(self.post)

    def do_PATCH(self) -> None:
        self.reply(self.patch)

    def do_DELETE(self) -> None:
        self.reply(self.delete)

    def reply(self, answer: Callable[[], Content | None]) -> None:
        kube, parts = self.server, urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if kube.away:
            kube.unheard.append(self.path)
            self.close_connection = True
            return
        try:
            found = PATH.fullmatch(parts.path)
            if not found or (found.group(2) in RAY and not kube.crds):
                return self.send(404, b"404 page not found\n", "text/plain")
            self.namespace, self.resource, self.name, self.below = (part or "" for part in found.groups())
            self.key = (self.namespace, self.resource, self.name)
            self.body = json.loads(body) if body else {}
            self.allow()
            made = answer()
            if kube.lost_answers and self.command == "POST":
                kube.lost_answers -= 1
                self.close_connection = True
            elif made is not None:
                self.send(200, json.dumps(made).encode())
        except Refused as refused:
            self.send(refused.code, json.dumps(refused.body).encode())
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    def send(self, code: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def allow(self) -> None:
        kube = self.server
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(
            self.command, "get" if self.name else "list"
        )
        if verb == "list" and self.query.get("watch") == "true":
            verb = "watch"
        kube.requests.append((verb, self.resource + (f"/{self.below}" if self.below else ""), self.query))
        scheme, _, token = (self.headers["Authorization"] or "").partition(" ")
        if scheme.lower() != "bearer" or token != TOKEN:
            raise Refused(401, "Unauthorized", "Unauthorized")
        if (verb, self.resource) in kube.forbidden:
            text = f'{self.resource} is forbidden: User "jane" cannot {verb} resource "{self.resource}"'
            raise Refused(403, "Forbidden", f'{text} in the namespace "{self.namespace}"', kind=self.resource)
        if self.command != "GET" and self.namespace not in kube.namespaces:
            text = f'namespaces "{self.namespace}" not found'
            raise Refused(404, "NotFound", text, kind="namespaces", name=self.namespace)

    def admit(self, one: Content) -> Content:
        if self.server.quota and self.resource == "rayjobs":
            raise Refused(403, "Forbidden", f'rayjobs.ray.io "x" is forbidden: {self.server.quota}', name="x")
        if causes := schema.problems(one):
            fields = [{"field": field, "message": message} for field, message in causes]
            raise Refused(422, "Invalid", f"{one['kind']} is invalid", name=one["metadata"]["name"], causes=fields)
        return schema.defaulted(one)

    def existing(self) -> Content:
        if self.key not in self.server.objects:
            text = f'{self.resource} "{self.name}" not found'
            raise Refused(404, "NotFound", text, kind=self.resource, name=self.name)
        return self.server.objects[self.key]

    def post(self) -> Content:
        kube, name = self.server, self.body["metadata"]["name"]
        one = self.admit(self.body)
        with kube.changed:
            if (self.namespace, self.resource, name) in kube.objects:
                raise Refused(409, "AlreadyExists", f'{self.resource} "{name}" already exists', name=name)
            if self.query.get("dryRun") == "All":
                return one
            one = kube.add(self.resource, one, self.namespace)
        if self.resource == "rayjobs":
            threading.Thread(target=kube.operator, args=(kube, name), daemon=True).start()
        return one

    def patch(self) -> Content:
        """Server-side apply, in which every leaf and every list is one field."""
        kube, manager = self.server, self.query.get("fieldManager")
        if self.headers["Content-Type"] != "application/apply-patch+yaml" or not manager:
            raise Refused(415, "UnsupportedMediaType", "only apply patches, with a fieldManager, are known here")
        self.admit(self.body)
        with kube.changed:
            there = copy.deepcopy(kube.objects.get(self.key, {}))
            owners = dict(kube.managers.get(self.key, {}))
            wanted = dict(leaves(self.body))
            theirs = {field: by for field, by in owners.items() if by != manager and field in wanted}
            clash = sorted(field for field in theirs if dict(leaves(there)).get(field) != wanted[field])
            if clash and self.query.get("force") != "true":
                text = f'Apply failed with {len(clash)} conflict: conflict with "{theirs[clash[0]]}": {clash[0]}'
                raise Refused(409, "Conflict", text, causes=[{"reason": "FieldManagerConflict", "field": clash[0]}])
            for field in [field for field, by in owners.items() if by == manager and field not in wanted]:
                remove(there, field)
                del owners[field]
            new = merged(there, self.body)
            if self.query.get("dryRun") == "All":
                return new
            kube.managers[self.key] = owners | dict.fromkeys(wanted, manager)
            if there:
                return kube.store("MODIFIED", self.resource, self.key, new)
            return kube.add(self.resource, new, self.namespace)

    def delete(self) -> Content:
        kube, one = self.server, self.existing()
        with kube.changed:
            if one["metadata"].get("finalizers"):
                one = copy.deepcopy(one)
                one["metadata"]["deletionTimestamp"] = now()
                return kube.store("MODIFIED", self.resource, self.key, one)
            kube.drop(self.resource, self.name, self.namespace)
            return {"kind": "Status", "status": "Success"}

    def get(self) -> Content | None:
        if self.below == "log":
            self.log()
            return None
        if self.name:
            return self.existing()
        if self.query.get("watch") == "true":
            self.watch()
            return None
        with self.server.changed:
            items = [
                one
                for (space, kind, _), one in self.server.objects.items()
                if (space, kind) == (self.namespace, self.resource) and self.fits(one)
            ]
            return {"kind": "List", "metadata": {"resourceVersion": str(self.server.version)}, "items": items}

    def fits(self, one: Content) -> bool:
        labels = one["metadata"].get("labels", {})
        for term in filter(None, self.query.get("labelSelector", "").split(",")):
            name, sign, value = term.partition("=")
            if name not in labels or (sign and labels[name] != value):
                return False
        for term in filter(None, self.query.get("fieldSelector", "").split(",")):
            name, _, value = term.partition("=")
            if dict(leaves(one)).get(name) != value:
                return False
        return True

    def chunks(self) -> Callable[[str], None]:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

        def send(text: str) -> None:
            data = text.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        return send

    def watch(self) -> None:
        kube, seen = self.server, int(self.query["resourceVersion"])
        send, until = self.chunks(), time.monotonic() + int(self.query["timeoutSeconds"])
        while (left := until - time.monotonic()) > 0:
            with kube.changed:
                if seen < kube.kept:
                    send(json.dumps({"type": "ERROR", "object": Refused(410, "Expired", "too old").body}) + "\n")
                    break
                news = [one for one in kube.history if one[0] > seen and one[2] == self.resource and self.fits(one[3])]
                if not news:
                    kube.changed.wait(left)
            for version, kind, _, one in news:
                text = json.dumps({"type": kind, "object": one}) + "\n"
                if kube.cut_watches:
                    kube.cut_watches -= 1
                    send(text[: len(text) // 2])
                    self.close_connection = True
                    return
                send(text)
                seen = version
        send("")

    def log(self) -> None:
        kube, container = self.server, self.query["container"]
        pod, place = self.existing(), (self.name, container)
        states = {one["name"]: one["state"] for one in pod["status"]["containerStatuses"]}
        if "waiting" in states[container]:
            raise Refused(400, "BadRequest", f'container "{container}" in pod "{self.name}" is waiting to start')
        send, since = self.chunks(), self.query.get("sinceTime", "")[:19]  # to the second, as the kubelet has it
        sent, told = 0, 0
        while True:
            with kube.changed:
                fresh = kube.lines.get(place, [])[sent:]
                over = self.key not in kube.objects or _terminated(kube.objects[self.key], container)
                if not fresh and not over and self.query.get("follow") == "true":
                    kube.changed.wait(1)
                    continue
            for at, text in fresh:
                sent += 1
                if at[:19] < since:
                    continue
                told += 1
                if told == 4 and kube.cut_logs:
                    kube.cut_logs -= 1
                    self.close_connection = True
                    return
                send(f"{at} {text}\n")
            if (over and not fresh) or self.query.get("follow") != "true":
                return send("")


def _terminated(pod: Content, container: str) -> bool:
    states = {one["name"]: one["state"] for one in pod["status"]["containerStatuses"]}
    return "terminated" in states[container]


def now(digits: int = 0) -> str:
    at = datetime.datetime.now(datetime.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S") + (f".{at.microsecond:06}{'0' * (digits - 6)}" if digits else "") + "Z"


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def merged(there: Any, wanted: Any) -> Any:
    if not isinstance(there, dict) or not isinstance(wanted, dict):
        return copy.deepcopy(wanted)
    return there | {name: merged(there.get(name), inner) for name, inner in wanted.items()}


def remove(one: Content, field: str) -> None:
    *path, last = field.split(".")
    for name in path:
        one = one.get(name, {})
    one.pop(last, None)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[Kube, Path]]:
    """The server, and a kubeconfig with contexts for it: `here` (namespace `ml`), `plugin` (a program gives the token),
    `stranger` (another token), `doubtful` (its certificate is not known); and `away`, where nothing listens."""
    certificate, key = self_signed(folder)
    kube = Kube(certificate, key)
    threading.Thread(target=kube.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    version = "client.authentication.k8s.io/v1"
    credential = {"apiVersion": version, "kind": "ExecCredential", "status": {"token": TOKEN}}
    plugin = {"apiVersion": version, "command": "echo", "args": [json.dumps(credential)], "interactiveMode": "Never"}
    known = {"server": kube.url, "certificate-authority": str(certificate)}
    servers = {"here": known, "away": {"server": "http://127.0.0.1:9"}, "doubtful": {"server": kube.url}}
    users = {"jane": {"token": TOKEN}, "stranger": {"token": TOKEN[::-1]}, "plugin": {"exec": plugin}}
    contexts = {
        "here": {"cluster": "here", "user": "jane", "namespace": "ml"},
        "plugin": {"cluster": "here", "user": "plugin", "namespace": "ml"},
        "stranger": {"cluster": "here", "user": "stranger"},
        "doubtful": {"cluster": "doubtful", "user": "jane"},
        "away": {"cluster": "away", "user": "jane"},
    }
    config: Content = {"apiVersion": "v1", "kind": "Config", "current-context": "here"}
    for kind, those in (("cluster", servers), ("user", users), ("context", contexts)):
        config[f"{kind}s"] = [{"name": name, kind: one} for name, one in those.items()]
    file = folder / "kubeconfig"
    file.write_text(json.dumps(config))
    yield kube, file
    kube.shutdown()
    kube.server_close()
