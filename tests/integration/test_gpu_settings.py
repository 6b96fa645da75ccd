"""What engines are started with on a GPU cluster, without one: vLLM's and Ray's own classes take every setting.

Chat templates of hub models are not here, so that a prompt is rendered for the packaged tokenizer alone.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import generate, models, prompts, recipe_file
from pipelines.recipe import Recipe
from serving import app, engine

REAL = [name for name in recipe_file.names() if recipe_file.load(name).cluster.gpu]
QUIET = {"RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0", "VLLM_NO_USAGE_STATS": "1"}


@pytest.fixture(params=recipe_file.names())
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return recipe_file.load(request.param)


@pytest.fixture
def teacher(recipe: Recipe, tmp_path: Path) -> Path:
    """A directory with the teacher's config.json, and no weights."""
    (tmp_path / "config.json").write_text(json.dumps(models.describe(recipe.teacher.model).config))
    return tmp_path


def arguments(folder: Path, **settings: Any) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return AsyncEngineArgs(**({"model": str(folder)} | settings))  # a dataclass: an unknown name is a TypeError


def test_vllm_takes_the_settings_of_generation(recipe: Recipe, teacher: Path) -> None:
    config = generate.config(recipe, teacher, recipe.generate.engines, gpu=True)
    assert config.placement_group_config is None and config.accelerator_type is None
    assert config.concurrency == (recipe.generate.engines, recipe.generate.engines)
    assert config.runtime_env["env_vars"].items() >= QUIET.items()
    assert "OMP_NUM_THREADS" not in config.runtime_env["env_vars"], "nothing of the CPU's"
    given = {key: value for key, value in config.engine_kwargs.items() if key != "task_type"}  # Ray Data's own
    made = arguments(teacher, **given)
    assert made.tensor_parallel_size == recipe.teacher.tensor_parallel
    assert (made.max_model_len, made.max_num_seqs) == (recipe.teacher.max_model_len, recipe.generate.max_num_seqs)
    assert made.dtype == "auto" and not made.enforce_eager and made.kv_cache_memory_bytes is None


def test_ray_data_places_an_engine_on_its_gpus(recipe: Recipe, teacher: Path) -> None:
    from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineStage

    config = generate.config(recipe, teacher, 1, gpu=True)
    stage = vLLMEngineStage(
        fn_constructor_kwargs={"engine_kwargs": dict(config.engine_kwargs), "placement_group_config": None},
        map_batches_kwargs={"accelerator_type": None},
    )
    asked, split = stage.map_batches_kwargs, recipe.teacher.tensor_parallel
    if split == 1:
        assert asked["num_gpus"] == 1
    else:
        assert asked["num_gpus"] == 0 and asked["ray_remote_args_fn"].args[0] == split, "a bundle for each part"


def test_ray_serve_takes_the_settings_of_serving(recipe: Recipe, teacher: Path) -> None:
    asked = (recipe.teacher.max_model_len, recipe.serve.max_num_seqs, recipe.teacher.dtype)
    config = app.config("teacher", teacher, *asked, recipe.teacher.tensor_parallel, gpu=True)
    found = config.get_engine_config()
    assert found.placement_bundles == [{"GPU": 1}] * recipe.teacher.tensor_parallel
    made = arguments(teacher, **found.get_initialization_kwargs())
    assert made.tensor_parallel_size == recipe.teacher.tensor_parallel
    assert (made.max_model_len, made.max_num_seqs) == (recipe.teacher.max_model_len, recipe.serve.max_num_seqs)


def test_cpu_settings_know_nothing_of_it() -> None:
    on_cpu = engine.engine_kwargs(512, 8, "auto", None, tensor_parallel=8, gpu=False)
    assert "tensor_parallel_size" not in on_cpu and on_cpu["dtype"] == "float32"
    assert engine.placement_group_config(gpu=False) == {"bundles": [{"CPU": engine.CPU_BUNDLE}]}
    assert engine.env_vars(2, gpu=False)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    config = generate.config(recipe_file.load("quickstart"), models.TINY, 2, gpu=False)
    assert config.engine_kwargs["enforce_eager"] and config.concurrency == (2, 2)
    assert config.placement_group_config["bundles"] == [{"CPU": engine.CPU_BUNDLE, "GPU": 0}]


@pytest.mark.parametrize(("heads", "keys"), [(32, 8), (64, 8), (28, 4), (12, 12), (32, 1)])
@pytest.mark.parametrize("split", [1, 2, 3, 4, 6, 8, 16])
def test_refusals_are_vllms_own(heads: int, keys: int, split: int, tmp_path: Path) -> None:
    from vllm.config import ParallelConfig

    config = models.describe("Qwen/Qwen2.5-7B-Instruct").config
    config |= {"num_attention_heads": heads, "num_key_value_heads": keys, "hidden_size": heads * 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = arguments(tmp_path, skip_tokenizer_init=True).create_model_config()

    def refused(check: Any) -> bool:
        try:
            check()
        except ValueError:
            return True
        return False

    parallel = ParallelConfig.__new__(ParallelConfig)  # built, it would look for so many GPUs
    for name, value in {"tensor_parallel_size": split, "pipeline_parallel_size": 1}.items():
        object.__setattr__(parallel, name, value)
    theirs = refused(lambda: model.verify_with_parallel_config(parallel))
    assert theirs == bool(heads % split)
    assert refused(lambda: engine.check_split(config, split)) or not theirs, "what vLLM refuses is refused before"


@pytest.mark.parametrize("name", REAL)
def test_real_recipes_split_their_teacher_evenly(name: str) -> None:
    recipe = recipe_file.load(name)
    engine.check_split(models.describe(recipe.teacher.model).config, recipe.teacher.tensor_parallel)


def test_the_packaged_tokenizer_renders_every_prompt() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.TINY)
    for messages in (prompts.answer("1 + 1?"), prompts.rewrite("1 + 1?", "2"), prompts.explain("1 + 1?")):
        text = prompts.text(tokenizer, messages)
        assert "1 + 1?" in text and text.endswith("<|assistant|>")
