"""Does distilling step-by-step need fewer examples than labels alone? A resumable sweep on the tiny teacher.

    python -m benchmarks.dsbs                        # every setting, three seeds; goes on where it stopped
    python -m benchmarks.dsbs --only addition --seeds 5
    python -m benchmarks.dsbs --workers 8            # as many trainings at a time, on the GPU where there is one

The paper (arXiv 2305.02301, fig. 4 and 5): the multi-task student reaches the accuracy of full-data fine-tuning with
less than half of the examples, with gold labels and with the teacher's. A setting is one task family and whose labels
are learned; in it each arm is trained on 10, 25, 50, 75 and 100 % of the rows. All arms see the same questions, the
same number of steps and of labels a step (a step of dsbs holds the rationales of its rows besides, so it costs more),
start from the same cut of the teacher, get the same search for the learning rate (once, at half of the data, by the
share of right validation items), and are scored at the step with the least validation loss. Rationales and labels are
the tiny teacher's own, read by the strict parser; nothing is filtered. Since it makes no mistake in these families, its
labels are written without two of its blocks and at temperature 1.5 where they are what is learned: every ninth is wrong
then. Data, loss and loop are the pipeline's own.

Every training is written to results/dsbs.json as soon as it is scored; the picture beside it is of the settings asked
for. Intervals are paired bootstraps over test items, scores averaged over seeds.
"""

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.tiny_students import pruned, revision, teacher
from cluster.artifacts import digest_of, versions
from pipelines import models, objectives, prompts, rationales
from pipelines.reporting import recovery
from pipelines.student import Student
from pipelines.tiny import families
from pipelines.tiny import scores as tiny_scores
from pipelines.training import batches, best, feed, loading, loop, losses, metrics, optimizers

RESULTS = Path(__file__).parent / "results" / "dsbs.json"
WORK = Path(__file__).parents[1] / "runs" / "dsbs"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 1000 if DEVICE == "cuda" else 100  # answers at a time
FRACTIONS, RATES = (0.1, 0.25, 0.5, 0.75, 1.0), (3e-4, 1e-3)
VALIDATION, TEST, EVERY, SEARCH_SEED = 200, 400, 50, 100
ARMS = ("label", "dsbs")


@dataclass(frozen=True)
class Setting:
    """What one comparison holds fixed. `rows`: 100 % of them; `labels` a step; the teacher writes at `temperature`,
    without as many blocks as `teacher_removed` says."""

    family: str
    rows: int = 4000
    teacher_labels: bool = False
    teacher_removed: int = 0
    temperature: float = 0.0
    removed: int = 3
    steps: int = 800
    labels: int = 32
    alpha: float = 0.5


SETTINGS = {
    "addition": Setting("addition"),
    "addition-unlabelled": Setting("addition", teacher_labels=True, teacher_removed=2, temperature=1.5),
    "compare": Setting("compare"),
}
FEWER = {"addition-unlabelled": (0.25, 0.5, 1.0)}  # settings with fewer shares than all


@dataclass(frozen=True)
class Training:
    """One student: of which setting, how, on which share of the rows, from which seed."""

    setting: str
    arm: str
    share: float
    rate: float
    seed: int


@cache
def written(setting: Setting) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Train records of a setting's family, and after them the validation records; each with what the teacher said about
    it, which is kept in a file."""
    found = families.distinct(setting.family, "train", 0, setting.rows + VALIDATION)
    how = f"{setting.family}-{setting.rows}-{setting.teacher_removed}-{setting.temperature:g}"
    file = WORK / f"{how}-{digest_of(models.TINY, ('.safetensors',))[:12]}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(told(setting, [prompts.explain(p.question) for p in found])))
    made = []
    for place, (p, text) in enumerate(zip(found, json.loads(file.read_text()), strict=True)):
        record = {"id": f"{place:06d}", "context": "", "input": p.question, "history": "", "answer": p.answer}
        parts = rationales.split(text, p.kind)
        made.append((record, {"rationale": parts[0], "label": parts[1], "verdict": ""} if parts else None))
    return made


def told(setting: Setting, asked: list[list[prompts.Message]]) -> list[str]:
    """The teacher's texts."""
    start = str(pruned(setting.teacher_removed)) if setting.teacher_removed else str(models.TINY)
    model = loading.load(start, Student(name="none"), 0).to(DEVICE).eval()
    model.set_attn_implementation("sdpa")
    torch.manual_seed(0)
    return tiny_scores.write(model, teacher()[1], asked, 160, BATCH, setting.temperature)


def rows_of(student: Student, some: list[tuple[dict[str, Any], dict[str, Any] | None]]) -> batches.Rows:
    """The encoded rows of records."""
    tokenizer, flat = teacher()[1], []
    for number, (record, said) in enumerate(some):
        for row in objectives.rows(student, record, said):
            encoded = batches.encode(tokenizer, prompts.answer(row["prompt"]), row["target"])
            flat.append((encoded, objectives.TASKS.index(row["task"]), 1.0, number))
    return batches.flat(*zip(*flat, strict=True))


def fit(one: Training) -> Any:
    """One student, trained as the train stage does it, at its best by the validation rows."""
    setting, pad = SETTINGS[one.setting], teacher()[1].pad_token_id
    labels: Any = "teacher" if setting.teacher_labels else "gold"
    told = {"alpha": setting.alpha} if one.arm == "dsbs" else {}
    plain = Student(name=one.arm, labels=labels, learning_rate=one.rate, **told)
    everything = written(setting)
    # Smaller shares are the first rows of larger ones, another draw with each seed.
    order = torch.randperm(setting.rows, generator=torch.Generator().manual_seed(one.seed)).tolist()
    rows = rows_of(plain, [everything[i] for i in order[: round(one.share * setting.rows)]])
    held = rows_of(plain, everything[setting.rows :])
    tokens = round(setting.labels * sum(rows.lengths()) / len(rows.grouped()))
    epoch = feed.steps(rows, plain.model_copy(update={"batch_tokens": tokens}), one.seed, pad)[0]
    student = plain.model_copy(update={"batch_tokens": tokens, "micro_tokens": 8192, "epochs": setting.steps / epoch})
    model = losses.ByToken(loading.load(str(pruned(setting.removed)), student, one.seed)).to(DEVICE)
    _, fed = feed.steps(rows, student, one.seed, pad)
    seen = best.Best(model, [])
    optimizer = optimizers.adamw(model, one.rate, 0.01)
    for step in loop.steps(model, optimizer, fed, "cosine", one.rate):
        if (step.step + 1) % EVERY == 0:
            seen.see(loop.validate(model, feed.labels(held, student, pad)))
    seen.take()
    model.model.set_attn_implementation("sdpa")
    return model.model.eval()


def scored(model: Any, one: Training, problems: list[families.Problem]) -> str:
    """One character an item, 1 for right: greedy answers."""
    asked = [prompts.answer(objectives.prefix(one.arm) + p.question) for p in problems]
    said = tiny_scores.write(model, teacher()[1], asked, 64, BATCH)
    return "".join(str(int(tiny_scores.right(p, text))) for p, text in zip(problems, said, strict=True))


def done(one: Training) -> dict[str, Any]:
    """The scored items of one training; with them, what it was."""
    setting, model = SETTINGS[one.setting], fit(one)
    on = families.distinct(setting.family, "train", 0, setting.rows + VALIDATION)[-VALIDATION:]
    found = {"validation": scored(model, one, on)}
    if one.seed != SEARCH_SEED:
        found["test"] = scored(model, one, families.distinct(setting.family, "test", 1, TEST))
    return {**key(one), **found, "revision": revision(), "device": metrics.device(), "torch": torch.__version__}


def key(one: Training) -> dict[str, Any]:
    """What makes a training what it is."""
    return {**asdict(one), "of": asdict(SETTINGS[one.setting])}


class Results:
    """What is known so far, in one JSON file."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, []
        self.head = {"teacher": digest_of(models.TINY, (".safetensors",))}
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["teacher"] != self.head["teacher"]:
                raise SystemExit(f"{path} is of another tiny teacher; move it away to start anew")
            self.rows: list[dict[str, Any]] = kept["trainings"]

    def find(self, one: Training) -> dict[str, Any] | None:
        """The scored items of a training, where it is there and was of the same setting."""
        wanted = key(one)
        return next((row for row in self.rows if {name: row[name] for name in wanted} == wanted), None)

    def get(self, asked: Sequence[Training], workers: int) -> list[dict[str, Any]]:
        """The scored items of trainings; does those that are not there, `workers` at a time."""
        missing = [one for one in asked if not self.find(one)]
        for setting in {SETTINGS[one.setting] for one in missing}:
            written(setting)
        if workers == 1:
            for one in missing:
                self.add(done(one))
        else:
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                for made in as_completed([pool.submit(done, one) for one in missing]):
                    self.add(made.result())
        return [row for one in asked if (row := self.find(one))]

    def add(self, row: dict[str, Any]) -> None:
        """Keep a training that was done now."""
        self.rows.append(row)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps({**self.head, "trainings": self.rows}, indent=1) + "\n")
        partial.replace(self.path)
        shares = ", ".join(f"{on} {share(row[on]):.3f}" for on in ("validation", "test") if on in row)
        what = f"{row['setting']} {row['arm']} {row['share']:.0%} rate {row['rate']:g} seed {row['seed']}"
        print(f"{what}: {shares}", flush=True)


def share(items: str) -> float:
    """The share of right items."""
    return items.count("1") / len(items)


def compared(results: Results, name: str, seeds: int, workers: int) -> dict[str, Any]:
    """Per arm and share of the data: accuracy with its interval; and dsbs - label, paired."""
    shares = FEWER.get(name, FRACTIONS)
    search = results.get([Training(name, a, 0.5, rate, SEARCH_SEED) for a in ARMS for rate in RATES], workers)
    ranked = sorted(search, key=lambda row: share(row["validation"]))
    rates = {row["arm"]: row["rate"] for row in ranked}  # the last one of an arm is its best
    results.get([Training(name, arm, part, rates[arm], seed)
                 for part in shares for arm in ARMS for seed in range(seeds)], workers)  # fmt: skip
    row: dict[str, Any] = {"setting": name, "rates": rates, "seeds": seeds, "points": []}
    for part in shares:
        items = {}
        for arm, rate in rates.items():
            runs = [r["test"] for r in results.get([Training(name, arm, part, rate, s) for s in range(seeds)], 1)]
            items[arm] = [
                {"task": name, "id": str(i), "correct": sum(run[i] == "1" for run in runs) / seeds} for i in range(TEST)
            ]
        point: dict[str, Any] = {"share": part, "dsbs-label": recovery.difference(items["dsbs"], items["label"])}
        row["points"].append(point | {arm: recovery.interval(found) for arm, found in items.items()})
    whole = row["points"][-1]["label"].value
    enough = [point["share"] for point in row["points"] if point["dsbs"].value >= whole]
    return row | {"dsbs reaches label's 100 % at": min(enough, default=None)}


def shown(row: dict[str, Any]) -> str:
    """The setting as Markdown rows."""

    def per_cent(found: recovery.Interval, sign: str = "") -> str:
        value, low, high = (format(100 * (end or 0.0), f"{sign}.1f") for end in (found.value, found.low, found.high))
        return f"{value} ({low} to {high})"

    return "\n".join(
        f"| {row['setting']} | {point['share']:.0%} | {per_cent(point['label'])} | {per_cent(point['dsbs'])} "
        f"| {per_cent(point['dsbs-label'], '+')} |"
        for point in row["points"]
    )


HEAD = "| setting | rows | label only, % right | dsbs | dsbs - label |\n|" + "---|" * 5


def draw(rows: list[dict[str, Any]], to: Path) -> None:
    """Accuracy over the share of the data, an arm a line, with intervals."""
    import matplotlib
    from matplotlib.figure import Figure

    arms = {"label": ("#d1495b", "label only"), "dsbs": ("#30638e", "distilling step-by-step")}
    with matplotlib.rc_context({"svg.hashsalt": "regrow", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4 * len(rows), 3.4), layout="constrained")
        for panel, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
            for arm, (colour, label) in arms.items():
                x = [100 * point["share"] for point in row["points"]]
                ends = [
                    [100 * (getattr(p[arm], end) or 0.0) for p in row["points"]] for end in ("value", "low", "high")
                ]
                panel.plot(x, ends[0], marker="o", color=colour, label=label)
                panel.fill_between(x, ends[1], ends[2], color=colour, alpha=0.15)
            whole = 100 * (row["points"][-1]["label"].value or 0.0)
            panel.axhline(whole, color="#d1495b", linestyle=":", linewidth=1)
            panel.set(title=row["setting"], xlabel="% of the rows", ylabel="% right", ylim=(0, 101))
            panel.grid(alpha=0.3)
        figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(to, metadata={"Date": None})


def main(
    only: Annotated[list[str] | None, typer.Option(help="Settings, by name; all where none is given.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds of each arm and share.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Trainings at a time.")] = 1,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = RESULTS,
) -> None:
    """Train what is missing, then print the table and one line of JSON."""
    if unknown := set(only or ()) - set(SETTINGS):
        raise SystemExit(f"no setting {sorted(unknown)[0]!r}; there are {', '.join(SETTINGS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    results = Results(out)
    rows = [compared(results, name, seeds, workers) for name in only or SETTINGS]
    print("\n".join([HEAD, *map(shown, rows)]))
    draw(rows, out.with_suffix(".svg"))
    claim = "share of the rows with which dsbs is as right as label only with all of them (None: not reached)"
    line = {"claim": claim, "ratio": {row["setting"]: row["dsbs reaches label's 100 % at"] for row in rows}}
    print(json.dumps(line | {"runs": len(results.rows), "versions": versions()}))


if __name__ == "__main__":
    typer.run(main)
