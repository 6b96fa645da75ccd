"""The tables and the picture of the sweep of instruction-following pruning, from its trainings."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.reporting import recovery

Items = list[dict[str, Any]]
SINGLE = ("static", "joint")  # one mask for all
GAPS = "| units | unpruned - best single | ifp - best single | ifp - GRIFFIN | ifp - static | ifp - joint |"
USES = (
    ("task", "--", "a mask a task"),
    ("described", "-.", "mask of a description"),
    ("other", ":", "another prompt's mask"),
)
COLOURS = {"ifp": "#30638e", "joint": "#edae49", "static": "#d1495b", "random": "#888888", "scratch": "#6a994e"}


class Told(NamedTuple):
    """`lines` to print; `arms`: width → arm → interval; `subnetworks`: of the main width, way of use → interval; and
    the two averages of the claim."""

    lines: list[str]
    arms: dict[int, dict[str, recovery.Interval]]
    whole: recovery.Interval
    uses: dict[str, recovery.Interval]
    ours: float
    peer: float


def mean(found: dict[str, str]) -> float:
    """The average over families of the share of right items."""
    return sum(items.count("1") / len(items) for items in found.values()) / len(found)


def pooled(runs: Sequence[dict[str, str]]) -> Items:
    """Items with their score averaged over seeds, as `recovery` takes them."""
    return [
        {"task": family, "id": str(i), "correct": sum(run[family][i] == "1" for run in runs) / len(runs)}
        for family in runs[0]
        for i in range(len(runs[0][family]))
    ]


def table(rows: list[dict[str, Any]], main: int) -> Told:
    """The tables of what is in `rows`, trainings in the same way: of every width, and of the ways to use the masks at
    `main`."""
    runs: dict[tuple[int, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        for name, found in row["scores"].items():
            arm = row["arm"] if name == "input" else f"{row['arm']} {name.partition('-')[0]}"
            runs[int(name.partition("-")[2] or row["units"]), arm].append(found)
    items = {key: pooled(found) for key, found in runs.items()}
    widths = sorted({t for t, _ in items if t})
    lines, arms = [], {}
    for t in widths:
        arms[t] = {arm: recovery.interval(found) for (at, arm), found in items.items() if at == t}
        lines += ["", *_arms(t, {arm: found for (at, arm), found in runs.items() if at in (t, 0)})]
    lines += ["", GAPS, "|" + "---|" * 6, *(_gaps(t, items) for t in widths if (t, "ifp") in items)]
    uses = {arm.partition(" ")[2]: found for arm, found in arms.get(main, {}).items() if arm.startswith("ifp ")}
    both = arms.get(main, {})
    peer = max((both[arm].value or 0.0 for arm in SINGLE if arm in both), default=0.0)
    ours = both["ifp"].value or 0.0 if "ifp" in both else 0.0
    whole = recovery.interval(items[0, "whole"]) if (0, "whole") in items else recovery.NOTHING
    return Told(lines, arms, whole, uses, ours, peer or 1.0)


def singles(rows: list[dict[str, Any]]) -> list[str]:
    """A table of single trainings."""
    head = ["", "| also | units | rows a family | rate | seed | % right | two prompts share |", "|" + "---|" * 7]
    return head + [_also(row) for row in rows]


def per_cent(found: recovery.Interval, sign: str = "") -> str:
    """`12.3 (11.0 to 13.5)`."""
    value, low, high = (format(100 * (end or 0.0), f"{sign}.1f") for end in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"


def _arms(t: int, runs: dict[str, list[dict[str, str]]]) -> list[str]:
    families = list(next(iter(runs.values()))[0])
    head = f"| {t} units | seeds | % right | lowest, highest seed | " + " | ".join(families) + " |"
    lines = [head, "|" + "---|" * (4 + len(families))]
    for arm, found in sorted(runs.items(), key=lambda one: -sum(map(mean, one[1])) / len(one[1])):
        by_family = [100 * mean({f: "".join(run[f] for run in found)}) for f in families]
        seeds = [100 * mean(run) for run in found]
        cells = [
            arm,
            str(len(found)),
            per_cent(recovery.interval(pooled(found))),
            f"{min(seeds):.1f}, {max(seeds):.1f}",
        ]
        lines.append("| " + " | ".join([*cells, *(f"{value:.0f}" for value in by_family)]) + " |")
    return lines


def _gaps(t: int, items: dict[tuple[int, str], Items]) -> str:
    def gap(a: Items | None, b: Items | None) -> str:
        return per_cent(recovery.difference(a, b), "+") if a and b else "–"

    ours, single = items[t, "ifp"], [items[t, arm] for arm in SINGLE if (t, arm) in items]
    best = max(single, key=lambda found: recovery.average(found) or 0.0, default=None)
    griffins = [items[key] for key in ((t, "whole griffin"), (t, "teacher griffin")) if key in items]
    griffin = max(griffins, key=lambda found: recovery.average(found) or 0.0, default=None)
    gaps = [gap(items.get((0, "whole")), best), gap(ours, best), gap(ours, griffin)]
    return f"| {t} | " + " | ".join([*gaps, *(gap(ours, items.get((t, arm))) for arm in SINGLE)]) + " |"


def _also(row: dict[str, Any]) -> str:
    name = " ".join(filter(None, (row["arm"], row["variant"])))
    shared = row["masks"]["all"] if "masks" in row else []
    told = f"{sum(shared) / len(shared):.2f}" if shared else "–"
    cells = [name, row["units"], row["rows"], f"{row['rate']:g}", row["seed"]]
    return f"| {' | '.join(map(str, cells))} | {100 * mean(row['scores']['input']):.1f} | {told} |"


def draw(told: Told, alone: Told, to: Path) -> None:
    """Right answers over the width, an arm a line, where all weights are trained and where FFNs alone are; and over the
    number of sub-networks."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "regrow", "svg.fonttype": "none"}):
        figure = Figure(figsize=(14, 4.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for panel, one, title in ((left, told, "all weights trained"), (middle, alone, "FFNs alone trained")):
            for arm, colour in COLOURS.items():
                _line(panel, {t: found[arm] for t, found in one.arms.items() if arm in found}, colour, arm)
            panel.set(xlabel="FFN units of 512 that stay on", xscale="log", ylim=(-2, 102), title=title)
            widths = [t for t, found in one.arms.items() if "ifp" in found]
            panel.set_xticks(widths, [str(t) for t in widths])
            panel.minorticks_off()
        left.set(ylabel="% right")
        k = {int(name[1:]): found for name, found in told.uses.items() if name[1:].isdigit()}
        _line(right, k, COLOURS["ifp"], "nearest of K sub-networks")
        for name, dash, label in USES:
            if name in told.uses:
                right.axhline(100 * (told.uses[name].value or 0), color=COLOURS["ifp"], linestyle=dash, label=label)
        right.axhline(100 * told.ours, color=COLOURS["ifp"], label="a mask a prompt", linewidth=1)
        right.axhline(100 * told.peer, color=COLOURS["static"], label="best single mask", linewidth=1)
        right.set(xlabel="sub-networks K", xscale="log", ylim=(-2, 102))
        right.set_xticks(list(k), [str(one) for one in k])
        right.minorticks_off()
        for panel in (left, middle, right):
            if told.whole.value:
                panel.axhline(100 * told.whole.value, color="black", linestyle="-.", linewidth=1, label="unpruned")
            panel.grid(alpha=0.3)
            panel.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.18))
        figure.savefig(to, metadata={"Date": None})


def _line(panel: Any, some: dict[int, recovery.Interval], colour: str, label: str) -> None:
    if not some:
        return
    x = sorted(some)
    ends = [[100 * (getattr(some[t], end) or 0.0) for t in x] for end in ("value", "low", "high")]
    panel.plot(x, ends[0], marker="o", color=colour, label=label)
    panel.fill_between(x, ends[1], ends[2], color=colour, alpha=0.15)
