"""Packs against rows fed one at a time: the same losses and gradients, whatever stands beside a row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from pipelines.training import attention, batches, losses
from tests import others

ROWS = [
    (3, 17),
    (1, 5),
    (0, 9),
    (20, 41),
    (4, 5),
    (6, 6),
]  # prompt and all tokens; the third has no prompt, the last no target


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return others.checkpoints(tmp_path_factory.mktemp("others"))


def encoded() -> list[batches.Encoded]:
    rng = np.random.default_rng(0)
    return [batches.Encoded(rng.integers(0, 200, size).tolist(), prompt) for prompt, size in ROWS]


def load(folder: Path, how: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=how, local_files_only=True).double().train()


def alone(model: Any, rows: list[batches.Encoded]) -> list[torch.Tensor]:
    """Nats of each row's targets from the whole logits of the row alone, under transformers' own mask."""
    said = []
    for row in rows:
        ids = torch.tensor(row.ids)
        scores = F.log_softmax(model(input_ids=ids[None]).logits[0, :-1], -1)
        said.append(-scores.gather(1, ids[1:, None])[max(row.prompt, 1) - 1 :, 0])
    return said


@pytest.mark.parametrize("family", others.CONFIGS)
def test_a_pack_is_its_rows(checkpoints: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped queries, tied embeddings, a sliding window shorter than a row: nats and gradients of every parameter in
    float64, to 1e-9 of the largest."""
    monkeypatch.setitem(losses.LOGITS, "cpu", 1 << 10)  # several shares of the logits
    rows, peer = encoded(), load(checkpoints[family], "sdpa")
    weights = [0.5, 1.0, 2.0, 0.25, 3.0, 1.0]
    theirs = alone(peer, rows)
    sum(weight * nats.sum() for weight, nats in zip(weights, theirs, strict=True)).backward()  # type: ignore[union-attr]
    ours = losses.ByToken(load(checkpoints[family], attention.PACKED))
    batch = batches.collate(rows, np.array([weights]), 0)
    nats = ours(**batch.inputs)
    (batch.weights @ nats).sum().backward()
    torch.testing.assert_close(nats, torch.cat(theirs), rtol=1e-9, atol=1e-9)
    for (name, mine), other in zip(ours.named_parameters(), peer.parameters(), strict=True):
        largest = other.grad.abs().max().item()
        assert (mine.grad - other.grad).abs().max().item() <= 1e-9 * max(largest, 1e-9), name


def test_attention_that_is_not_the_plain_one_is_refused() -> None:
    """Rows that would see each other, or be scored by another formula, are not trained on in silence."""
    module, states = torch.nn.Identity(), torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="softcap"):
        attention.packed(module, states, states, states, None, softcap=50.0)
    with pytest.raises(ValueError, match="one sequence of rows"):
        attention.packed(module, *[torch.zeros(2, 2, 3, 4)] * 3, None)
    with pytest.raises(ValueError, match="Identity cannot be trained"):
        attention.check(module)


@pytest.mark.parametrize("window", [None, 30])
def test_rows_in_bf16_short_and_long(window: int | None) -> None:
    """Those up to attention.SHORT are worked out in fp32 on a CPU: output and gradients are bf16 all the same, within
    1 % by norm of float64's (8 bits of mantissa)."""
    torch.manual_seed(0)
    sizes = [40, attention.SHORT + 100]
    exact = [torch.randn(1, heads, sum(sizes), 16, dtype=torch.double, requires_grad=True) for heads in (4, 2, 2)]
    half = [states.detach().bfloat16().requires_grad_() for states in exact]
    starts = torch.tensor([0, 40, sum(sizes)], dtype=torch.int32)
    made = [
        attention.packed(
            torch.nn.Identity(), *some, None, sliding_window=window, cu_seq_lens_q=starts, max_length_q=sizes[1]
        )[0]
        for some in (exact, half)
    ]
    for out in made:
        (out * torch.linspace(-1, 1, out.shape[1])[:, None, None]).sum().backward()
    pairs = [(made[0], made[1]), *((a.grad, b.grad) for a, b in zip(exact, half, strict=True))]
    for wanted, seen in pairs:
        assert wanted is not None and seen is not None and seen.dtype == torch.bfloat16
        assert (seen.double() - wanted).norm() < 1e-2 * wanted.norm()
