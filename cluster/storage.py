"""One filesystem for local paths and `s3://` URLs, and the one write that commits: create-only.

A file that commits work is serialised whole in memory and created once under its final name. Who
comes second is told so and throws its copy away. Nothing uncommitted ever carries a final name.
"""

import contextlib
import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import fsspec

PIECE = 4 << 20  # bytes of a file that are in memory while it is read through


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of `url` and the path inside it. S3 credentials and endpoint come from
    the usual environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …)."""
    return fsspec.core.url_to_fs(url)


def is_local(url: str) -> bool:
    """Whether `url` names a path of this machine."""
    return "://" not in url or url.startswith("file://")


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it."""
    return "/".join([url.rstrip("/"), *parts])


def create(url: str, data: bytes) -> bool:
    """Create `url` with `data`, atomically and only if it does not exist.

    Returns False where it exists already (its content stays). Locally: temporary file, fsync,
    `os.link`. On S3: `PUT` with `If-None-Match: *`."""
    fs, path = filesystem(url)
    if not is_local(url):
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        _sync(target.parent)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def read(url: str) -> bytes:
    """The content of `url`. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    return fs.cat_file(path)


def digest(url: str) -> str:
    """sha256 of the content of `url`, read in pieces. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    whole = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while piece := file.read(PIECE):
            whole.update(piece)
    return whole.hexdigest()


def exists(url: str) -> bool:
    """Whether there is a file at `url`, asked afresh."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    return fs.exists(path)


def files(url: str) -> dict[str, int]:
    """Relative name → size in bytes of every file below `url`; temporary files left out."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    with contextlib.suppress(FileNotFoundError):
        found = fs.find(path, detail=True)
        root = path.rstrip("/") + "/"
        names = {name.removeprefix(root): info["size"] for name, info in found.items()}
        return {name: size for name, size in sorted(names.items()) if not name.rsplit("/", 1)[-1].startswith(".")}
    return {}


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
