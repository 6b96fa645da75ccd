"""Local copies of directories on S3, for libraries that read paths of this machine only."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from cluster import storage

CACHE = "regrow-cache"  # below the temporary directory


def place(url: str, name: str = "") -> Path:
    """Where this machine has the directory `url`: there itself, or for S3 its copy, which `local` makes, under `name`
    (one that stands for the content), or one that follows from the address."""
    if storage.is_local(url):
        return Path(url.removeprefix("file://"))
    name = name or hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / CACHE / name


def local(url: str, name: str = "") -> Path:
    """`place`, with every file of `url` in it; a file that is there with its size is not fetched again.

    Raises FileNotFoundError where there is nothing at `url`, OSError where the storage fails."""
    here = place(url, name)
    if storage.is_local(url):
        return here
    found = storage.files(url)
    if not found:
        raise FileNotFoundError(f"{url}: nothing is there")
    for file, size in found.items():
        if file.startswith("/") or ".." in file.split("/"):  # a key may be called anything
            raise ValueError(f"{url}: {file!r} would be written outside of the copy")
        target = here / file
        if not target.exists() or target.stat().st_size != size:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}.part")  # several processes may copy at once
            with storage.opened(storage.join(url, file)) as source, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink, storage.PIECE)
            partial.replace(target)
    return here
