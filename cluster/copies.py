"""Local copies of directories on S3, for libraries that read paths of this machine only."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from cluster import lock, storage

COPIED = ".copied.json"  # in a copy: file → the version that was copied


def place(url: str, name: str = "") -> Path:
    """Where this machine has the directory `url`: there itself, or for S3 its copy, which `local` makes, under `name`
    (one that stands for the content), or one that follows from the address."""
    if storage.is_local(url):
        return Path(url.removeprefix("file://"))
    name = name or hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"regrow-cache-{os.getuid()}" / name


def local(url: str, name: str = "") -> Path:
    """`place`, with the files of `url` in it as they are now. Raises as `copy`."""
    here = place(url, name)
    if not storage.is_local(url):
        copy(url, here)
    return here


def workplace(url: str) -> Path:
    """An existing directory of this machine, this user's alone, for what shall become the directory `url` on S3: the
    same each time, so that work which was broken off is found again where the temporary directory outlives it."""
    here = place(url, f"writing-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:16]}")
    _private(here.parent)
    here.mkdir(exist_ok=True)
    return here


def copy(url: str, here: Path) -> None:
    """Make the directory `here` a copy of `url` on S3: what was copied and has not changed since stays, what is gone
    goes. One process at a time copies; others wait for it.

    Raises FileNotFoundError where there is nothing at `url`, ValueError where a key would be written elsewhere,
    PermissionError where others may write to the copies, OSError where the storage fails."""
    found = storage.versions(url)
    if not found:
        raise FileNotFoundError(f"{url}: nothing is there")
    for file in found:
        if file.startswith("/") or ".." in file.split("/"):  # a key may be called anything
            raise ValueError(f"{url}: {file!r} would be written outside of the copy")
    _private(here.parent)
    with lock.held(here, wait=True):
        had = _copied(here)
        for file in had.keys() - found.keys():
            (here / file).unlink(missing_ok=True)
        had = {file: version for file, version in had.items() if file in found}
        for file, version in found.items():
            if had.get(file) != version or not (here / file).exists():
                _fetch(storage.join(url, file), here / file)
                had[file] = version
                storage.replace(str(here / COPIED), json.dumps(had).encode())


def _private(folder: Path) -> None:
    """Engines run what lies there: nobody else may have put it there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise PermissionError(f"{folder}: others may write there; remove it, or set TMPDIR to a directory of your own")


def _copied(here: Path) -> dict[str, str]:
    try:
        return dict(json.loads((here / COPIED).read_bytes()))
    except (FileNotFoundError, ValueError):
        return {}


def _fetch(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    with storage.opened(url) as source, partial.open("wb") as sink:
        shutil.copyfileobj(source, sink, storage.PIECE)
    partial.replace(target)
