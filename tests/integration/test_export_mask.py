"""`regrow export-mask`: the sub-network of a task, and what is said where there is none to be had."""

import inspect
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, Phi3Config

from pipelines import cli_export, masks, place, prompts, recipe_file, subnetwork, units
from pipelines import run as story
from pipelines.ifp import clusters, routed
from pipelines.recipe_file import BadInput
from tests import predictors, tiny
from tests.parity.test_units import SHAPE

TASK = "Add the numbers, then write: The answer is N."
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`routed`, a routed model, and files of all that a mask can be asked for with."""
    folder = tmp_path_factory.mktemp("home")
    whole, reader = tiny.model_dir(folder / "whole", layers=3), predictors.reader(3, 128, 64, 0.5)
    routed.write(folder / "routed", whole, reader, [f"What is 1 + {n}?" for n in range(9)], 2, 0)
    (folder / "task.txt").write_text(f"\n{TASK}\n")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 2?"}]
    later = [{"role": "assistant", "content": "The answer is 3."}, {"role": "user", "content": "And 4?"}]
    rows: list[Any] = [{"prompt": f"What is 1 + {n}?"} for n in range(20)] + [{"messages": [*turns, *later]}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    subnetwork.save_mask(folder / "mask", units.top(torch.rand(3, 128), 32), whole)
    return folder


def export(home: Path, out: Path, model: str = "routed", **given: Any) -> None:
    """The command, with its defaults, on what is in `home`."""
    defaults = {name: one.default for name, one in inspect.signature(cli_export.export_mask).parameters.items()}
    named = {name: home / value if name in ("prompt_file", "mask") else value for name, value in given.items()}
    named |= {"rows": str(home / given["rows"])} if "rows" in given else {}
    cli_export.export_mask(**defaults | {"model": str(home / model), "out": out} | named)


def expected(home: Path, asked: list[list[dict[str, str]]], keep: int = 64) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(home / "whole")
    texts = [prompts.text(tokenizer, messages) for messages in asked]
    reader = predictors.reader(3, 128, 64, 0.5)
    return clusters.middle(torch.stack([masks.mask(reader.scores([text])[0], keep, 0.5) for text in texts]))


def same(home: Path, out: Path, mask: torch.Tensor) -> None:
    """What is in `out` computes what the whole model does under the mask."""
    model, small = (AutoModelForCausalLM.from_pretrained(at, dtype=torch.float32) for at in (home / "whole", out))
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        with units.masked(model.eval(), mask):
            wanted = model(ids).logits
        torch.testing.assert_close(small.eval()(ids).logits, wanted, rtol=1e-5, atol=1e-5)


def test_the_command_writes_a_checkpoint_and_its_mask(home: Path, tmp_path: Path, regrow: Command) -> None:
    """A task's description in the model's chat template; and the mask, on the whole model, gives the same again."""
    words = ("--prompt", TASK, "--tensor-parallel", "2", "--save-mask", str(tmp_path / "mask.safetensors"))
    done = regrow("export-mask", str(home / "routed"), *words, "--out", "small")
    assert done.returncode == 0, done.stderr
    assert "3 blocks of 64 of 128 FFN units" in done.stdout and "vllm serve small" in done.stdout
    mask = expected(home, [prompts.answer(TASK)])
    found = subnetwork.load_mask(tmp_path / "mask.safetensors", home / "whole")
    torch.testing.assert_close(found, mask, rtol=0, atol=1e-4)  # scores in fp32, divided by a temperature
    assert torch.equal(found != 0, mask != 0) and bool((found[found != 0] < 1).any())
    same(home, tmp_path / "small", found)
    assert 'base_model: "routed"' in (tmp_path / "small" / "README.md").read_text()
    export(home, tmp_path / "again", "whole", mask=tmp_path / "mask.safetensors")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "small" / file).read_bytes()


def test_every_way_to_ask(home: Path, tmp_path: Path) -> None:
    first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 2?"}]
    asked = [*(prompts.answer(f"What is 1 + {n}?") for n in range(20)), first]
    ways: dict[str, tuple[dict[str, Any], torch.Tensor]] = {
        "file": ({"prompt_file": "task.txt"}, expected(home, [prompts.answer(TASK)])),
        "rows": ({"rows": "rows.jsonl"}, expected(home, asked)),
        "units": ({"prompt": TASK, "units": 96}, expected(home, [prompts.answer(TASK)], 96)),
        "raw": ({"prompt": TASK, "raw": True}, routed.per_task(predictors.reader(3, 128, 64, 0.5), TASK)),
        "mask": ({"mask": "mask"}, subnetwork.load_mask(home / "mask", home / "whole")),
    }
    for name, (given, mask) in ways.items():
        export(home, tmp_path / name, **given)
        same(home, tmp_path / name, mask)
    assert not torch.equal(ways["raw"][1], ways["file"][1])


def test_a_student_of_a_run(home: Path, tmp_path: Path) -> None:
    """Where a training put its routed model; a student without one has no mask predictor."""
    recipe = recipe_file.load("ifp-tiny", [f"run_dir={tmp_path / 'run'}"])
    place.remember(recipe)
    outs = next(step.outs for step in story.steps(recipe) if step.stage == "train")
    for name, made in (("ifp", "routed"), ("ifp-importance", "whole")):
        shutil.copytree(home / made, Path(outs[name].url) / "model")
        (Path(outs[name].url) / "manifest.json").write_text('{"seconds": 1}')
    run = str(tmp_path / "run")
    export(home, tmp_path / "out", run, student="ifp", prompt=TASK)
    same(home, tmp_path / "out", expected(home, [prompts.answer(TASK)]))
    assert 'base_model: "ifp-tiny, student ifp"' in (tmp_path / "out" / "README.md").read_text()
    for given, said in (
        ({}, "is a run: name one of its students with --student; it has ifp"),
        ({"student": "ifp-importance"}, "has no mask predictor"),
        ({"student": "ifp-static"}, "run has no model 'ifp-static'; it has: teacher, ifp, ifp-importance"),
    ):
        with pytest.raises(BadInput, match=re.escape(said)):
            export(home, tmp_path / "more", run, prompt=TASK, **given)


REFUSED: dict[str, dict[str, Any]] = {
    "give one of --prompt, --prompt-file, --rows, --mask": {},
    "these are --prompt and --mask": {"prompt": TASK, "mask": "mask"},
    "--mask says which units stay; leave out --units": {"mask": "mask", "units": 8},
    "--mask says which units stay; leave out --raw": {"mask": "mask", "raw": True},
    "200 of 128 FFN units cannot stay on; keep 1 to 128": {"prompt": TASK, "units": 200},
    "63 FFN units cannot be divided over 2 GPUs; keep 62 or 64": {"prompt": TASK, "units": 63, "tensor_parallel": 2},
    "32 FFN units cannot be divided over 64 GPUs; keep 64": {"mask": "narrow", "model": "many", "tensor_parallel": 64},
    "attention heads (2 of keys) cannot be shared out evenly": {"prompt": TASK, "tensor_parallel": 4},
    "the prompt is empty; write what is asked": {"prompt": "  "},
    "the prompt is empty in 1 rows": {"rows": "empty.jsonl"},
    "the mask predictor reads 256 at most; shorten the prompt": {"prompt": "word " * 300},
    "nothing.txt": {"prompt_file": "nothing.txt"},
    "'utf-8' codec can't decode": {"prompt_file": "whole/model.safetensors"},
    "columns are question": {"rows": "odd.jsonl"},
    "line 2": {"rows": "torn.jsonl"},
    "unknown role 'tool'": {"rows": "tool.jsonl"},
    "none.jsonl has no row": {"rows": "none.jsonl"},
    "unknown ending; use .jsonl": {"rows": "task.txt"},
    "whole has no mask predictor; give a model trained with one": {"model": "whole", "prompt": TASK},
    "has no whole/, the model that masks are cut out of": {"model": "served", "prompt": TASK},
    "for models with 3 blocks of 128 FFN units, and the one in": {"model": "mixed", "prompt": TASK},
    "MixtralForCausalLM: block 0 is a mixture of experts": {"model": "experts", "mask": "mask"},
    "Phi3ForCausalLM: block 0 holds gate and up in one matrix": {"model": "fused", "mask": "mask"},
    "was made for another model than the one in": {"model": "other", "mask": "mask"},
    "is no mask of FFN units": {"mask": "whole/model.safetensors"},
    "there is no mask": {"mask": "nothing"},
    "holds something already; give a new directory": {"prompt": TASK, "out": "whole"},
    "is a directory; name a file": {"prompt": TASK, "save_mask": Path()},
    "is a run: name one of its students with --student, and it has none with a mask predictor": {
        "model": "run",
        "prompt": TASK,
    },
    "nowhere": {"model": "nowhere", "prompt": TASK},
}


@pytest.fixture(scope="module")
def broken(home: Path) -> Path:
    """`home` with models and rows that do not fit."""
    for name, shape in (("other", {"seed": 1}), ("many", {"num_attention_heads": 64, "num_key_value_heads": 64})):
        tiny.model_dir(home / name, layers=3, **shape)
    subnetwork.save_mask(home / "narrow", units.top(torch.rand(3, 128), 32), home / "many")
    shutil.copytree(home / "routed", home / "served", ignore=shutil.ignore_patterns("whole"))
    shutil.copytree(home / "routed", home / "mixed", ignore=shutil.ignore_patterns("whole"))
    tiny.model_dir(home / "mixed" / "whole", layers=2)
    for name, config in (("experts", MixtralConfig(**SHAPE, num_local_experts=2)), ("fused", Phi3Config(**SHAPE))):
        AutoModelForCausalLM.from_config(config).save_pretrained(home / name)
        tiny.tokenizer().save_pretrained(home / name)
    for name, rows in (
        ("empty", ['{"prompt": "a"}', '{"prompt": " "}']),
        ("odd", ['{"question": "a"}']),
        ("torn", ['{"prompt": "a"}', '{"prompt": "b']),
        ("tool", ['{"messages": [{"role": "tool", "content": "a"}]}']),
        ("none", []),
    ):
        (home / f"{name}.jsonl").write_text("\n".join(rows))
    (home / "run").mkdir()
    (home / "run" / "recipe.json").write_text(recipe_file.load("quickstart").model_dump_json())
    return home


@pytest.mark.parametrize("said", REFUSED)
def test_bad_input_is_told(broken: Path, tmp_path: Path, said: str) -> None:
    given = dict(REFUSED[said])
    out = broken / given.pop("out") if "out" in given else tmp_path / "out"
    with pytest.raises(BadInput, match=re.escape(said)):
        export(broken, out, **given)
    assert not (tmp_path / "out").exists() and (broken / "whole" / "config.json").exists()


def test_bad_input_ends_with_status_2(broken: Path, tmp_path: Path, regrow: Command) -> None:
    done = regrow("export-mask", str(broken / "routed"), "--prompt", TASK, "--units", "200", "--out", "small")
    assert done.returncode == 2 and done.stderr.strip() == (
        "regrow: 200 of 128 FFN units cannot stay on; keep 1 to 128"
    )
    done = regrow("export-mask", "--help")
    assert done.returncode == 0 and "Examples: `regrow export-mask runs/mine --student ifp" in " ".join(
        done.stdout.split()
    )
    assert not list(tmp_path.iterdir())
