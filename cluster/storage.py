"""One filesystem for local paths and `s3://` URLs, and the one write that commits: create-only.

A file that commits work is serialised whole in memory and created once under its final name. Who
comes second is told so and throws its copy away. Nothing uncommitted ever carries a final name.

Faults of S3 that pass are ridden out for about a minute (`cluster.s3`); those that last raise OSError.
A process that is killed while it uploads a large object leaves parts behind that cost money: the next
`create` of that object aborts them, a lifecycle rule `AbortIncompleteMultipartUpload` all of them.
"""

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")  # as `_written` names them
PIECE = 4 << 20  # bytes of a file that are in memory while it is read through


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of `url` and the path inside it. S3 credentials and endpoint come from
    the usual environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …)."""
    if not on_s3(url):
        return fsspec.core.url_to_fs(url)
    from cluster import s3

    fs = s3.filesystem()
    return fs, fs._strip_protocol(url)


def on_s3(url: str) -> bool:
    """Whether `url` names an object of S3."""
    return url.startswith(("s3://", "s3a://"))


def is_local(url: str) -> bool:
    """Whether `url` names a path of this machine."""
    return "://" not in url or url.startswith("file://")


def taken(url: str) -> bool:
    """Whether `url` names something that this module reads and writes: a path of this machine, or what is in a bucket
    of S3."""
    return is_local(url) or (on_s3(url) and not url.partition("://")[2].startswith("/") and not url.endswith("://"))


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it."""
    return "/".join([url.rstrip("/"), *parts])


def create(url: str, data: bytes) -> bool:
    """Create `url` with `data`, atomically and only if it does not exist.

    Returns whether this call made what stands there; False where it was there before (its content
    stays). The answer is exact on S3 too: where a write was stored and only its answer got lost, the
    repeated one is refused, and the mark in the object's metadata tells that it is ours. Raises OSError
    where the storage does not answer; it is unknown then whether `data` stands.

    Locally: temporary file, fsync, `os.link`. On S3: `PUT` with `If-None-Match: *`, which needs the
    right to read as well as to write."""
    path = filesystem(url)[1]
    if on_s3(url):
        from cluster import s3

        return s3.create(path, data)
    if not is_local(url):
        raise ValueError(f"{url}: cannot be written to; give a local path or an s3:// URL")
    with _written(Path(path), data) as (temporary, target):
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
    return True


def replace(url: str, data: bytes) -> None:
    """Write `data` to `url` whatever is there; readers see the old content or the new, never a part.

    Locally: temporary file, fsync, `os.replace`. On S3: `PUT`. Raises OSError where it fails."""
    fs, path = filesystem(url)
    if not is_local(url):
        fs.pipe_file(path, data)
        return
    with _written(Path(path), data) as (temporary, target):
        temporary.replace(target)


def read(url: str) -> bytes:
    """The content of `url`. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    with _reading(url):
        # One request: s3fs does not read a piece again that broke off while it reads several at once.
        return fs.cat_file(path, max_concurrency=1) if on_s3(url) else fs.cat_file(path)


@contextlib.contextmanager
def opened(url: str, start: int = 0) -> Iterator[BinaryIO]:
    """`url` as a binary file to be read as a stream from byte `start` on, with a few `PIECE` in memory.

    Raises FileNotFoundError; OSError where the storage fails for good or the object changes meanwhile."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    with _reading(url), fs.open(path, "rb", **({} if is_local(url) else {"block_size": PIECE})) as file:
        file.seek(start)
        yield cast(BinaryIO, file)


def digest(url: str) -> str:
    """sha256 of the content of `url`, read in pieces. Raises FileNotFoundError."""
    whole = hashlib.sha256()
    with opened(url) as file:
        while piece := file.read(PIECE):
            whole.update(piece)
    return whole.hexdigest()


def exists(url: str) -> bool:
    """Whether there is a file at `url`, asked afresh."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    return fs.exists(path)


def remove(url: str) -> None:
    """Remove the file at `url`, if there is one. Raises OSError where it cannot be removed."""
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def files(url: str) -> dict[str, int]:
    """Relative name → size in bytes of every file below `url`; temporary files left out."""
    return {name: info["size"] for name, info in _below(url).items()}


def versions(url: str) -> dict[str, str]:
    """Relative name → what changes with the content, of every object below `url` on S3: its ETag and size."""
    return {name: f"{info['ETag']} {info['size']}" for name, info in _below(url).items()}


def _below(url: str) -> dict[str, dict[str, Any]]:
    fs, path = filesystem(url)
    fs.invalidate_cache()
    with contextlib.suppress(FileNotFoundError):
        found = fs.find(path, detail=True)
        root = path.rstrip("/") + "/"
        # s3fs names `path` itself, a directory, where the first file came between two of its questions.
        names = {name.removeprefix(root): info for name, info in found.items() if _is_file(name, info)}
        return {name: info for name, info in sorted(names.items()) if not name.rsplit("/", 1)[-1].startswith(".")}
    return {}


def tidy(url: str) -> None:
    """Remove what writers that were killed left in the folder `url` under temporary names. One that still writes there
    fails: only for whom the folder is claimed. On S3 nothing is ever left."""
    folder = Path(url.removeprefix("file://"))
    if is_local(url) and folder.is_dir():
        for left in folder.iterdir():
            if TEMPORARY.fullmatch(left.name):
                left.unlink(missing_ok=True)


def beside(url: str) -> list[str]:
    """What is in the folder that `url` is in and has a name that begins with that of `url`. Empty where that folder
    cannot be listed."""
    fs, path = filesystem(url.rstrip("/"))
    fs.invalidate_cache()
    folder, _, name = path.rpartition("/")
    with contextlib.suppress(OSError):
        there = (found.rstrip("/").rpartition("/")[2] for found in fs.ls(folder or "/", detail=False))
        return sorted(url.rstrip("/") + one.removeprefix(name) for one in there if one.startswith(name) and one != name)
    return []


def find(pattern: str) -> dict[str, int]:
    """Absolute path or URL → size in bytes of what `pattern` names, sorted: one file, all files below a
    directory, or a glob (`data/*.jsonl`, `s3://b/in/part-*.parquet`, `**` for any depth).

    Names that begin with `.` or `_`, and what is in such folders, are left out, as Spark and pyarrow do
    (`_SUCCESS`, `_temporary/`), unless `pattern` spells them. A name that exists is taken as it is, though
    it has a `*` or `[` in it. Raises ValueError where nothing is found."""
    fs, path = filesystem(pattern)
    fs.invalidate_cache()
    try:
        about = fs.info(path)
        below = fs.find(path, detail=True) if about["type"] == "directory" else {path: about}
        root = path.rstrip("/") if about["type"] == "directory" else path.rpartition("/")[0]
        spelled = about["type"] != "directory"
    except FileNotFoundError:
        if not fsspec.core.has_magic(path):
            raise ValueError(f"nothing found at {pattern}; give a file, a directory or a pattern (`*.jsonl`)") from None
        below = fs.glob(path, detail=True)
        root = path[: next(at for at, letter in enumerate(path) if letter in "*?[")].rpartition("/")[0]
        spelled = any(part.startswith((".", "_")) for part in path.removeprefix(root).split("/"))
    named = {
        name if is_local(pattern) else fs.unstrip_protocol(name): info["size"]
        for name, info in below.items()
        if _is_file(name, info) and (spelled or not _aside(name.removeprefix(root)))
    }
    if not named:
        raise ValueError(f"nothing found at {pattern}: no file there (names with `.` or `_` first are left out)")
    return dict(sorted(named.items()))


def _is_file(name: str, info: dict[str, Any]) -> bool:
    return info["type"] == "file" and not name.endswith("/")  # an empty object `folder/` stands for a folder


def _aside(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _reading(url: str) -> contextlib.AbstractContextManager[None]:
    if not on_s3(url):
        return contextlib.nullcontext()
    from cluster import s3

    return s3.reading(url)


@contextlib.contextmanager
def _written(target: Path, data: bytes) -> Iterator[tuple[Path, Path]]:
    """`data` on the disk under a temporary name beside `target`, to be given that name within the block."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary, target
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    finally:
        temporary.unlink(missing_ok=True)
