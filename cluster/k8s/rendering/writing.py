"""Rendered files into a directory, which may hold older ones of ours and nothing of anybody else."""

from pathlib import Path

from cluster import storage
from cluster.k8s.rendering.heads import MARK


def write(files: dict[str, str], folder: Path) -> list[str]:
    """Write `files` (relative name → text) below `folder`, each whole or not at all, and remove what was rendered there
    before and is no longer made. Returns the names written.

    Raises ValueError, and writes nothing, where the folder holds a YAML file that was not rendered, OSError where it
    cannot be written. Other files (a README, say) are left alone."""
    there = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.y*ml")) if path.is_file()}
    foreign = [name for name, path in there.items() if MARK not in path.read_text("utf8", errors="replace")]
    if foreign:
        named = ", ".join(foreign[:3]) + (" and more" if len(foreign) > 3 else "")
        raise ValueError(
            f"{folder} holds {named}, which `regrow k8s render` did not write; give another directory (-o DIR), or "
            "move them away"
        )
    for name, text in files.items():
        storage.replace(str(folder / name), text.encode())
    for name, path in there.items():
        if name not in files:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    return sorted(files)
