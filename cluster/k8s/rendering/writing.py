"""Rendered files into a directory, which may hold older ones of the same run and nothing of anybody else."""

from pathlib import Path

from cluster import storage
from cluster.k8s.rendering.heads import MARK, mark


def write(files: dict[str, str], folder: Path, run: str) -> list[str]:
    """Write `files` (relative name → text) of `run` below `folder`, each whole or not at all, and remove what was
    rendered there before for the same run and is no longer made. Returns the names written.

    Raises ValueError, and writes nothing, where `folder` is no directory or holds a YAML file that was not rendered, or
    for another run, or to another directory; OSError where it cannot be written. Other files (a README, say) are left
    alone."""
    there = _there(folder)
    _refuse(folder, run, there)
    for name, text in files.items():
        storage.replace(str(folder / name), text.encode())
    for name in there:
        if name not in files:
            path = folder / name
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    return sorted(files)


def _there(folder: Path) -> dict[str, str]:
    """Relative name → text of the YAML files in `folder`."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(f"-o {folder}: {nearest} is a file; give a directory")
    found = (path for path in sorted(folder.rglob("*.y*ml")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text("utf8", errors="replace") for path in found}


def _refuse(folder: Path, run: str, there: dict[str, str]) -> None:
    """Raise ValueError where not all of `there` was rendered for `run` to this very directory."""
    others = [name for name, text in there.items() if f"# {mark(run, name)}" not in text.splitlines()]
    if others:
        rendered = any(f"# {MARK} " in there[name] for name in others)
        whose = (
            "rendered for another run or to another directory"
            if rendered
            else "which `regrow k8s render` did not write"
        )
        named = ", ".join(others[:3]) + (" and more" if len(others) > 3 else "")
        raise ValueError(f"{folder} holds {named}, {whose}; give another directory (-o DIR), or move them away")
