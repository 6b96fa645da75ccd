"""Sub-networks, as checkpoints and in memory, against the whole model under its mask."""

import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config

from pipelines import cuts, layers, masks, subnetwork, units
from pipelines.student import Student
from pipelines.training import loading
from tests import tiny
from tests.parity.test_units import BLOCKS, FAMILIES, SHAPE, WIDTH, build, close, ids, soft

# What float64 may differ by, and fp32: λ is rounded with the weights, and sums run in another order
LEAST = {torch.float64: 1e-10, torch.float32: 1e-5}
BOTH = pytest.mark.parametrize("dtype", LEAST, ids=str)


def saved(model: Any, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    return folder


def load(folder: Path) -> Any:
    """As stock transformers loads it; nothing may be made up, nothing left over."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, output_loading_info=True
    )
    model, found = loaded
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def under_mask(model: Any, mask: Tensor, tokens: Tensor) -> Tensor:
    with torch.no_grad(), units.masked(model, mask):
        return model(tokens).logits


@BOTH
@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_small_model_is_the_whole_one_under_its_mask(
    tmp_path: Path, family: str, kind: str, dtype: torch.dtype
) -> None:
    """Written, and gathered in memory: logits of both equal those under the mask; in many files, embeddings tied."""
    model, tokens = build(family, dtype), ids(2, 9)
    mask = soft() if kind == "soft" else units.top(soft(), 8)
    whole = saved(model, tmp_path / "whole", max_shard_size=4000)
    assert len(list(whole.glob("*.safetensors"))) > 1
    wanted = under_mask(model, mask, tokens)
    subnetwork.export(whole, mask, tmp_path / "small")
    small, here = load(tmp_path / "small"), subnetwork.gathered(model, mask)
    for made in (small, here):
        assert made.dtype == dtype and made.config.intermediate_size == 8 and units.check(made) == (BLOCKS, 8)
        assert made.config.tie_word_embeddings == (family == "qwen2")
        with torch.no_grad():
            close(made(tokens).logits, wanted, LEAST[dtype])
    for (name, one), (same, other) in zip(small.named_parameters(), here.named_parameters(), strict=True):
        assert name == same and torch.equal(one, other)


def test_what_is_not_cut_keeps_its_bits(tmp_path: Path) -> None:
    """bf16: the kept units under a hard mask too; λ is rounded with its weight, once."""
    model = build("qwen2", torch.bfloat16)
    whole, mask = saved(model, tmp_path / "whole"), soft()
    before = load_file(whole / "model.safetensors")
    for name, some in (("hard", units.top(mask, 8)), ("soft", mask)):
        subnetwork.export(whole, some, tmp_path / name)
        after = load_file(tmp_path / name / "model.safetensors")
        assert before.keys() == after.keys()
        for key, weight in before.items():
            own = masks.indices(mask)[int(key.split(".")[2])] if ".mlp." in key else None
            if own is not None and "down" not in key:
                weight = weight[own]
            elif own is not None:
                values = some[int(key.split(".")[2]), own]
                weight = (weight[:, own].double() * values).bfloat16()
            assert after[key].dtype == torch.bfloat16 and torch.equal(after[key], weight), key


def test_several_files_are_written_under_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subnetwork, "FILE", 4000)
    model, mask = build("llama"), soft()
    subnetwork.export(saved(model, tmp_path / "whole"), mask, tmp_path / "small")
    written = {file.name: set(load_file(file)) for file in (tmp_path / "small").glob("*.safetensors")}
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert len(written) > 3 and index["weight_map"] == {name: file for file, names in written.items() for name in names}
    with torch.no_grad():
        close(load(tmp_path / "small")(ids(2, 9)).logits, under_mask(model, mask, ids(2, 9)), 1e-10)


def test_what_belongs_to_a_model_comes_along(tmp_path: Path) -> None:
    """Tokenizer, chat template, generation settings and licence as they were; a card that names where it comes from."""
    whole = tiny.model_dir(tmp_path / "whole", layers=2)
    (whole / "generation_config.json").write_text(
        '{"do_sample": false, "temperature": 0.6}'
    )  # transformers warns of it
    (whole / "LICENSE").write_text("Do as you like.")
    (whole / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (whole / "additional_chat_templates").mkdir()
    (whole / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    (whole / "optimizer.pt").write_bytes(b"no part of the model")
    mask = units.top(torch.rand(2, 128), 64)
    subnetwork.export(whole, mask, tmp_path / "new" / "small", base="org/whole")
    made = tmp_path / "new" / "small"
    there = {str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file()}
    assert {str(file.relative_to(made)) for file in made.rglob("*") if file.is_file()} == there - {"optimizer.pt"}
    for name in there - {"optimizer.pt", "README.md", "config.json", "model.safetensors"}:
        assert (made / name).read_bytes() == (whole / name).read_bytes(), name
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (whole, made))
    assert other == one | {"intermediate_size": 64}
    card = (made / "README.md").read_text()
    assert "license: apache-2.0" in card and 'base_model: "org/whole"' in card and masks.mask_hash(mask) in card
    assert (made / "model.safetensors").stat().st_mode == (made / "config.json").stat().st_mode
    question = [{"role": "user", "content": "1 + 2?"}]
    words = [AutoTokenizer.from_pretrained(f).apply_chat_template(question, tokenize=False) for f in (whole, made)]
    assert words[0] == words[1]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["small"]


def test_gathered_shares_all_but_the_units(tmp_path: Path) -> None:
    """Many of them fit beside the model; it generates as the whole model does under the mask."""
    model, mask = build("qwen3").train(), soft()
    small = subnetwork.gathered(model, mask)
    one, other = dict(model.named_parameters()), dict(small.named_parameters())
    assert one.keys() == other.keys()
    assert all((one[name] is other[name]) == (".mlp." not in name) for name in one)
    assert model.training and not small.training and units.check(model) == (BLOCKS, WIDTH)
    how: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    with units.masked(model.eval(), mask):
        wanted = model.generate(ids(1, 5), **how)
    assert torch.equal(small.generate(ids(1, 5), **how), wanted)
    assert not torch.equal(model.generate(ids(1, 5), **how), wanted)
    with pytest.raises(ValueError, match="merge the adapters first"):
        subnetwork.gathered(loading.adapted(model, Student(name="sft", lora_rank=2), 0), mask)


WRONG = {
    "the mask is (2, 20), but the model has 3 blocks of 20": soft()[:2],
    "the mask is (3, 1, 20)": soft(1),
    "rows keep 7 to 8 units": torch.cat([units.top(soft()[:1], 7), units.top(soft()[1:], 8)]),
    "the mask keeps no unit": torch.zeros(BLOCKS, WIDTH),
    "values outside 0 … 1": soft() * 2,
    "outside 0 … 1": torch.full((BLOCKS, WIDTH), torch.nan),
}


@pytest.mark.parametrize("said", WRONG)
def test_masks_that_do_not_fit_are_refused(tmp_path: Path, said: str) -> None:
    model, mask = build("llama"), WRONG[said]
    whole = saved(model, tmp_path / "whole")
    for refused in (
        lambda: subnetwork.export(whole, mask, tmp_path / "small"),
        lambda: subnetwork.gathered(model, mask),
        lambda: subnetwork.save_mask(tmp_path / "mask", mask, whole),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            refused()
    assert [file.name for file in tmp_path.iterdir()] == ["whole"]


def test_checkpoints_that_cannot_be_cut_are_refused(tmp_path: Path) -> None:
    fused = saved(AutoModelForCausalLM.from_config(Phi3Config(**SHAPE)), tmp_path / "fused")
    whole = saved(build("llama"), tmp_path / "whole")
    odd = saved(build("llama"), tmp_path / "odd")
    weights = load_file(odd / "model.safetensors")
    down = "model.layers.1.mlp.down_proj.weight"
    save_file(weights | {down: weights[down][:, :-1].contiguous()}, odd / "model.safetensors", {"format": "pt"})
    lacking = saved(build("llama"), tmp_path / "lacking")
    del weights[down]
    save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    quantised = saved(build("llama"), tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (quantised / "config.json").write_text(json.dumps(config))
    torn = saved(build("llama"), tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:-1000])
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for folder, out, said in (
        (fused, "small", r"Phi3ForCausalLM: .* \(gate_up_proj\)"),
        (odd, "small", "no down_proj of 20 units for block 1"),
        (lacking, "small", "no down_proj of 20 units for block 1"),
        (quantised, "small", "quantised"),
        (torn, "small", "torn or no safetensors file"),
        (whole, "taken", "holds something already"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=said):
            subnetwork.export(folder, soft(), tmp_path / out)
        assert sorted(tmp_path.rglob("*")) == before


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """As a full disk is: writing past `size` bytes of a file fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks fit and a matrix of embeddings does not; then all weights do, and a file of the tokenizer does not. The
    next try succeeds, into a directory that is there but empty as well."""
    monkeypatch.setattr(subnetwork, "FILE", 20_000)
    whole = tiny.model_dir(tmp_path / "whole", layers=2, tie_word_embeddings=False)
    mask, out = units.top(torch.rand(2, 128), 64), tmp_path / "out"
    assert (whole / "tokenizer.json").stat().st_size < 60_000 < 4 * 64 * len(tiny.tokenizer())
    with no_file_above(60_000), pytest.raises(SafetensorError, match="too large"):
        subnetwork.export(whole, mask, out)
    assert [file.name for file in tmp_path.iterdir()] == ["whole"]
    (whole / "vocab.txt").write_bytes(b"x" * 200_000)
    with no_file_above(150_000), pytest.raises(OSError, match="too large"):
        subnetwork.export(whole, mask, out)
    assert [file.name for file in tmp_path.iterdir()] == ["whole"]
    out.mkdir()
    subnetwork.export(whole, mask, out)
    assert units.check(load(out)) == (2, 64) and sorted(f.name for f in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_mask_is_read_as_it_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    whole, mask, file = (
        saved(build("llama"), tmp_path / "whole"),
        soft().to(dtype),
        tmp_path / "new" / "mask.safetensors",
    )
    subnetwork.save_mask(file, mask.requires_grad_(), whole)
    found = subnetwork.load_mask(file, whole)
    assert found.dtype == dtype and torch.equal(found, mask)
    (whole / "tokenizer_config.json").write_text("{}")  # no unit is another for it
    assert torch.equal(subnetwork.load_mask(file, whole), mask)


def test_masks_of_another_model_or_broken_ones_are_refused(tmp_path: Path) -> None:
    model = build("llama")
    whole, file = saved(model, tmp_path / "whole"), tmp_path / "mask.safetensors"
    subnetwork.save_mask(file, soft(), whole)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] += 1e-9
    with pytest.raises(ValueError, match=r"made for another model than the one in .*; give the model it was made for"):
        subnetwork.load_mask(file, saved(model, tmp_path / "other"))
    shorter = saved(layers.remove(model, [1]), tmp_path / "shorter")
    with pytest.raises(ValueError, match="made for another model"):
        subnetwork.load_mask(file, shorter)
    with pytest.raises(ValueError, match="there is no mask"):
        subnetwork.load_mask(tmp_path / "nothing", whole)
    with pytest.raises(ValueError, match="is no mask of FFN units"):
        subnetwork.load_mask(whole / "model.safetensors", whole)
    told = {"fingerprint": subnetwork.fingerprint(whole), "mask_hash": masks.mask_hash(soft()), "t": "8"}
    save_file({"mask": soft(seed=1)}, tmp_path / "odd", told)
    with pytest.raises(ValueError, match="not the one its metadata describes"):
        subnetwork.load_mask(tmp_path / "odd", whole)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="torn or no safetensors file"):
        subnetwork.load_mask(file, whole)


def test_units_that_stay_fit_the_block_and_are_divided_over_gpus() -> None:
    for kept, gpus in ((6656, 8), (7, 1), (12, 12), (9728, 8)):
        cuts.check_units(kept, 9728, gpus)
    told = {
        (6660, 9728, 8): "6660 FFN units cannot be divided over 8 GPUs; keep 6656 or 6664",
        (3, 9728, 8): "over 8 GPUs; keep 8$",
        (99, 100, 8): "over 8 GPUs; keep 96$",
        (3, 6, 8): "over 8 GPUs; take 6 GPUs at most$",
        (0, 100, 1): "0 of 100 FFN units cannot stay on; keep 1 to 100",
        (101, 100, 1): "101 of 100 FFN units cannot stay on; keep 1 to 100",
    }
    for (kept, width, gpus), said in told.items():
        with pytest.raises(ValueError, match=said):
            cuts.check_units(kept, width, gpus)
