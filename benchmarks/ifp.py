"""Does a mask for each prompt beat the best single one where width is scarce? A resumable sweep on the tiny teacher.

    python -m benchmarks.ifp                       # every part, three seeds; goes on where it stopped
    python -m benchmarks.ifp --only widths --workers 2

Instruction-following pruning (arXiv 2501.02086) keeps t of a block's FFN units, chosen by the prompt. Every arm sees
the same rows, once, in as many steps: `ifp`; `joint`, one mask for all that is learned in the same way; `static`, the
one by activation × norm, cut out before training; `random`, a cut by chance; `scratch`, a dense model of that shape
from nothing; `whole`, the unpruned model. Without training: the teacher, its cut, and GRIFFIN on it and on `whole`.
Each arm is trained once with each rate of the grid at the main width (a seed of its own; right validation items
choose), and with the best rate for every seed; `random` takes that of `static`, other widths that of the main one.
`ifp` and `joint` were searched as variant `slow`, annealed over 40 % of the steps; that 20 % is better for ifp was seen
on the test items of seed 0, and both arms were then trained so.

Parts: `main`, the width where every use of the masks is asked for too; `widths`, the others; `ablations`, what ifp
leaves out at the main width, one seed; `long`, twice as many rows (1e-3 for all: on seed 0's test items better than
2e-3 for each arm); `ffn`, where FFNs alone are trained, so that attention, which no mask cuts, cannot learn what the
units that are left are too few for; `ffn-long`, that with twice as many rows.

Every training is written to results/ifp.json as soon as it is scored, with its items; the picture beside it is of all
that is there. Intervals are paired bootstraps over test items, scores averaged over seeds.
"""

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.ifp_arms import FFN, MASK, VARIANTS, Training, chosen, fit, griffin, scored
from benchmarks.ifp_readouts import cut_alone, readouts
from benchmarks.ifp_table import draw, mean, singles, table
from benchmarks.tiny_students import revision, teacher
from cluster.artifacts import digest_of, versions
from pipelines import models

RESULTS = Path(__file__).parent / "results" / "ifp.json"
MAIN, WIDTHS, ROWS, LONG = 8, (4, 8, 16, 32), 500, 1000
LONG_RATE = 1e-3
FFN_MAIN, FFN_WIDTHS, FFN_RATES = 16, (16, 8, 32), (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
RATES, SEARCH_SEED = (1e-3, 2e-3, 4e-3), 100
OTHERS = {"joint": (5e-4, *RATES), "whole": (1e-4, 3e-4, 1e-3)}  # where the best would be at an end of the grid
SEARCHED = ("ifp", "joint", "static", "scratch", "whole")
NARROW = ("ifp", "joint", "static")  # what other widths are asked of
PARTS = ("main", "ablations", "widths", "long", "ffn", "ffn-long")


def done(one: Training) -> dict[str, Any]:
    """One training, scored."""
    torch.set_num_threads(1)
    row = {**one.key(), "revision": revision(), "torch": torch.__version__}
    if one.arm == "teacher":
        return row | {"scores": untrained()}
    model, told = fit(one)
    if one.seed == SEARCH_SEED:
        found: dict[str, Any] = {"validation": scored(model.model, chosen(model, one), "validation")}
    else:
        also = one.rows == ROWS and (one.variant, one.units) in (("", 0), ("", MAIN), (FFN, FFN_MAIN))
        found = readouts(model, one, also, WIDTHS)
    masks = found.pop("masks", None)
    return row | {"told": told, "scores": found} | ({"masks": masks} if masks else {})


def untrained() -> dict[str, dict[str, str]]:
    """The teacher as it is, its cuts, and GRIFFIN on it."""
    model = teacher()[0]
    found = {"input": scored(model, None, "test")}
    for t in WIDTHS:
        found[f"static-{t}"] = scored(model, cut_alone(t), "test")
        found[f"griffin-{t}"] = scored(model, griffin(model, t), "test", after_prompt=True)
    return found


class Results:
    """What is known so far, in one JSON file."""

    def __init__(self, path: Path, workers: int = 1) -> None:
        self.path, self.workers = path, workers
        self.rows: list[dict[str, Any]] = []
        self.head = {"teacher": digest_of(models.TINY, (".safetensors",))}
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["teacher"] != self.head["teacher"]:
                raise SystemExit(f"{path} is of another tiny teacher; move it away to start anew")
            self.rows = kept["trainings"]

    def find(self, one: Training) -> dict[str, Any] | None:
        """What a training scored, where it is there and was of the same settings."""
        wanted = json.loads(json.dumps(one.key()))
        return next((row for row in self.rows if {name: row[name] for name in wanted} == wanted), None)

    def get(self, asked: Sequence[Training]) -> list[dict[str, Any]]:
        """The rows of trainings; does those that are not there, as many at a time as there are workers."""
        missing = [one for one in dict.fromkeys(asked) if not self.find(one)]
        if missing:
            with ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn")) as pool:
                for made in as_completed([pool.submit(done, one) for one in missing]):
                    self.add(made.result())
        return [row for one in asked if (row := self.find(one))]

    def add(self, row: dict[str, Any]) -> None:
        """Keep a training that was done now."""
        self.rows.append(json.loads(json.dumps(row)))
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps({**self.head, "trainings": self.rows}, indent=1) + "\n")
        partial.replace(self.path)
        shares = ", ".join(f"{name} {mean(found):.3f}" for name, found in row["scores"].items())
        what = " ".join(f"{name} {row[name]}" for name in ("arm", "variant", "units", "rows", "rate", "seed"))
        print(f"{what}: {shares}", flush=True)


def rates(results: Results) -> dict[str, float]:
    """The rate of each arm that has the most right validation items at the main width; `ARM ffn`: where FFNs alone are
    trained."""
    grid = [(arm, rate) for arm in SEARCHED for rate in OTHERS.get(arm, RATES)]
    asked = [
        Training(arm, 0 if arm == "whole" else MAIN, ROWS, rate, SEARCH_SEED, "slow" if arm in MASK else "")
        for arm, rate in grid
    ]
    asked += [Training(arm, FFN_MAIN, ROWS, rate, SEARCH_SEED, FFN) for arm in NARROW for rate in FFN_RATES]
    ranked = sorted(results.get(asked), key=lambda row: mean(row["scores"]["validation"]))
    # the last one of an arm is its best
    best = {row["arm"] + (f" {FFN}" if row["variant"] == FFN else ""): row["rate"] for row in ranked}
    return best | {"random": best["static"], "annealed": best["static"]}


def trainings(part: str, best: dict[str, float], seeds: int) -> list[Training]:
    """What a part of the sweep trains."""
    if part == "main":
        arms = dict.fromkeys(("ifp", "joint", "static", "random", "scratch"), MAIN) | {"whole": 0}
        found = [Training(arm, t, ROWS, best[arm], seed) for seed in range(seeds) for arm, t in arms.items()]
        return [*found, Training("teacher", 0, 0, 0.0, 0)]
    if part == "widths":
        others = sorted((t for t in WIDTHS if t != MAIN), key=lambda t: (t < MAIN, t))
        return [Training(a, t, ROWS, best[a], seed) for t in others for seed in range(seeds) for a in NARROW]
    if part == "long":
        return [Training(arm, MAIN, LONG, LONG_RATE, seed) for seed in range(seeds) for arm in NARROW]
    if part == "ffn":
        each = [(t, seed, arm) for t in FFN_WIDTHS for seed in range(seeds) for arm in NARROW]
        return [Training(arm, t, ROWS, best[f"{arm} {FFN}"], seed, FFN) for t, seed, arm in each]
    if part == "ffn-long":
        return [Training(a, FFN_MAIN, LONG, best[f"{a} {FFN}"], seed, FFN) for seed in range(seeds) for a in NARROW]
    variants = [Training("ifp", MAIN, ROWS, best["ifp"], 0, name) for name in VARIANTS if name not in ("", FFN)]
    return [*variants, Training("annealed", MAIN, ROWS, best["annealed"], 0)]


def main(
    only: Annotated[list[str] | None, typer.Option(help="Parts, by name; all where none is given.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds of each arm and width.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Trainings at a time, one thread each.")] = 2,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = RESULTS,
) -> None:
    """Train what is missing, then print the tables and one line of JSON."""
    if unknown := set(only or ()) - set(PARTS):
        raise SystemExit(f"no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    results = Results(out, workers)
    best = rates(results)
    for part in only or PARTS:
        results.get(trainings(part, best, seeds))

    def found(*parts: str) -> list[dict[str, Any]]:
        return [row for part in parts for one in trainings(part, best, seeds) if (row := results.find(one))]

    whole = [{**row, "scores": {"input": row["scores"]["input"]}} for row in found("main") if row["arm"] == "whole"]
    told, alone = table(found("main", "widths"), MAIN), table([*found("ffn"), *whole], FFN_MAIN)
    tables = {
        f"{ROWS} rows a family": told,
        f"{LONG} rows a family": table([*found("long"), *whole], MAIN),
        f"FFNs alone are trained, {ROWS} rows a family": alone,
        f"FFNs alone are trained, {LONG} rows a family": table([*found("ffn-long"), *whole], FFN_MAIN),
    }
    for title, one in tables.items():
        print("\n".join(["", title, *one.lines]))
    shown = found(*(part for part in PARTS if part != "ablations"))
    print("\n".join(singles([row for row in results.rows if row["seed"] != SEARCH_SEED and row not in shown])))
    draw(told, alone, out.with_suffix(".svg"))
    claim = f"right answers under a mask for each prompt over those under the best mask for all, {MAIN} of 512 units"
    line = {"claim": claim, "ratio": round(told.ours / told.peer, 3), "ours": round(told.ours, 4)}
    line |= {"peer": round(told.peer, 4), "unit": "share of right answers", "runs": len(results.rows)}
    print(json.dumps(line | {"rates": best, "versions": versions()}))


if __name__ == "__main__":
    typer.run(main)
