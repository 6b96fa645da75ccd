"""Compiled blocks without a GPU: what they are called and how they are traced. Their numbers: tests/gpu."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._dynamo import OptimizedModule
from torch._dynamo.testing import CompileCounter
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AttentionInterface, AutoModelForCausalLM

from pipelines.student import Student
from pipelines.training import attention, checkpoints, loading, optimizers, parallel, saving
from tests import others, tiny
from tests.parity.test_loop import PEAK, VARIANTS, looped, model, rows


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield parallel.mesh("cpu", 1)
    dist.destroy_process_group()


@pytest.mark.parametrize("variant", ["micro", "lora", "last"])
def test_compiled_blocks_are_checkpointed_and_saved_under_their_own_names(
    mesh: Any, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run with compiled blocks left behind another goes on with that has none. The wrappers stand, what they
    hold runs as it is written."""
    monkeypatch.setattr(parallel, "SMALL", 0)
    folder, student = tiny.model_dir(tmp_path / "model", layers=2), VARIANTS[variant]
    storage = tmp_path / "checkpoints"
    storage.mkdir()
    with torch.compiler.set_stance("force_eager"):
        seen, files = [], []
        for compiled in (True, False):
            made = parallel.parallelize(model(folder, student).float(), mesh, True, compiled)
            wrapped = [isinstance(block, OptimizedModule) for block in parallel.blocks(made.model)]
            assert wrapped == [compiled] * 2
            optimizer = optimizers.adamw(made, PEAK, 0.0)
            if compiled:
                with checkpoints.Saver(storage, checkpoints.begin(storage)) as saver:
                    saver.save([{"step": 0}], made, optimizer)
                list(looped(made, rows(), student))  # away from where it started
            start, _ = checkpoints.newest(storage)
            assert start
            checkpoints.load(start, made, optimizer)
            seen.append(list(looped(made, rows(), student)))
            out = tmp_path / f"out-{compiled}"
            saving.save(out, str(folder), student, made)
            files.append({path.name: path.read_bytes() for path in out.rglob("*.safetensors")})
    assert seen[0] == seen[1]
    assert files[0] == files[1] and len(files[0]) == 1 + bool(student.lora_rank)


def test_compile_has_no_effect_without_a_gpu(mesh: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = Student(name="sft", compile=True)
    made = loading.sharded(str(tiny.model_dir(tmp_path, layers=1)), student, 0, mesh)
    assert not any(isinstance(part, OptimizedModule) for part in made.modules())
    assert "sft: compile = true has no effect without a GPU" in capsys.readouterr().err


def varlen(module: Any, query: Any, key: Any, value: Any, attention_mask: None, **more: Any) -> tuple[Any, None]:
    """`attention.packed` as it goes on a GPU, for tensors that are nowhere."""
    starts, longest = more["cu_seq_lens_q"], more["max_length_q"]
    return attention._varlen(
        query, key, value, more["scaling"], more.get("sliding_window"), starts, longest
    ), None  # fmt: skip


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_a_block_is_one_graph_for_packs_of_all_lengths(family: str, recomputed: bool) -> None:
    """Traced with the GPU's kernel on the meta device: no graph breaks, and all blocks share two graphs: that of the
    first pack, and from the second on one for any number of tokens and rows."""
    AttentionInterface.register("varlen_on_meta", varlen)
    torch._dynamo.reset()
    with torch.device("meta"):
        made: Any = AutoModelForCausalLM.from_config(others.CONFIGS[family], attn_implementation="varlen_on_meta")
    made, graphs = made.train(), CompileCounter()
    for i, block in enumerate(layers := made.get_decoder().layers):
        wrapped = checkpoint_wrapper(block) if recomputed else block
        layers[i] = torch.compile(wrapped, backend=graphs, fullgraph=True)
    for tokens, kept, longest in ((64, 3, 34), (80, 4, 40), (96, 7, 31), (70, 2, 70), (71, 5, 30)):
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        starts = torch.empty(kept, dtype=torch.int32, device="meta")
        packed = {"position_ids": ids, "cu_seq_lens_q": starts, "max_length_q": longest}
        made.get_decoder()(input_ids=ids, use_cache=False, **packed)[0].sum().backward()
    assert graphs.frame_count == 2
