"""Instruction-following pruning in training against the formulas of arXiv 2501.02086 written out, in float64."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModel

from pipelines import masks, units
from pipelines.student import Ifp, Student
from pipelines.training import attention, batches, feed, loading, loop, losses, optimizers, parallel
from pipelines.training.batches import Encoded
from pipelines.training.masked import Annealing, Masked, Static, standardised
from serving.predictor import About, Predictor
from tests import ranks
from tests.parity import test_units
from tests.parity.test_units import BLOCKS, WIDTH, build, close

HOW = Ifp(units=6, temperature=(1.0, 0.3), anneal=0.5, guidance=0.7)
ROWS = [  # ids, prompt tokens, what the predictor reads
    Encoded([3, 5, 7, 9, 11, 2], 3, [[3, 5, 7]]),
    Encoded([4, 4, 8, 1], 1, [[4]]),
    Encoded([20, 21, 22, 23, 24, 25, 26, 2], 5, [[20, 21, 22, 23, 24]]),
]
DOCUMENT = Encoded(list(range(10, 21)), 3, [[10, 11, 12], [13, 14, 15], [16, 17, 18]])  # 11 tokens in chunks of 3


def predictor(seed: int = 1) -> Predictor:
    """A small one in float64, whose maps are not zero."""
    lm = AutoModel.from_config(build("llama").config, dtype=torch.float64, attn_implementation=attention.PACKED)
    torch.manual_seed(seed)
    made = Predictor(lm, About(BLOCKS, WIDTH, HOW.units, HOW.temperature[1])).double()
    torch.nn.init.normal_(made.up.weight, std=0.5)
    return made


def masked(family: str = "llama", how: Ifp = HOW, chooser: Any = None) -> Masked:
    """A model and a predictor in training, half annealed."""
    made = Masked(build(family, how=attention.PACKED), chooser or predictor(), how).train()
    made.begin(0.25)
    return made


def batch(rows: list[Encoded], shares: list[float] | None = None) -> batches.Batch:
    """One pack; by default every target token weighs the same."""
    weights = np.array([[1.0] * len(rows) if shares is None else shares])
    return batches.collate(rows, weights, 0)


def scores_of(made: Predictor, read: list[int]) -> Tensor:
    """z (L, d): the state of the prompt's last token, then two linear maps (section 3.1), alone and unpacked."""
    state = made.lm(input_ids=torch.tensor([read]), use_cache=False)[0][0, -1]
    return (made.up.weight @ (made.down.weight @ state + made.down.bias) + made.up.bias).view(BLOCKS, WIDTH)


def by_hand(model: Any, row: Encoded, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
    """test_units.by_hand of one row, with attention that takes a mask."""
    model.set_attn_implementation("sdpa")
    try:
        return test_units.by_hand(model, torch.tensor([row.ids]), mask[:, None])
    finally:
        model.set_attn_implementation(attention.PACKED)


def nats_of(model: Any, row: Encoded, mask: Tensor) -> Tensor:
    """Minus the log-probability of every target of a row under mask (L, 1 or T, d) on its positions."""
    logits = by_hand(model, row, mask)[0][0]
    logs = logits.log_softmax(-1)
    return torch.stack([-logs[at - 1, row.ids[at]] for at in range(max(row.prompt, 1), len(row.ids))])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_mask_of_each_row_is_that_of_its_prompt(family: str) -> None:
    made, at = masked(family), Annealing.at(0.25, HOW, WIDTH)
    found = made(**batch(ROWS).inputs)
    own = [masks.mask(scores_of(made.chooser, row.reads[0]), at.units, at.temperature) for row in ROWS]  # type: ignore[arg-type]
    made._held.close()
    theirs = torch.cat([nats_of(made.model, row, one[:, None]) for row, one in zip(ROWS, own, strict=True)])
    close(found, theirs, 1e-9)
    assert len({masks.mask_hash(one != 0) for one in own}) == 3, "prompts differ in their units, or this shows nothing"


def test_each_chunk_chooses_the_units_for_the_next() -> None:
    """Section 3.2, one pass: the position that predicts x_i, x_i in chunk k + 1, runs under the mask of chunk k; the
    first chunk has no loss."""
    made, at = masked(), Annealing.at(0.25, HOW, WIDTH)
    found = made(**batch([ROWS[0], DOCUMENT]).inputs)
    made._held.close()
    own = [masks.mask(scores_of(made.chooser, read), at.units, at.temperature) for read in DOCUMENT.reads]  # type: ignore[arg-type]
    chosen_by = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]  # position 2 predicts token 3, of the second chunk
    mask = torch.stack([own[k] for k in chosen_by], 1)
    close(found[3:], nats_of(made.model, DOCUMENT, mask), 1e-9)
    assert len(found) == 3 + 8


def test_gradients_reach_model_and_predictor() -> None:
    """The whole loss, weighed rows and guidance: against autograd of the formulas."""
    shares = [0.05, 0.2, 0.1]
    made, at = masked(), Annealing.at(0.25, HOW, WIDTH)
    given = batch(ROWS, shares)
    loss = given.weights @ made(**given.inputs)
    loss.sum().backward()
    mine = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    made._held.close()
    told = made.figures()
    whole, guided = torch.zeros((), dtype=torch.double), torch.zeros((), dtype=torch.double)
    for row, share in zip(ROWS, shares, strict=True):
        z = scores_of(made.chooser, row.reads[0])  # type: ignore[arg-type]
        mask = masks.mask(z, at.units, at.temperature)
        whole = whole + share * nats_of(made.model, row, mask[:, None]).sum()
        with torch.no_grad():
            activations = by_hand(made.model, row, mask[:, None])[1]
            wanted = np.stack([importance(made.model, a[0], i) for i, a in enumerate(activations)])
        targets = len(row.ids) - row.prompt
        guided = guided + share * targets * (z - torch.from_numpy(wanted)).square().mean()
    (whole + HOW.guidance * 0.5 * guided).backward()
    close(loss.sum().detach(), whole.detach(), 1e-9)
    assert told["guidance"] == pytest.approx(float(guided.detach()), rel=1e-5), "importance is summed in fp32"
    for name, p in made.named_parameters():
        if p.grad is not None:
            assert (mine[name] - p.grad).norm() <= 1e-5 * p.grad.norm() + 1e-12, name
    assert {name.split(".")[0] for name in mine} == {"model", "chooser"}


def importance(model: Any, activations: Tensor, block: int) -> np.ndarray:
    """log Σ_tokens |a_j| ‖w_j‖ over units, of mean 0 and variance 1, in numpy."""
    weight = units.down_projections(model)[block].weight.detach().numpy()
    each = np.log(np.abs(activations.numpy()).sum(0) * np.linalg.norm(weight, axis=0))
    return (each - each.mean()) / each.std(ddof=1)


def test_without_guidance_the_loss_is_the_papers_alone() -> None:
    plain = masked(how=HOW.model_copy(update={"guidance": 0.0}))
    given = batch(ROWS)
    (given.weights @ plain(**given.inputs)).sum().backward()
    at, made = Annealing.at(0.25, HOW, WIDTH), plain.chooser
    mine = made.up.weight.grad.clone()  # type: ignore[union-attr]
    plain.zero_grad()
    plain._held.close()
    for row in ROWS:
        mask = masks.mask(scores_of(made, row.reads[0]), at.units, at.temperature)  # type: ignore[arg-type]
        nats_of(plain.model, row, mask[:, None]).sum().backward()
    close(mine, made.up.weight.grad, 1e-9)  # type: ignore[union-attr]


def test_width_and_temperature_fall_by_equal_shares() -> None:
    at = [Annealing.at(done, HOW, WIDTH) for done in (0.0, 0.25, 0.5, 1.0)]
    assert [one.units for one in at] == [20, round(math.sqrt(20 * 6)), 6, 6]
    assert [one.temperature for one in at] == pytest.approx([1.0, math.sqrt(0.3), 0.3, 0.3])
    assert [one.ahead for one in at] == [1.0, 0.5, 0.0, 0.0]
    hard = Annealing.at(0.0, HOW.model_copy(update={"anneal": 0.0}), WIDTH)
    assert hard == (6, pytest.approx(0.3), 0.0), "narrow at once"


def test_training_begins_as_the_whole_model_and_is_judged_as_narrow() -> None:
    made, given = masked(), batch(ROWS)
    made.begin(0.0)
    close(made(**given.inputs), losses.ByToken(made.model)(**packed(given)), 1e-12)
    made.eval()
    narrow = made(**given.inputs)
    made.train()
    made.begin(1.0)
    close(narrow, made(**given.inputs), 1e-12)
    made._held.close()


def packed(given: batches.Batch) -> dict[str, Any]:
    return {name: value for name, value in given.inputs.items() if "read" not in name and name != "mask_rows"}


@pytest.mark.parametrize("fixed", [False, True])
def test_one_mask_for_all(fixed: bool) -> None:
    scores = torch.randn(BLOCKS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    made, at = masked(chooser=Static(scores, fixed)), Annealing.at(0.25, HOW, WIDTH)
    found = made(**batch(ROWS).inputs)
    made._held.close()
    mask = units.top(scores, at.units) if fixed else masks.mask(scores, at.units, at.temperature)
    close(found, torch.cat([nats_of(made.model, row, mask[:, None]) for row in ROWS]), 1e-9)
    assert made.figures() == {"units": at.units, "temperature": at.temperature}
    found.sum().backward()
    assert (made.chooser.scores.grad is None) == fixed  # type: ignore[union-attr]


def test_figures_are_those_of_all_pairs() -> None:
    made, at = masked(), Annealing.at(0.25, HOW, WIDTH)
    for rows in (ROWS[:2], ROWS[2:]):
        made(**batch(rows).inputs)
    made._held.close()
    told = made.figures()
    kept = [(masks.mask(scores_of(made.chooser, row.reads[0]), at.units, 1.0) != 0).numpy() for row in ROWS]  # type: ignore[arg-type]
    pairs = [(a & b).sum(-1).mean() / at.units for i, a in enumerate(kept) for b in kept[:i]]
    assert told["mask_overlap"] == pytest.approx(np.mean(pairs))
    share = at.units / WIDTH
    assert told["mask_variance"] == pytest.approx(np.stack(kept).astype(float).var(0).mean() / (share * (1 - share)))
    assert "mask_overlap" not in made.figures(), "counted anew"


def test_sharded_and_checkpointed() -> None:
    """FSDP2 over one rank with activation checkpointing, whose backward pass runs blocks under their masks again."""
    plain = masked()
    given = batch(ROWS)
    wanted = gradients(plain, given)
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    try:
        other = masked()
        made = parallel.parallelize(other, parallel.mesh("cpu", 1), activation_checkpointing=True)  # type: ignore[arg-type]
        made.begin(0.25)
        found = gradients(made, given)
    finally:
        dist.destroy_process_group()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-9 * gradient.norm() + 1e-12, name


@pytest.mark.parametrize("kind", ["prompt", "static"])
def test_scores_stay_in_fp32_where_all_else_is_bf16(kind: str) -> None:
    """Sharded as for a GPU: what is trained is what is exported, and scores do not tie."""
    static = Static(torch.randn(BLOCKS, WIDTH, generator=torch.Generator().manual_seed(3)), False)
    made = masked(chooser=static if kind == "static" else None).float()
    whole, given, seen = static.scores.detach().clone()[None], batch(ROWS), []
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    try:
        for part in made.precise():
            fully_shard(part, mp_policy=MixedPrecisionPolicy())
        fully_shard(made, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
        made.chooser.register_forward_hook(lambda module, given, scores: seen.append(scores))
        found = gradients(made, given._replace(weights=given.weights.float()))
    finally:
        dist.destroy_process_group()
    assert seen[0].dtype == torch.float32 and (kind == "prompt" or torch.equal(seen[0], whole))
    learned = found["chooser.scores" if kind == "static" else "chooser.up.bias"]
    assert learned.any() and learned.isfinite().all()


def stepped(made: Any, rank: int = 0, of: int = 1) -> list[Any]:
    """Loss, gradient's norm and figures of each of three steps over all rows; padding is no token of the predictor."""
    student = Student(name="ifp", ifp=HOW, batch_tokens=64, micro_tokens=64, epochs=3)
    optimizer = optimizers.adamw(made, 1e-2, 0.0, {"chooser.": 2e-2})
    _, planned = feed.steps(batches.flat(ROWS), student, 0, 40, 0, rank, of)
    found = [[s.loss, s.grad_norm, made.figures()] for s in loop.steps(made, optimizer, planned, "cosine", 1e-2)]
    assert len(found) == 3 and found[0][2]["guidance"] > 0 and found[0][2]["mask_overlap"] > 0
    return found


def narrow_minded() -> Masked:
    """One whose predictor has fewer tokens than the model."""
    made = masked()
    torch.manual_seed(2)
    made.chooser.lm.set_input_embeddings(torch.nn.Embedding(30, 16, dtype=torch.float64))  # type: ignore[union-attr]
    return made


def on_rank(rank: int, of: int, folder: Path) -> None:
    """`stepped` over ranks, of which the fourth has no row."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{of}", rank=rank, world_size=of)
    made = parallel.parallelize(narrow_minded(), parallel.mesh("cpu", of))
    (folder / f"{of}-{rank}.json").write_text(json.dumps(stepped(made, rank, of)))
    dist.destroy_process_group()


def test_over_ranks_of_which_one_has_no_row(tmp_path: Path) -> None:
    """Losses, gradients of guidance too, and figures are those of one process, on every rank alike."""
    ranks.run(on_rank, (4,), tmp_path, 900)
    for loss, norm, told in (wanted := stepped(narrow_minded())):
        assert math.isfinite(loss + norm + told["mask_variance"])
    for rank in range(4):
        found = json.loads((tmp_path / f"4-{rank}.json").read_text())
        for (loss, norm, told), (mine, my_norm, my_told) in zip(found, wanted, strict=True):
            assert (loss, norm) == pytest.approx((mine, my_norm), rel=1e-5) and told == pytest.approx(my_told, rel=1e-5)


def test_figures_are_of_training_alone() -> None:
    made, given = masked(), batch(ROWS)
    made(**given.inputs)
    told = made.figures()
    loop.validate(made, [given])
    made(**given.inputs)
    made._held.close()
    assert made.figures() == told and made.figures().keys() == {"units", "temperature"}, "and then of no row"
    made.begin(0.0)
    made(**given.inputs)
    made._held.close()
    assert "mask_overlap" not in made.figures(), "all units are on: that is no collapse"


def gradients(made: Any, given: batches.Batch) -> dict[str, Tensor]:
    (given.weights @ made(**given.inputs)).sum().backward()
    whole = {parallel.unwrapped(name): p.grad for name, p in made.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in whole.items()}


def test_lora_with_a_predictor() -> None:
    student = Student(name="ifp", lora_rank=2, ifp=HOW)
    made = Masked(loading.adapted(build("llama", how=attention.PACKED), student, 0), predictor(), HOW).train()
    made.begin(0.25)
    whole = masked()
    close(made(**batch(ROWS).inputs), whole(**batch(ROWS).inputs), 1e-12)  # adapters begin at zero


def test_micro_batches_change_nothing() -> None:
    """Packs of any size: the same losses, gradients of guidance too."""
    rows = batches.flat(ROWS + ROWS[::-1])
    found = []
    for room in (8, 1000):
        student = Student(name="ifp", ifp=HOW, batch_tokens=64, micro_tokens=64).model_copy(
            update={"micro_tokens": room}
        )
        made = masked()
        optimizer = optimizers.adamw(made, 1e-2, 0.0, {"chooser.": 2e-2})
        found.append(
            [step.loss for step in loop.steps(made, optimizer, feed.steps(rows, student, 0, 0)[1], "cosine", 1e-2)]
        )
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_the_predictor_has_a_rate_of_its_own() -> None:
    made = masked()
    optimizer = optimizers.adamw(made, 1e-3, 0.1, {"chooser.": 4e-3})
    groups = {(group.get("scale", 1.0), group["weight_decay"]): group["params"] for group in optimizer.param_groups}
    assert sum(map(len, groups.values())) == len(list(made.parameters()))
    own = {id(p) for scale, _ in groups if scale == 4 for p in groups[scale, _]}
    assert own == {id(p) for p in made.chooser.parameters()}


def test_log_importance_of_units_that_do_nothing() -> None:
    given = torch.tensor([[1.0, math.e, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    made = standardised(given)
    assert made[0, 0] == made[0, 2] < made[0, 1] and made.isfinite().all() and not made[1].any()
    assert standardised(torch.rand(4, 50)).std(-1) == pytest.approx(torch.ones(4).tolist())
