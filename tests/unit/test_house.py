"""The house rules that a machine can check: one-way imports, light start, file and function lengths."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for room in ("cluster", "serving", "pipelines")
    for path in sorted((ROOT / room).rglob("*.py"))
    if path.stat().st_size  # what marks a folder as a package is no file to read
]
MAY_IMPORT = {
    "cluster": {"cluster"},
    "serving": {"cluster", "serving"},
    "pipelines": {"cluster", "serving", "pipelines"},
}
PURE = (
    "answers arithmetic cuts few_shot layers masks prompts rationales recipe recipe_file sections student "
    "subnetwork units verdicts ifp/clusters ifp/routed training/collapse training/masked training/reading "
    "rows/records rows/files rows/splits conversations rows/contamination rows/published own_data/guess "
    "training/batches training/losses reporting/recovery tiny/families tiny/styles generation/asking "
    "generation/columns generation/job generation/packets generation/reading generation/shards generation/source"
).split()


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    rooms = {name.split(".")[0] for name in imported(path)} & set(MAY_IMPORT)
    assert rooms <= MAY_IMPORT[room], f"{path.name} imports from {rooms - MAY_IMPORT[room]}"


@pytest.mark.parametrize("name", PURE)
def test_pure_parts_know_neither_ray_nor_vllm(name: str) -> None:
    tops = {module.split(".")[0] for module in imported(ROOT / "pipelines" / f"{name}.py")}
    assert not tops & {"ray", "vllm"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is longer than 60 lines"


def test_median_file_is_short() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in FILES)
    assert lengths[len(lengths) // 2] <= 120


def test_start_is_light() -> None:
    heavy = "('ray', 'torch', 'vllm', 'transformers')"
    code = f"import sys, pipelines, pipelines.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
