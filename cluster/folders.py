"""The directories right below a path or `s3://` URL: what they weigh, and how they are removed.

On a local disk links are never followed: neither one in place of a directory nor one inside.
"""

import datetime
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cluster import storage


@dataclass(frozen=True)
class Folder:
    """A directory: `size` is that of all files below it in bytes, `changed` when the newest was written
    (UTC; None where there is no file), `whole` whether it holds the file that was asked for."""

    name: str
    url: str
    size: int
    changed: datetime.datetime | None
    whole: bool


def below(url: str, mark: str) -> tuple[list[Folder], list[str]]:
    """The directories right below `url`, by name (`whole`: with a file `mark` in it), and the names of
    all else that is there: files and links. Nothing where there is no `url`."""
    if storage.is_local(url):
        return _on_disk(Path(url.removeprefix("file://")), mark)
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()
    names: dict[str, dict[str, tuple[int, datetime.datetime]]] = {}
    others = []
    for key, info in fs.find(path, detail=True).items():
        name, _, rest = key.removeprefix(path.rstrip("/") + "/").partition("/")
        if rest:
            names.setdefault(name, {})[rest] = (info["size"], info["LastModified"])
        else:
            others.append(name)
    return [_folder(name, storage.join(url, name), files, mark) for name, files in sorted(names.items())], others


def remove(folder: Folder, mark: str) -> None:
    """Remove a directory, its file `mark` first: one that is half removed is not whole. OSError where
    it cannot be removed."""
    if not storage.is_local(folder.url):
        fs, path = storage.filesystem(folder.url)
        if folder.whole:
            fs.rm_file(f"{path}/{mark}")
        fs.rm(path, recursive=True)
        return
    here = Path(folder.url)
    if here.is_symlink():
        raise OSError(f"{here} is a link now, it is left alone")
    (here / mark).unlink(missing_ok=True)
    shutil.rmtree(here)


def _on_disk(root: Path, mark: str) -> tuple[list[Folder], list[str]]:
    if not root.exists():
        return [], []
    found, others = [], []
    for entry in sorted(root.iterdir()):
        if entry.is_symlink() or not entry.is_dir():
            others.append(entry.name)
            continue
        files = {}
        for folder, _, names in os.walk(entry):
            for name in names:
                about = (Path(folder) / name).lstat()
                changed = datetime.datetime.fromtimestamp(about.st_mtime, datetime.UTC)
                files[str((Path(folder) / name).relative_to(entry))] = (about.st_size, changed)
        found.append(_folder(entry.name, str(entry), files, mark))
    return found, others


def _folder(name: str, url: str, files: dict[str, tuple[int, datetime.datetime]], mark: str) -> Folder:
    changed = max((changed for _, changed in files.values()), default=None)
    return Folder(name, url, sum(size for size, _ in files.values()), changed, mark in files)
