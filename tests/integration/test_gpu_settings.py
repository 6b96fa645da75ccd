"""What engines are started with on a GPU cluster, without one: vLLM's and Ray's own classes take every setting.

Chat templates of hub models are not here, so that a prompt is rendered for the packaged tokenizer alone.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import models, prompts, recipe_file, served
from pipelines.generation import engines, flow, job
from pipelines.generation.job import Job
from pipelines.recipe import Recipe
from serving import app, engine
from serving.settings import Endpoint

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


def generation(recipe: Recipe) -> Job:
    return job.of_recipe(recipe, "out")


def test_vllm_takes_the_settings_of_generation(recipe: Recipe, teacher: Path) -> None:
    made = arguments(teacher, **flow._kwargs(generation(recipe), teacher, gpu=True))
    split = recipe.teacher.tensor_parallel
    assert made.tensor_parallel_size == split
    assert made.distributed_executor_backend == ("mp" if split > 1 else None), "no second Ray inside the actor"
    assert (made.max_model_len, made.max_num_seqs) == (recipe.teacher.max_model_len, recipe.generate.max_num_seqs)
    assert made.dtype == "auto" and not made.enforce_eager and made.kv_cache_memory_bytes is None


def test_ray_places_an_engine_on_its_gpus(recipe: Recipe) -> None:
    """As many actors as engines, each with the GPUs that its weights are split over, in one environment."""
    import ray

    placed = flow._place(generation(recipe), recipe.generate.engines, gpu=True)
    pool = placed.pop("compute")
    assert (pool.min_size, pool.max_size) == (recipe.generate.engines, recipe.generate.engines)
    assert placed["num_gpus"] == recipe.teacher.tensor_parallel and "num_cpus" not in placed
    variables = placed["runtime_env"]["env_vars"]
    assert variables.items() >= QUIET.items()
    assert "OMP_NUM_THREADS" not in variables, "nothing of the CPU's"
    ray.remote(engines.Engine).options(**placed)  # raises for what Ray does not know
    with pytest.raises(ValueError, match="num_gpu"):
        ray.remote(engines.Engine).options(**placed, num_gpu=1)


def test_ray_serve_takes_the_settings_of_serving(recipe: Recipe, teacher: Path) -> None:
    config = app.config(served.of_run(recipe, {"teacher": teacher}), "teacher", gpu=True)
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
    endpoint = Endpoint(models={"m": str(models.TINY)}, max_model_len=64, cpu_threads=3)
    assert app.config(endpoint, "m", gpu=False).runtime_env["env_vars"]["OMP_NUM_THREADS"] == "3"
    asked = generation(recipe_file.load("quickstart"))
    assert flow._kwargs(asked, models.TINY, gpu=False)["enforce_eager"]
    placed = flow._place(asked, 2, gpu=False)
    assert (placed["compute"].min_size, placed["compute"].max_size) == (2, 2)
    assert placed["num_cpus"] == engine.CPU_BUNDLE and "num_gpus" not in placed
    assert placed["runtime_env"]["env_vars"].items() >= engine.env_vars(2, gpu=False).items()


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
