"""A routed model on disk: what is in it, what each sub-network computes, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import serving.routed
from pipelines import masks, units
from pipelines.ifp import clusters, routed
from serving import predictor
from tests import predictors, tiny
from tests.parity.test_subnetwork import no_file_above

PROMPTS = [f"{what} {number}?" for what in ("What is 1 +", "Sort these:", "Who has") for number in range(20)]
KEPT = 64


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.model_dir(tmp_path_factory.mktemp("trained") / "whole", layers=3)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "LICENSE").write_text("Do as you like.")
    return folder


def test_a_routed_model_holds_what_serves_it(tmp_path: Path, whole: Path) -> None:
    reader, folder = predictors.reader(3, 128, KEPT, 0.5), tmp_path / "new" / "routed"
    made = routed.write(folder, whole, reader, PROMPTS, 4, seed=0, base="org/whole")
    assert [file.name for file in folder.parent.iterdir()] == ["routed"], "nothing else is left"
    about = json.loads((folder / "router.json").read_text())
    names = [f"subnetworks/{number}" for number in range(4)]
    assert about == {"format": 1, "predictor": "predictor", "subnetworks": names, "units": KEPT}
    found = load_file(folder / "centroids.safetensors")
    assert found.keys() == {"masks"} and found["masks"].dtype == torch.float32
    assert found["masks"].shape == (4, 3, 128) and ((found["masks"] != 0).sum(-1) == KEPT).all()
    own = masks.mask(predictor.load(folder / "predictor").scores(PROMPTS), KEPT, 0.5)
    assigned = clusters.assign(own, found["masks"])
    assert made.sizes == assigned.sizes and min(made.sizes) > 0
    there = serving.routed.read(str(folder))
    assert serving.routed.router(there).choose(PROMPTS) == assigned.which.tolist(), "as it is served"
    assert made.shared == pytest.approx(float(assigned.shared.mean())) and 0.5 < made.shared < 1
    assert (folder / "centroids.safetensors").stat().st_mode == (folder / "router.json").stat().st_mode
    for name in ("config.json", "model.safetensors", "tokenizer.json", "LICENSE"):
        assert (folder / "whole" / name).read_bytes() == (whole / name).read_bytes()
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and 'base_model: "org/whole"' in card and "| sub-networks | 4 |" in card
    assert (folder / "LICENSE").exists()


def test_each_subnetwork_is_the_model_under_its_mask(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "routed"
    routed.write(folder, whole, predictors.reader(3, 128, KEPT, 0.5), PROMPTS, 2, seed=0)
    model: Any = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(folder / "subnetworks/0")(PROMPTS[:3], return_tensors="pt").input_ids
    for number, mask in enumerate(load_file(folder / "centroids.safetensors")["masks"]):
        small: Any = AutoModelForCausalLM.from_pretrained(folder / f"subnetworks/{number}", dtype=torch.float32).eval()
        assert small.config.intermediate_size == KEPT
        with torch.no_grad(), units.masked(model, mask):
            wanted = model(tokens).logits
        with torch.no_grad():
            torch.testing.assert_close(small(tokens).logits, wanted, rtol=1e-5, atol=1e-5)


def test_one_subnetwork_is_the_task_mask(tmp_path: Path, whole: Path) -> None:
    """K = 1 is the mask of the set; of one prompt it is the prompt's own; of many, in whatever batches."""
    reader, folder = predictors.reader(3, 128, KEPT, 0.5), tmp_path / "routed"
    routed.write(folder, whole, reader, PROMPTS, 1, seed=0)
    per_task = routed.per_task(reader, PROMPTS)
    assert torch.equal(load_file(folder / "centroids.safetensors")["masks"][0], per_task)
    assert torch.equal(clusters.middle(routed.masks_of(reader, PROMPTS)), per_task)
    assert torch.equal(routed.per_task(reader, PROMPTS[0]), routed.masks_of(reader, PROMPTS[:1])[0])
    assert (routed.per_task(reader, PROMPTS, 32) != 0).sum(-1).tolist() == [32] * 3


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path, whole: Path) -> None:
    fits, taken = predictors.reader(3, 128, KEPT), tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    out = tmp_path / "out"
    for folder, reader, prompts, k, said in (
        (out, predictors.reader(3, 96, KEPT), PROMPTS, 2, "for models with 3 blocks of 96 FFN units, and the one in"),
        (out, predictors.reader(3, 128, 129), PROMPTS, 2, "129 of 128 FFN units cannot stay on"),
        (out, fits, PROMPTS, 61, "61 sub-networks of 60 calibration prompts"),
        (out, fits, PROMPTS[:1] * 9, 2, "2 sub-networks of 9 calibration prompts, 1 of which differ"),
        (out, fits, [], 1, "a mask needs a prompt"),
        (out, fits, [*PROMPTS, ""], 2, "the prompt is empty"),
        (out, fits, [*PROMPTS, "word " * 300], 2, "the mask predictor reads 256 at most"),
        (taken, fits, PROMPTS, 2, "holds something already; give a new directory"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            routed.write(folder, whole, reader, prompts, k, seed=0)
        assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path, whole: Path) -> None:
    """As on a full disk: the sub-networks fit, and the copy of the whole model does not."""
    assert (whole / "model.safetensors").stat().st_size > 550_000
    with no_file_above(550_000), pytest.raises(OSError, match="too large"):
        routed.write(tmp_path / "out", whole, predictors.reader(3, 128, KEPT), PROMPTS, 2, seed=0)
    assert not list(tmp_path.iterdir())
