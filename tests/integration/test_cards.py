"""The teacher's licence reaches every checkpoint made from it: the cut, the student, the student's adapter."""

from pathlib import Path

from pipelines import prune, train
from pipelines.recipe import Recipe
from pipelines.student import Student
from pipelines.training import loading, losses, saving
from tests import tiny

FRONT = "---\nlicense: other\nlicense_name: llama3.1\nlicense_link: https://example.org/licence\n---\n# Small\n"


def test_licence_and_terms_go_along(tmp_path: Path) -> None:
    teacher = tiny.model_dir(tmp_path / "teacher", layers=3)
    (teacher / "README.md").write_text(FRONT)
    terms = {"LICENSE": "the licence", "NOTICE.txt": "a notice", "USE_POLICY.md": "a policy"}
    for name, text in terms.items():
        (teacher / name).write_text(text)
    student = Student(name="sdd", lora_rank=2)
    recipe = Recipe(
        name="x", teacher={"model": "acme/small"}, dataset=[{"name": "d", "source": "x.jsonl"}], prune={"layers": 1},
        student=[student],
    )  # fmt: skip
    prune.prune(recipe, "angular", teacher, prune.measure(recipe, teacher, ["one?", "two?"]), tmp_path / "cut")
    cut, out = tmp_path / "cut" / "model", tmp_path / "out"
    saving.save(out, str(cut), student, losses.ByToken(loading.load(str(cut), student, 0)))
    train._dress(recipe, student, cut, {"steps": 1}, out / "model")
    for folder, library in ((cut, "transformers"), (out / "model", "transformers"), (out / "adapter", "peft")):
        card = (folder / "README.md").read_text()
        assert card.startswith(FRONT.removesuffix("---\n# Small\n") + 'base_model: "acme/small"\n'), card[:300]
        assert f"library_name: {library}" in card and "stays under its terms" in card and str(tmp_path) not in card
        for name, text in terms.items():
            assert (folder / name).read_text() == text
