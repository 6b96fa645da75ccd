"""What instruction-following pruning trains: a causal model whose FFN units are chosen by the prompt, and what chooses.

Predictor and model learn together (arXiv 2501.02086, section 3): scores z of the prompt, m = λ(z) ⊙ Top(λ(z), t) on the
units of every block, the loss on the answer. The gradient of that loss says nothing of units that are off, so training
starts from the whole model: width and temperature fall over its first part (`Annealing`), and meanwhile the scores are
drawn towards what the units of each row do (`guidance`), which a forward pass of the whole FFN shows anyway.
"""

import math
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines import masks, units
from pipelines.student import Ifp
from pipelines.training.losses import ByToken
from serving.predictor import Predictor


class Annealing(NamedTuple):
    """Units that stay on, temperature, and the share of annealing that lies ahead."""

    units: int
    temperature: float
    ahead: float

    @classmethod
    def at(cls, done: float, how: Ifp, width: int) -> "Annealing":
        """After the share `done` of training, for blocks of `width` units: both fall geometrically, so that the last
        units go as slowly as the first, by their share."""
        ahead = max(0.0, 1 - done / how.anneal) if how.anneal else 0.0
        hot, cold = how.temperature
        there = how.units * (width / how.units) ** ahead
        return cls(max(how.units, round(there)), cold * (hot / cold) ** ahead, ahead)


class Static(nn.Module):
    """The same scores for every prompt, (blocks, width): learned, or as they are (`fixed`: then λ is 1)."""

    def __init__(self, scores: Tensor, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        self.scores = nn.Parameter(scores.clone(), requires_grad=not fixed)

    def forward(self) -> Tensor:
        """(1, blocks, width); a copy, since what is gathered of shards goes when this is done."""
        return self.scores[None].clone()


class Masked(ByToken):
    """A causal model under the masks that `chooser` makes: losses of target tokens as losses.ByToken returns them.

    Beside what ByToken takes, it is called with what batches.collate makes of rows that say what the predictor reads:
    `read_ids` (1, S), the prompts of N masks one behind the other, `read_cu` (N + 1) where each begins, `read_shares`
    (N), the share that each has in the step's loss, and `mask_rows` (T), which mask each position takes. In eval mode
    the mask is as narrow and as cold as at the end of training."""

    def __init__(self, model: Any, chooser: Predictor | Static, how: Ifp) -> None:
        super().__init__(model)
        self.chooser, self.how = chooser, how
        self.blocks, self.width = units.check(model)
        self.annealing = Annealing.at(0.0, how, self.width)
        self._held = ExitStack()  # masks stay on until the backward pass, which may run blocks again, is over
        self._seen: list[Tensor] = []
        self._used: Tensor | None = None
        self._guided = 0.0

    def begin(self, done: float) -> None:
        """See losses.ByToken."""
        self.annealing = Annealing.at(done, self.how, self.width)

    def precise(self) -> list[nn.Module]:
        """See losses.ByToken: scores in bf16 would tie."""
        return [self.chooser] if isinstance(self.chooser, Static) else [self.chooser.down, self.chooser.up]

    def train(self, mode: bool = True) -> "Masked":
        """As of any module; the masks of the last forward pass are taken off, so that `model` is whole again."""
        self._held.close()
        super().train(mode)
        return self

    def forward(self, input_ids: Tensor, labels: Tensor, **packed: Any) -> Tensor:
        """See the class."""
        self._held.close()
        at = self.annealing if self.training else Annealing.at(1.0, self.how, self.width)
        shares, scores, rows = self._scores(input_ids, packed)
        fixed = isinstance(self.chooser, Static) and self.chooser.fixed
        made = units.top(scores.detach(), at.units) if fixed else masks.mask(scores, at.units, at.temperature)
        self._count(made, shares)
        guided = self.training and not fixed and shares is not None
        guide = self.how.guidance * at.ahead if guided else 0.0
        if guide:
            self._watch(rows, len(scores))
        self._held.enter_context(units.masked(self.model, made.transpose(0, 1), rows))
        nats = super().forward(input_ids, labels, **packed)
        if not guide:
            return nats
        assert shares is not None
        loss = self._guidance(scores, shares)
        self._guided += float(loss.detach())
        return _Beside.apply(nats, loss * guide)

    def figures(self) -> dict[str, float]:
        """Of the masks of training since the last call, over all ranks: `units` and `temperature`, `guidance` (mean
        squared error of the scores), and where prompts choose, `mask_overlap`, the mean share of units that two prompts
        have in common (masks.overlap; not while all are on), and `mask_variance`, of a unit over prompts, as a share of
        the most there can be. Every rank calls it after the same steps, with or without rows in them."""
        used, guided = self._used, self._guided
        self._used, self._guided = None, 0.0
        told = {"units": float(self.annealing.units), "temperature": self.annealing.temperature}
        if isinstance(self.chooser, Static):
            return told
        if used is None:  # a rank without a row in this step, whom the others wait for all the same
            used = torch.zeros(self.blocks * self.width + 1, device=next(self.parameters()).device)
        sums = torch.cat([used.double(), torch.tensor([guided], device=used.device)])
        if dist.is_initialized():
            dist.all_reduce(sums)
        counts, number = sums[:-2].view(self.blocks, self.width), float(sums[-2])
        if not number:
            return told
        told["guidance"] = float(sums[-1])
        often, on = counts / number, self.annealing.units
        if number > 1 and on < self.width:
            told["mask_overlap"] = float(masks.paired(often, on, number).mean())
        told["mask_variance"] = masks.variance(often, on)
        return told

    def _scores(self, input_ids: Tensor, packed: dict[str, Any]) -> tuple[Tensor | None, Tensor, Tensor]:
        """Shares of the masks (none where no row says what is read: a pass of padding), their scores, and which mask
        each position takes."""
        given = {name: packed.pop(name, None) for name in ("read_ids", "read_cu", "read_shares", "mask_rows")}
        shares, ids, cu = given["read_shares"], given["read_ids"], given["read_cu"]
        none = torch.zeros(input_ids.shape[1], dtype=torch.long, device=input_ids.device)
        rows = none if given["mask_rows"] is None else given["mask_rows"]
        if isinstance(self.chooser, Static):
            return shares, self.chooser(), none
        if ids is None:  # a token that every vocabulary has: padding is the large model's
            ids = torch.zeros_like(input_ids[:, :1])
            cu = torch.tensor([0, 1], dtype=torch.int32, device=ids.device)
        sizes = cu.diff()
        positions = torch.cat([torch.arange(size, device=ids.device) for size in sizes.tolist()])[None]
        last = cu[1:].long() - 1
        inputs = {"input_ids": ids, "position_ids": positions, "cu_seq_lens_q": cu, "max_length_q": int(sizes.max())}
        return shares, self.chooser(torch.zeros_like(last), last, **inputs), rows

    def _count(self, made: Tensor, shares: Tensor | None) -> None:
        if shares is None or not self.training:
            return
        counts = torch.cat([(made.detach() != 0).sum(0).flatten(), torch.tensor([len(made)], device=made.device)])
        self._used = counts if self._used is None else self._used + counts

    def _watch(self, rows: Tensor, number: int) -> None:
        """Have the next forward pass note what every unit adds to each row's residual stream: the sum over its tokens
        of |a_j|·‖w_j‖ (units.activation_importance). Before the masks' own hooks, so that units that are off count."""
        self._seen = [torch.empty(0)] * self.blocks

        def entering(layer: int, module: Any, args: tuple[Tensor, ...]) -> None:
            activations = args[0].detach()[0].abs().float()
            norms = getattr(module, "base_layer", module).weight.detach().float().norm(dim=0)
            sums = torch.zeros(number, self.width, device=activations.device)
            self._seen[layer] = sums.index_add_(0, rows.to(sums.device), activations) * norms

        for layer, down in enumerate(units.down_projections(self.model)):
            self._held.callback(down.register_forward_pre_hook(partial(entering, layer)).remove)

    def _guidance(self, scores: Tensor, shares: Tensor) -> Tensor:
        """The mean squared difference of scores and log-importance, the latter of mean 0 and variance 1 in each block
        of each row, weighed by the rows' shares in the loss."""
        wanted = standardised(torch.stack(self._seen, 1).to(scores))
        of = shares if len(scores) == len(shares) else shares.sum()[None]
        return ((scores - wanted).square().mean((1, 2)) * of.to(scores)).sum()


class _Beside(torch.autograd.Function):
    """`nats` as they are; in the backward pass `loss` gets the gradient 1, whatever becomes of `nats`: a second loss
    beside one that its caller weighs."""

    @staticmethod
    def forward(ctx: Any, nats: Tensor, loss: Tensor) -> Tensor:
        """`nats`."""
        ctx.save_for_backward(loss)
        return nats.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of `nats`, and 1."""
        return gradients[0], torch.ones_like(ctx.saved_tensors[0])


def standardised(importance: Tensor) -> Tensor:
    """log of importance (…, d), less its mean and over its standard deviation along the last dimension: how scores
    begin. Units that do nothing count as the least that does something."""
    least = torch.where(importance > 0, importance, math.inf).amin(-1, keepdim=True)
    log = torch.where(
        least.isfinite(), importance.clamp(min=torch.finfo(importance.dtype).tiny).maximum(least), 1
    ).log()
    return (log - log.mean(-1, keepdim=True)) / log.std(-1, keepdim=True).clamp(min=1e-6)
