"""Which rows a global step holds, and which of them each rank packs together. Pure.

All of it follows from lengths and seed. A step's rows do not depend on the number of workers, so that one worker and
four see the same losses, and a run that is taken up again, by any number of workers, goes on with the step it was at.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence

ByRow = Sequence[int] | Mapping[int, int]  # tokens by row
OPEN = 4096  # bins that are looked at; with more, those with the least room are closed


def best_fit(items: Iterable[int], lengths: ByRow, room: int) -> list[list[int]]:
    """`items` in bins of at most `room` tokens, each put where the least room is left that holds it; an item longer
    than that gets a bin of its own. `lengths`: tokens by item."""
    bins: list[list[int]] = []
    open_: list[tuple[int, int]] = []  # (room left, bin), ascending
    for item in items:
        at = bisect_left(open_, (lengths[item], -1))
        if at < len(open_):
            left, number = open_.pop(at)
            bins[number].append(item)
        else:
            left, number = room, len(bins)
            bins.append([item])
        if left > lengths[item]:
            insort(open_, (left - lengths[item], number))
            del open_[: max(0, len(open_) - OPEN)]
    return bins


def global_steps(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], tokens: int, epochs: float, seed: int
) -> list[list[int]]:
    """The rows of every global step, at most `tokens` tokens of them. Rows of one group stay in one step. Each epoch
    is ordered anew; the last may be a part of one (`epochs` = 1.5: every row once, then half of the steps of another
    order)."""
    sizes = [sum(lengths[row] for row in group) for group in groups]
    steps: list[list[int]] = []
    epoch = 0
    while epochs - epoch > 1e-9:
        rng = random.Random(f"{seed}/{epoch}")
        bins = best_fit(rng.sample(range(len(groups)), len(groups)), sizes, tokens)
        rng.shuffle(bins)
        kept = bins[: round(min(1.0, epochs - epoch) * len(bins)) or int(not steps)]  # at least a step in all
        steps += [[row for group in found for row in groups[group]] for found in kept]
        epoch += 1
    return steps


def shared(rows: Sequence[int], lengths: ByRow, room: int, rank: int, ranks: int) -> list[list[int]]:
    """The packs of `rank` for the global step that holds `rows`, each at most `room` tokens.

    The longest row goes to the rank with the fewest tokens, then the next: all have about as many. Every rank gets
    the same number of packs, since the collectives of a forward pass must match: where rows run out a pack is empty
    (batches.collate makes it one row without loss)."""
    given: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        least = tokens.index(min(tokens))
        given[least].append(row)
        tokens[least] += lengths[row]
    packs = [best_fit(some, lengths, room) for some in given]
    most = max(map(len, packs))
    return packs[rank] + [[] for _ in range(most - len(packs[rank]))]


def bucketed(lengths: Sequence[int], tokens: int, rng: random.Random) -> list[list[int]]:
    """Rows in batches of like length, each at most `tokens` tokens once padded: for forward passes that cannot pack.

    A row longer than `tokens` gets a batch of its own. Ties and the order of the batches are shuffled by `rng`."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], rng.random()))
    batches: list[list[int]] = []
    for row in order:  # ascending: the newest row is the longest of its batch
        if batches and (len(batches[-1]) + 1) * lengths[row] <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    rng.shuffle(batches)
    return batches
