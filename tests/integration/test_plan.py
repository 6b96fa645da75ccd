"""`regrow run RECIPE --plan` as its user meets it: fast, without weights or network, and nothing left behind."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipelines import plan, recipe_file
from pipelines.planning import assumptions
from pipelines.recipe_file import BadInput
from tests import tiny

Regrow = Callable[..., subprocess.CompletedProcess[str]]
PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
GPU = "cluster.gpu=H100-80GB"
TINY = """
name = "mine"
[teacher]
model = "teacher"
[[dataset]]
name = "sums"
source = "rows.jsonl"
[prune]
layers = 1
[[student]]
name = "sdd"
"""


def planned(
    recipe: str, *overrides: str, price: float | None = None, assume: list[str] | None = None
) -> dict[str, Any]:
    return plan.plan(recipe_file.load(recipe, overrides), assumptions.assumed(assume or []), price)


# The part of a plan's JSON that tells of capacity, as docs/plan.md describes it.
NUMBER, NAME = {"type": "number", "minimum": 0}, {"type": "string", "minLength": 1}
WHOLE = {"type": "integer", "minimum": 0}


def record(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False
    }  # fmt: skip


NEXT = {"anyOf": [{"type": "null"}, record(gpus=WHOLE, bottleneck=NAME)]}
VOLUME = record(
    tokens=WHOLE, rows=WHOLE, shards=WHOLE, hours=NUMBER, gpu_hours=NUMBER, bottleneck=NAME, next=NEXT,
    cost={"type": ["number", "null"]},
)  # fmt: skip
CAPACITY = record(
    gpus=WHOLE, engines=WHOLE, idle_gpus=WHOLE, nodes=WHOLE, prompt_tokens=NUMBER, written_tokens=NUMBER,
    sequences=NUMBER, seats=WHOLE, decoding_bound_by={"enum": ["weights", "KV cache", "FLOPs"]},
    tokens_per_second=record(engine=NUMBER, all=NUMBER),
    volumes={"type": "array", "minItems": 3, "maxItems": 3, "items": VOLUME},
    resources={
        "type": "array", "minItems": 12,
        "items": record(resource=NAME, where=NAME, rate=NAME, hours=NUMBER, share=NUMBER, rests_on=NAME),
    },
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tiny.model_dir(tmp_path / "teacher", layers=3)
    rows = [{"question": f"{i} + 1 = ?   ", "answer": f"The answer is {i + 1}."} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.toml").write_text(TINY)
    return tmp_path


def test_the_papers_experiment(regrow: Regrow, tmp_path: Path) -> None:
    done = regrow("run", "llama-3.1-8b-sdd", "--plan", "--gpu-hour-price", "3")
    assert done.returncode == 0 and not done.stderr, done.stderr
    for said in ("8,030,261,248", "6,721,589,248", "16.30 %", "train-sdd", "fits", "train_mfu", "cost", "to do"):
        assert said in done.stdout
    assert not list(tmp_path.iterdir()), "a plan leaves nothing behind"
    assert "\n".join(line.rstrip() for line in done.stdout.splitlines()) in PAGE, "the docs show it"


def test_json_is_the_plan_and_only_that(regrow: Regrow) -> None:
    done = regrow("run", "llama-3.1-70b-sdd", "--plan", "--json", "--assume", "train_mfu=0.2")
    made = json.loads(done.stdout)
    assert made == planned("llama-3.1-70b-sdd", assume=["train_mfu=0.2"])
    assert {row["name"]: row["value"] for row in made["assumptions"]}["train_mfu"] == 0.2


def test_a_plan_ends_where_the_run_is_to_end(regrow: Regrow) -> None:
    whole = json.loads(regrow("run", "llama-3.1-8b-sdd", "--plan", "--json").stdout)
    part = json.loads(regrow("run", "llama-3.1-8b-sdd", "--plan", "--json", "--until", "generate").stdout)
    assert {row["stage"] for row in part["stages"]} == {"prepare", "prune", "generate"}
    assert part["stages"] == whole["stages"][: len(part["stages"])]
    assert {row["stage"] for row in part["work"]} == {"prune", "generate"}
    assert [row["what"] for row in part["memory"]] == ["prune: measuring", "generate: teacher"]
    assert 0 < part["total"]["gpu_hours"] < whole["total"]["gpu_hours"]


def test_a_plan_is_quick_and_imports_nothing_heavy() -> None:
    heavy = "('torch', 'ray', 'vllm', 'transformers', 'lm_eval')"
    code = (
        "import sys, time; from pipelines import plan, recipe_file; from pipelines.planning import assumptions, screen;"
        "screen.show(plan.plan(recipe_file.load('llama-3.1-8b-sdd'), assumptions.assumed()));"
        f"print(time.process_time(), *[m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.splitlines()[-1].split()
    assert not loaded and float(seconds) < 3, "of one core: the machine may be busy"


@pytest.mark.parametrize("name", recipe_file.names())
def test_every_recipe_has_a_plan(name: str) -> None:
    made = planned(name)
    assert made["pruned"]["parameters"] < made["teacher"]["parameters"]
    assert made["stages"][0]["stage"] == "prepare" and made["stages"][-1]["stage"] == "report"
    gpu = recipe_file.load(name).cluster.gpu
    assert all(row["fits"] is (True if gpu else None) for row in made["memory"]), "a shipped recipe fits its GPU"
    assert all((row["hours"] is not None) == bool(gpu) for row in made["work"])


def test_more_gpus_take_less_of_each_and_hours_follow_assumptions() -> None:
    two, eight = planned("llama-3.1-8b-sdd"), planned("llama-3.1-8b-sdd", "cluster.workers=8")

    def training(made: dict[str, Any]) -> Any:
        return next(row for row in made["memory"] if row["what"].startswith("train"))

    assert training(two)["bytes"]["parameters"] == 4 * training(eight)["bytes"]["parameters"]
    assert eight["total"]["cluster_gpus"] == 8
    slow = planned("llama-3.1-8b-sdd", assume=["train_mfu=0.2", "start_minutes=0"])
    fast = planned("llama-3.1-8b-sdd", assume=["train_mfu=0.4", "start_minutes=0"])
    for a, b in zip(slow["work"], fast["work"], strict=True):
        assert a["hours"] == pytest.approx(b["hours"] * (2 if a["stage"] == "train" else 1), abs=2e-4)


def test_cost_is_price_times_gpu_hours() -> None:
    made = planned("llama-3.1-8b-sdd", price=2.5)["total"]
    assert made["cost"] == pytest.approx(2.5 * made["gpu_hours"], abs=0.02)
    assert made["cost_held"] == pytest.approx(2.5 * made["hours"] * made["cluster_gpus"], abs=0.05)
    assert made["cost"] < made["cost_held"]


def test_a_gpu_that_costs_nothing_has_a_price_too() -> None:
    assert planned("llama-3.1-8b-sdd", price=0)["total"]["cost"] == 0


def test_a_laptops_plan_says_nothing_of_kubernetes() -> None:
    assert not any("Kubernetes" in note for note in planned("quickstart")["notes"])


def test_what_does_not_fit_says_what_to_change() -> None:
    made = planned("llama-3.1-70b-sdd", "teacher.tensor_parallel=1", "cluster.workers=2")
    wrong = {row["what"] for row in made["memory"] if not row["fits"]}
    assert {"generate: teacher", "train: sft, sdd"} <= wrong
    assert any("generate: teacher does not fit" in note and "tensor_parallel" in note for note in made["notes"])


def test_less_is_trained_with_targets_and_with_the_last_blocks_alone() -> None:
    def adam(*overrides: str) -> dict[str, float]:
        rows = [row for row in planned("llama-3.1-8b-sdd", *overrides)["memory"] if row["what"].startswith("train")]
        return {row["what"]: row["bytes"]["AdamW"] for row in rows}

    both = adam()["train: sft, sdd"]
    some = adam("student.sft.lora_targets=['q_proj', 'v_proj']")
    assert some["train: sdd"] == both > 4 * some["train: sft"]
    last = adam("student.sft.lora_rank=0", "student.sft.last_layers=2")
    assert last["train: sft"] == 8 * (2 * 218_112_000 + 4096) / 2
    assert adam("cluster.workers=8", "cluster.replicas=4") == adam()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["student.sft.lora_targets=['wq']"], "student sft: lora_targets names 'wq', which is no linear map"),
        (
            ["student.sft.lora_rank=0", "student.sft.last_layers=27"],
            "last_layers = 27, but the pruned model has 26 blocks",
        ),
    ],
)
def test_students_that_the_model_cannot_have_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        planned("llama-3.1-8b-sdd", *overrides)


def test_local_data_are_counted(home: Path) -> None:
    made = planned(str(home / "mine.toml"), GPU)
    assert made["data"] == [
        {"name": "sums", "train": 5, "test": 0, "question": len("0 + 1 = ?") / 4,
         "reference": len("The answer is 1.") / 4, "known": "counted"}
    ]  # fmt: skip


def test_what_is_there_is_told(regrow: Regrow, home: Path) -> None:
    assert not any(row["state"] == "there already" for row in planned(str(home / "mine.toml"))["stages"])
    first = regrow("run", "mine.toml", "--until", "prune")
    assert first.returncode == 0, first.stderr
    shown = json.loads(regrow("run", "mine.toml", "--plan", "--json").stdout)
    assert [row["artifact"] for row in shown["stages"] if row["state"] == "there already"] == [
        "prepare", "prune-angular", "prune-tail",
    ]  # fmt: skip
    other = json.loads(regrow("run", "mine.toml", "prune.layers=2", "--plan", "--json").stdout)
    assert [row["artifact"] for row in other["stages"] if row["state"] == "there already"] == ["prepare"]
    far = json.loads(regrow("run", "mine.toml", "teacher.model=Qwen/Qwen3-8B", "--plan", "--json").stdout)
    assert "weights are not on this machine" in far["notes"][0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prune.layers=3"], "choose 1 to 2"),
        (["teacher.tensor_parallel=3"], "2 attention heads"),
        (["teacher.model=./elsewhere"], "does not exist"),
        (["dataset.0.source=nowhere.jsonl"], "cannot be read"),
        (["cluster.gpu=H100"], "cluster.gpu"),
        (["--assume", "trian_mfu=0.3"], "did you mean 'train_mfu'"),
        (["--assume", "train_mfu=3"], "less than or equal to 1"),
        (["--gpu-hour-price", "nan"], "--gpu-hour-price nan: not a price; give"),
        (["--gpu-hour-price", "inf"], "--gpu-hour-price inf: not a price"),
        (["--gpu-hour-price", "-1"], "--gpu-hour-price -1.0: not a price"),
    ],
)
def test_bad_input_to_a_plan(regrow: Regrow, home: Path, words: list[str], said: str) -> None:
    done = regrow("run", "mine.toml", "--plan", *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_plans_options_need_a_plan(regrow: Regrow, home: Path) -> None:
    done = regrow("run", "mine.toml", "--json")
    assert done.returncode == 2 and "--plan" in done.stderr


def test_a_family_that_is_not_counted(home: Path) -> None:
    config = json.loads((home / "teacher" / "config.json").read_text())
    (home / "teacher" / "config.json").write_text(json.dumps(config | {"model_type": "gemma2"}))
    with pytest.raises(BadInput, match="'gemma2'"):
        planned(str(home / "mine.toml"))


@pytest.mark.parametrize("gpus", [1, 8, 64, 512])
def test_capacity_as_json(regrow: Regrow, gpus: int) -> None:
    done = regrow("run", "llama-3.1-8b-sdd", f"cluster.gpus={gpus}", "--plan", "--json", "--gpu-hour-price", "2")
    made = json.loads(done.stdout)
    jsonschema.validate(made["capacity"], CAPACITY)
    assert made["capacity"]["engines"] == gpus and all(row["cost"] > 0 for row in made["capacity"]["volumes"])
    named = {row["name"] for row in made["assumptions"]}
    rests = {name for row in made["capacity"]["resources"] for name in row["rests_on"].split(", ")}
    assert rests - {"generate.max_tokens"} <= named, "every assumption behind a figure is told"
    assert any("cluster.gpus = 1, but the stages want 2" in note for note in made["notes"]) == (gpus == 1)


def test_without_a_number_of_gpus_there_is_no_capacity(regrow: Regrow) -> None:
    made = planned("llama-3.1-8b-sdd")
    assert made["capacity"] is None and not any(row["name"] == "driver_ms_per_shard" for row in made["assumptions"])
    early = json.loads(
        regrow("run", "llama-3.1-8b-sdd", "cluster.gpus=8", "--plan", "--json", "--until", "prune").stdout
    )
    assert early["capacity"] is None, "nothing is generated before that stage"
    nameless = planned("quickstart", "cluster.gpus=8")
    assert nameless["capacity"] is None and any("cluster.gpu=A100-40GB" in note for note in nameless["notes"])


def test_capacity_on_the_screen_is_that_of_the_docs(regrow: Regrow) -> None:
    command = "regrow run llama-3.1-8b-sdd cluster.gpus=64 --plan --gpu-hour-price 3"
    began = time.monotonic()
    done = regrow(*command.split()[1:])
    assert time.monotonic() - began < 10, "0.6 s on an idle machine"
    told = [line.rstrip() for line in done.stdout.splitlines()]
    start, end = (
        next(i for i, line in enumerate(told) if line.startswith(word)) for word in ("Capacity", "Assumptions")
    )
    assert f"$ {command}\n" in PAGE
    assert "\n".join(told[start : end - 1]) in PAGE


def test_every_row_of_the_docs_tables_is_in_its_table() -> None:
    lines = PAGE.splitlines()
    tables = [list(rows) for row, rows in itertools.groupby(lines, lambda line: line.startswith("|")) if row]
    assert len(tables) == 3
    assert all(table[1].startswith("|---|") for table in tables), "rows after a blank line have no head"


def test_fewer_gpus_than_an_engine_takes(regrow: Regrow) -> None:
    done = regrow("run", "llama-3.1-70b-sdd", "cluster.gpus=1", "--plan")
    assert done.returncode == 2 and "cluster.gpus = 1" in done.stderr and "or more" in done.stderr
