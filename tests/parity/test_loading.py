"""Students loaded and saved in slices, on 1, 2 and 4 ranks, against from_pretrained and peft on whole models."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch._subclasses import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MixtralConfig, Qwen3Config

from pipelines import train
from pipelines.recipe import Recipe
from pipelines.student import Student
from pipelines.training import loading, losses, parallel, saving, slices
from tests import ranks

VOCAB = 331  # rows that neither 2 nor 4 divides
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 70, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64, "bos_token_id": None,
    "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
FAMILIES = {
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama-untied": LlamaConfig(**SHAPE, tie_word_embeddings=False, rope_parameters=LLAMA3, attention_bias=True),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=False),
    "gemma2": Gemma2Config(**SHAPE, tie_word_embeddings=True),
}
CONVERTED = MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False)
STUDENTS = {
    "full": Student(name="sft"),
    "lora": Student(name="sft", lora_rank=3, lora_alpha=7, activation_checkpointing=True),
    "targets": Student(name="sft", lora_rank=3, lora_targets=("q_proj", "down_proj")),
    "last": Student(name="sft", last_layers=2),
}
RANKS = (1, 2, 4)


class Watch(TorchDispatchMode):
    """The elements of the largest tensor in memory that any operation met, and the bytes of bf16 (what the files hold)
    that were copied. A file is mapped whole: what is not touched there is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # first taken apart, then seen here
        made = func(*args, **kwargs or {})
        for leaf in tree_leaves((args, made)):
            real = isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and not isinstance(leaf, FakeTensor)
            if real and leaf.numel() > self.largest:
                self.largest = self.largest if in_a_file(leaf.data_ptr()) else leaf.numel()
        if func is torch.ops.aten.copy_.default and args[1].dtype == torch.bfloat16 and args[1].ndim:
            self.copied += args[1].nbytes
        return made


def in_a_file(address: int) -> bool:
    """Whether a weights file is mapped there."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            return line.endswith(".safetensors")
    return False


def gathered(model: losses.ByToken) -> dict[str, torch.Tensor]:
    """Every parameter whole, under the name that it has in a model without wrappers."""
    named = {parallel.unwrapped(name): p for name, p in model.model.named_parameters()}
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).clone() for name, p in named.items()}


def on_rank(rank: int, ranks: int, folder: Path) -> None:
    """Load, note, move the trained weights a little, save: each student of each family."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet-{ranks}", rank=rank, world_size=ranks)
    parallel.SMALL = 0  # a group a block
    saving.FILE = 30_000  # several files
    seen = {}
    for family in FAMILIES:
        for name, student in STUDENTS.items():
            mesh = parallel.mesh("cpu", ranks, 2 if ranks == 4 and name == "lora" else 1)
            with Watch() as watch:
                model = loading.sharded(str(folder / family), student, 5, mesh)
            seen[f"{family} {name}"] = (watch.largest, watch.copied)
            start, buffers = gathered(model), dict(losses.bare(model.model).named_buffers())
            tied = losses.bare(model.model).lm_head.weight is losses.bare(model.model).get_input_embeddings().weight
            moved(model.model)
            saving.save(folder / f"{family}-{name}-{ranks}", str(folder / family), student, model)
            if rank == 0:
                torch.save((start, buffers, tied), folder / f"{family}-{name}-{ranks}.pt")
    if ranks == 2:
        for name in ("full", "lora"):
            model = loading.sharded(str(folder / "mixtral"), STUDENTS[name], 5, parallel.mesh("cpu", ranks))
            moved(model.model)
            saving.save(folder / f"mixtral-{name}", str(folder / "mixtral"), STUDENTS[name], model)
    (folder / f"seen-{ranks}-{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


@torch.no_grad()
def moved(model: Any) -> None:
    """Change what is trained, every rank its own part of it."""
    for name, p in model.named_parameters():
        if p.requires_grad:
            step = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(parallel.unwrapped(name)))) * 0.1
            local = p.to_local() if isinstance(p, DTensor) else p
            local += step[slices.part(p)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bf16 checkpoint of each family, and what each number of ranks made of it."""
    folder = tmp_path_factory.mktemp("runs")
    for family, config in (FAMILIES | {"mixtral": CONVERTED}).items():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)
        for p in model.parameters():  # norms and biases begin as constants
            torch.nn.init.normal_(p, std=0.5)
        model.bfloat16().save_pretrained(folder / family)
    ranks.run(on_rank, RANKS, folder, 1200)
    return folder


def peer(runs: Path, family: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(runs / family, dtype="auto")


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_loaded_is_what_from_pretrained_loads(runs: Path, family: str, name: str, ranks: int) -> None:
    start, buffers, tied = torch.load(runs / f"{family}-{name}-{ranks}.pt", weights_only=True)
    theirs = peer(runs, family)
    base = {key.removeprefix("base_model.model.").replace("base_layer.", ""): p for key, p in start.items()}
    for key, p in theirs.named_parameters():
        assert torch.equal(base.pop(key), p.float()), key
    assert tied == FAMILIES[family].tie_word_embeddings
    for key, buffer in theirs.named_buffers():
        assert buffers[key].dtype == buffer.dtype and torch.equal(buffers.pop(key), buffer), key
    assert not buffers
    whole = dict(loading.load(str(runs / family), STUDENTS[name], 5).named_parameters())
    adapters = {key: p for key, p in whole.items() if "lora_" in key}
    assert adapters.keys() == {f"base_model.model.{key}" for key in base}
    for key, p in adapters.items():
        assert torch.equal(start[key], p), "a seed gives the same adapters on any number of ranks"
        assert p.abs().max() == 0 if "lora_B" in key else p.abs().max() > 0


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_rank_reads_or_holds_more_than_its_part(runs: Path, family: str, ranks: int) -> None:
    stored = sum(2 * p.numel() for p in peer(runs, family).parameters())
    seen = [json.loads((runs / f"seen-{ranks}-{rank}.json").read_text()) for rank in range(ranks)]
    for name in ("full", "last"):
        assert sum(rank[f"{family} {name}"][1] for rank in seen) == stored, "every byte once"
        largest = max(rank[f"{family} {name}"][0] for rank in seen)
        assert largest == -(-VOCAB // ranks) * 48, "a rank's rows of the embedding"


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_what_peft_and_transformers_save(runs: Path, family: str, name: str, ranks: int) -> None:
    """Bit for bit: W + scale·B·A is summed in fp32 here and there, and rounded once."""
    student, out = STUDENTS[name], runs / f"{family}-{name}-{ranks}"
    model = loading.load(str(runs / family), student, 5).float()
    moved(model)
    if student.lora_rank:
        adapted = PeftModel.from_pretrained(peer(runs, family).float(), out / "adapter")
        mine, theirs = (get_peft_model_state_dict(one) for one in (adapted, model))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        model = model.merge_and_unload()
    else:
        assert not (out / "adapter").exists()
    start, model = peer(runs, family), model.bfloat16()
    saved, how = AutoModelForCausalLM.from_pretrained(out / "model", dtype="auto", output_loading_info=True)
    assert not any(how.values()), how
    assert saved.dtype == torch.bfloat16 and saved.config.to_diff_dict() == start.config.to_diff_dict()
    kinds = set()
    for (key, p), before, ours in zip(model.named_parameters(), start.parameters(), saved.parameters(), strict=True):
        assert torch.equal(p, ours), key
        kinds.add(torch.equal(before, ours))
    assert kinds == ({False} if name == "full" else {True, False}), "what is frozen stays, what is trained does not"
    files = sorted(file.name for file in (out / "model").glob("*.safetensors"))
    index = json.loads((out / "model" / "model.safetensors.index.json").read_text())
    assert len(files) > 1 and sorted(set(index["weight_map"].values())) == files
    sizes = {file: (out / "model" / file).stat().st_size for file in files}
    assert all(size < 30_000 + 2 * VOCAB * 48 for size in sizes.values()), "a file holds no more than it may"


@pytest.mark.parametrize("name", ["full", "lora"])
def test_files_that_are_converted_are_read_and_saved_whole(runs: Path, name: str) -> None:
    """Mixtral's files hold each expert alone, transformers' model all of a block together."""
    assert "differ in" in slices.unfit(runs / "mixtral", loading.blank(runs / "mixtral"))
    model = loading.load(str(runs / "mixtral"), STUDENTS[name], 5).float()
    moved(model)
    model = (model.merge_and_unload() if name == "lora" else model).bfloat16()
    saved = peer(runs, f"mixtral-{name}/model")
    for (key, p), ours in zip(model.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(p, ours), key
    assert (runs / f"mixtral-{name}" / "adapter").exists() == (name == "lora")


def test_what_cannot_be_read_in_slices_is_known(tmp_path: Path) -> None:
    def why(**changed: Any) -> str:
        for name, value in changed.items():
            setattr(model.config, name, value)
        return slices.unfit(tmp_path, model)

    whole: Any = AutoModelForCausalLM.from_config(FAMILIES["llama-tied"])
    whole.save_pretrained(tmp_path)
    model = loading.blank(tmp_path)
    assert why() == ""
    assert "quantised" in why(quantization_config={"quant_method": "fp8"})
    model = loading.blank(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"lm_head.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert why() == "the files and the model differ in lm_head.weight"
    save_file(weights | {"model.norm.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert why() == "the files and the model differ in model.norm.weight"
    save_file(weights, tmp_path / "model.safetensors")
    model.model.register_buffer("unheard_of", torch.zeros(2, device="meta"), persistent=False)
    assert "the buffer model.unheard_of" in why()
    (tmp_path / "model.safetensors").unlink()
    assert why() == "the weights are not in safetensors files"
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "dtype"}))
    assert why() == "config.json names no dtype"


def test_the_last_blocks_and_the_final_norm_are_trained(tmp_path: Path) -> None:
    for config in FAMILIES.values():
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        model = loading.load(str(tmp_path), Student(name="sft", last_layers=2), 0)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {
            name for name, _ in model.named_parameters() if re.search(r"layers\.[12]\.|model\.norm", name)
        }


def test_targets_that_are_not_there_are_refused(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(FAMILIES["qwen3"]).save_pretrained(tmp_path)
    student = Student(name="sft-x", lora_rank=2, lora_targets=("q_proj", "qkv"))
    recipe = Recipe(name="x", dataset=[{"name": "d", "source": "x"}], prune={"layers": 1}, student=[student])
    with pytest.raises(ValueError, match=r"sft-x: lora_targets names 'qkv', .*; there are down_proj, gate_proj"):
        train.check(recipe, tmp_path)
