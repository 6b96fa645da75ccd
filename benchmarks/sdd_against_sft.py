"""Does self-data distillation beat plain fine-tuning on a pruned model? A resumable sweep on the tiny teacher.

    python -m benchmarks.sdd_against_sft                     # every setting, three seeds; goes on where it stopped
    python -m benchmarks.sdd_against_sft --only base --seeds 5

A setting is: layers removed, LoRA rank (0: full), training rows, style of the references (`own` is the
control: references in the teacher's own words leave self-distillation nothing to mend). In each, both
arms see the same questions for the same number of epochs and get the same search for the learning rate:
every rate of the grid is trained once (seed 100) and scored on validation items over all families, in
and out of domain (kind to SFT: it may choose a small rate, which forgets less); the best is trained
with each seed and scored on the test items. The table's last column is SFT as someone would choose it who
looks at his own families alone (one seed, validation items). Data, cut, loss and training loop are the pipeline's own.
Models answer through transformers in this process instead of an endpoint; the tests show that both
give the same greedy text.

Every training is written to results/sdd_against_sft.json as soon as it is scored; the picture beside it is
of the settings asked for.
"""

import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.tiny_students import pruned, revision, teacher
from cluster.artifacts import digest_of, versions
from pipelines import models, prompts, verdicts
from pipelines.reporting import recovery
from pipelines.student import Student
from pipelines.tiny import families, styles
from pipelines.tiny import scores as tiny_scores
from pipelines.training import batches, feed, loading, loop, losses, optimizers

RESULTS = Path(__file__).parent / "results" / "sdd_against_sft.json"
IN_DOMAIN = ("story", "sort", "position")
FULL, LORA = (2e-5, 6e-5, 2e-4, 6e-4), (1e-4, 3e-4, 1e-3, 3e-3)
EPOCHS, BATCH_TOKENS, TEST, VALIDATION = 3, 1024, 50, 20
SEARCH_SEED = 100


@dataclass(frozen=True)
class Setting:
    """What one comparison holds fixed. The defaults are the quickstart's."""

    layers: int = 3
    rank: int = 0
    rows: int = 2000
    style: str = "notes"


SETTINGS = {
    "base": Setting(),
    "layers-2": Setting(layers=2),
    "layers-4": Setting(layers=4),
    "rank-16": Setting(rank=16),
    "rank-64": Setting(rank=64),
    "rows-250": Setting(rows=250),
    "rows-500": Setting(rows=500),
    "rows-1000": Setting(rows=1000),
    "prose": Setting(style="prose"),
    "own": Setting(style="own"),
    "prose-rank-16": Setting(style="prose", rank=16),
    "layers-4-rank-16": Setting(layers=4, rank=16),
}


@cache
def training_set(style: str) -> dict[str, list[tuple[str, str, str]]]:
    """Family → (question, reference, self-distilled target); the first rows of a larger set are a smaller one."""
    made = {}
    most = max(setting.rows for setting in SETTINGS.values() if setting.style == style)
    for family in IN_DOMAIN:
        found = families.distinct(family, "train", 0, most // len(IN_DOMAIN))
        shown = [styles.render(problem, style) for problem in found]
        asked = [prompts.rewrite(p.question, reference) for p, reference in zip(found, shown, strict=True)]
        rows = []
        for p, reference, said in zip(found, shown, tiny_scores.write(*teacher(), asked, 160), strict=True):
            judged = verdicts.verdict(
                text=said, finish_reason="stop", error="", kind=p.kind, answer=p.answer, prompt=p.question,
                reference=reference,
            )  # fmt: skip
            rows.append((p.question, reference, verdicts.target(judged, said, reference)))
        made[family] = rows
    return made


def fit(setting: Setting, arm: str, rate: float, seed: int) -> Any:
    """One student, trained as the train stage does it with one worker."""
    tokenizer = teacher()[1]
    student = Student(name=arm, lora_rank=setting.rank, lora_alpha=2 * max(setting.rank, 1), learning_rate=rate,
                      batch_tokens=BATCH_TOKENS, micro_tokens=BATCH_TOKENS, epochs=EPOCHS)  # fmt: skip
    model = loading.load(str(pruned(setting.layers)), student, seed)
    chosen = [row for rows in training_set(setting.style).values() for row in rows[: setting.rows // len(IN_DOMAIN)]]
    rows = [batches.encode(tokenizer, prompts.answer(q), own if arm == "sdd" else ref) for q, ref, own in chosen]
    _, fed = feed.steps(batches.flat(rows), student, seed, tokenizer.pad_token_id)
    for _ in loop.steps(losses.ByToken(model), optimizers.adamw(model, rate, 0.0), fed, "cosine", rate):
        pass
    made = model.merge_and_unload() if setting.rank else model
    made.set_attn_implementation("sdpa")
    return made.eval()


def scored(model: Any, n: int, seed: int) -> dict[str, str]:
    """Family → one character an item, 1 for right: greedy answers to held-out items."""
    found = {}
    for family in families.FAMILIES:
        asked = families.distinct(family, "test", seed, n)
        said = tiny_scores.write(model, teacher()[1], [prompts.answer(p.question) for p in asked], 160)
        found[family] = "".join(str(int(tiny_scores.right(p, text))) for p, text in zip(asked, said, strict=True))
    return found


def mean(found: dict[str, str], among: Iterable[str] = tuple(families.FAMILIES)) -> float:
    """The average over families of the share of right items."""
    shares = [found[family].count("1") / len(found[family]) for family in among]
    return sum(shares) / len(shares)


class Results:
    """What is known so far: (name, arm, rate, seed, set) → items, in one JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head = {"teacher": digest_of(models.TINY, (".safetensors",)), "versions": versions()}
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["teacher"] != self.head["teacher"]:
                raise SystemExit(f"{path} is of another tiny teacher; move it away to start anew")
            self.rows = kept["trainings"]

    def get(self, name: str, arm: str, rate: float, seed: int, on: str) -> dict[str, str]:
        """The scored items of one model; trains and scores it where they are not there."""
        key = {"setting": name, "arm": arm, "rate": rate, "seed": seed, "on": on}
        for row in self.rows:
            if {field: row[field] for field in key} == key:
                return row["items"]
        model = teacher()[0] if arm == "teacher" else fit_or_cut(name, arm, rate, seed)
        items = scored(model, *((TEST, 1) if on == "test" else (VALIDATION, 2)))
        self.rows.append({**key, "average": round(mean(items), 4), "items": items, "revision": revision()})
        whole = {**self.head, "settings": {n: asdict(s) for n, s in SETTINGS.items()}, "trainings": self.rows}
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(whole, indent=1) + "\n")
        partial.replace(self.path)
        print(f"{name} {arm} rate {rate:g} seed {seed} {on}: {mean(items):.3f}", flush=True)
        return items


def fit_or_cut(name: str, arm: str, rate: float, seed: int) -> Any:
    """The trained student, or for arm `pruned` the cut model as it is."""
    if arm != "pruned":
        return fit(SETTINGS[name], arm, rate, seed)
    return type(teacher()[0]).from_pretrained(pruned(SETTINGS[name].layers), dtype=torch.float32).eval()


def grid(name: str) -> tuple[float, ...]:
    """The learning rates that both arms of a setting try."""
    return LORA if SETTINGS[name].rank else FULL


def best_rate(results: Results, name: str, arm: str) -> float:
    """The rate of the grid with the best validation average."""
    return max(grid(name), key=lambda rate: mean(results.get(name, arm, rate, SEARCH_SEED, "validation")))


def pooled(runs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Items with their score averaged over seeds, as `recovery` takes them."""
    return [
        {"task": family, "id": str(i), "correct": sum(run[family][i] == "1" for run in runs) / len(runs)}
        for family in runs[0]
        for i in range(len(runs[0][family]))
    ]


def compared(results: Results, name: str, seeds: int) -> dict[str, Any]:
    """One row of the table: averages over seeds, differences with their paired 95 % intervals."""
    out_of = set(families.FAMILIES) - set(IN_DOMAIN)
    layers_off = next(n for n, s in SETTINGS.items() if s.layers == SETTINGS[name].layers)
    runs = {"teacher": [results.get("teacher", "teacher", 0, 0, "test")]}
    runs["pruned"] = [results.get(layers_off, "pruned", 0, 0, "test")]
    rates = {arm: best_rate(results, name, arm) for arm in ("sft", "sdd")}
    for arm, rate in rates.items():
        runs[arm] = [results.get(name, arm, rate, seed, "test") for seed in range(seeds)]
    row: dict[str, Any] = {"setting": name, "rates": rates, "seeds": seeds}
    for arm, found in runs.items():
        row[arm] = [
            sum(mean(run, part) for run in found) / len(found) for part in (families.FAMILIES, IN_DOMAIN, out_of)
        ]
    items = {arm: pooled(found) for arm, found in runs.items()}
    row["recovery"] = recovery.recovery(items["teacher"], items["sdd"])
    row["sdd-sft"] = recovery.difference(items["sdd"], items["sft"])
    row["sdd-sft out"] = recovery.difference(items["sdd"], items["sft"], out_of)
    row["sdd-pruned out"] = recovery.difference(items["sdd"], items["pruned"], out_of)
    row["worst seed over pruned"] = min(mean(run) for run in runs["sdd"]) - row["pruned"][0]
    searched = [results.get(name, "sft", rate, SEARCH_SEED, "validation") for rate in grid(name)]
    row["sft keen"] = max(
        ([mean(run, part) for part in (IN_DOMAIN, out_of)] for run in searched), key=lambda two: two[0]
    )
    return row


def shown(row: dict[str, Any]) -> str:
    """The row as Markdown: all / in / out of domain, in per cent."""

    def three(arm: str) -> str:
        return " / ".join(f"{100 * value:.1f}" for value in row[arm])

    def gap(name: str) -> str:
        found = row[name]
        return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"

    recovered = f"{row['recovery'].value:.1f} ({row['recovery'].low:.1f}–{row['recovery'].high:.1f})"
    gaps = [gap(name) for name in ("sdd-sft", "sdd-sft out", "sdd-pruned out")]
    worst = f"{100 * row['worst seed over pruned']:+.1f}"
    arms = [three(arm) for arm in ("pruned", "sft", "sdd")]
    keen = " / ".join(f"{100 * value:.1f}" for value in row["sft keen"])
    rates = f"{row['rates']['sft']:g}, {row['rates']['sdd']:g}"
    return "| " + " | ".join([row["setting"], rates, *arms, recovered, *gaps, worst, keen]) + " |"


HEAD = (
    "| setting | rates: SFT, SDD | pruned all / in / out | SFT | SDD | SDD recovery % | SDD − SFT | … out-of-domain "
    "| SDD − pruned out-of-domain | worst SDD seed − pruned | SFT at its best rate in-domain: in / out |\n|"
    + "---|"
    * 11
)


def draw(rows: list[dict[str, Any]], to: Path) -> None:
    """What each setting scores in and out of domain; and what SDD and SFT make of more rows."""
    import matplotlib
    from matplotlib.figure import Figure

    arms = {"pruned": ("#888888", "untrained cut"), "sft": ("#d1495b", "SFT"), "sdd": ("#30638e", "SDD")}
    with matplotlib.rc_context({"svg.hashsalt": "regrow", "svg.fonttype": "none"}):
        figure = Figure(figsize=(13, 0.36 * len(rows) + 1.6), layout="constrained")
        panels = figure.subplots(1, 3, width_ratios=(2, 2, 1.6))
        for panel, part, title in zip(panels, (1, 2), ("in-domain", "out-of-domain"), strict=False):
            for arm, (colour, label) in arms.items():
                shares = [100 * row[arm][part] for row in rows]
                panel.scatter(shares, range(len(rows)), color=colour, label=label, s=36)
            panel.set(title=f"{title}, % right", yticks=range(len(rows)), xlim=(-3, 103))
            panel.set_yticklabels([row["setting"] for row in rows] if part == 1 else [])
            panel.invert_yaxis()
            panel.grid(axis="x", alpha=0.3)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False)
        sized = {SETTINGS[row["setting"]].rows: row for row in rows if row["setting"].startswith(("rows-", "base"))}
        for arm in ("sft", "sdd"):
            for part, dash in ((1, "--"), (2, "-")):
                shares = [100 * sized[n][arm][part] for n in sorted(sized)]
                panels[2].plot(sorted(sized), shares, dash, marker="o", color=arms[arm][0])
        panels[2].set(title="more rows (dashed: in-domain)", xlabel="training rows", xscale="log", ylim=(-3, 103))
        panels[2].set_xticks(sorted(sized), [str(n) for n in sorted(sized)], minor=False)
        panels[2].minorticks_off()
        figure.savefig(to, metadata={"Date": None})


def main(
    only: Annotated[list[str] | None, typer.Option(help="Settings, by name; all where none is given.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds of each arm.")] = 3,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = RESULTS,
) -> None:
    """Train what is missing, then print the table and one line of JSON."""
    unknown = set(only or ()) - set(SETTINGS)
    if unknown:
        raise SystemExit(f"no setting {sorted(unknown)[0]!r}; there are {', '.join(SETTINGS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    results = Results(out)
    rows = [compared(results, name, seeds) for name in only or SETTINGS]
    print("\n".join(itertools.chain([HEAD], map(shown, rows))))
    draw(rows, out.with_suffix(".svg"))
    ours, peer = (sum(row[arm][0] for row in rows) / len(rows) for arm in ("sdd", "sft"))
    claim = "SDD's share of right answers over SFT's, mean over settings"
    line = {"claim": claim, "ratio": round(ours / peer, 3), "ours": round(ours, 4), "peer": round(peer, 4)}
    line |= {"unit": "share of right answers", "runs": len(results.rows), "versions": versions()}
    print(json.dumps(line))


if __name__ == "__main__":
    typer.run(main)
