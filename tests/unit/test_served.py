"""What `regrow serve` makes of its words: the settings of an endpoint, and its Serve config file."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipelines import served
from serving import adapters, config_file, engine
from serving.listening import Http
from serving.settings import Endpoint


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name, length in (("llama", 4096), ("small", 512)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"max_position_embeddings": length}))
        (tmp_path / name / "tokenizer.json").write_text("{}")
    return tmp_path


def test_models_are_called_by_their_directories_or_as_told(home: Path) -> None:
    made = served.of_models([str(home / "llama"), f"other={home / 'small'}"], max_num_seqs=3)
    assert made.models == {"llama": str(home / "llama"), "other": str(home / "small")}
    assert (made.max_model_len, made.max_num_seqs) == (512, 3), "the shorter of the two"
    assert served.of_models([str(home / "llama")], max_model_len=100).max_model_len == 100
    assert list(served.of_models(["s=tiny"]).models) == ["s"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["llama", "x/../llama"], "two models are called 'llama'"),
        (["a:b=llama"], "a name has no colon"),
        (["nowhere"], "'nowhere' does not exist"),
    ],
)
def test_words_that_are_no_models(home: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (home / "x").mkdir()
    with pytest.raises(ValueError, match=said):
        served.of_models(words)


def test_adapters(tmp_path: Path) -> None:
    found = served.adapters([f"sql={tmp_path}@b", "law=s3://bucket/law@a"], ["a", "b"])
    assert {name: (one.model, one.path) for name, one in found.items()} == {
        "sql": ("b", str(tmp_path)), "law": ("a", "s3://bucket/law"),
    }  # fmt: skip
    assert served.adapters(["sql=x@y"], ["a"])["sql"].path.endswith("x@y"), "a directory may hold the sign"
    for words in (["sql"], ["=x"], ["sql=x"], ["sql=x@a", "sql=y@b"]):
        with pytest.raises(ValueError, match="--adapter"):
            served.adapters(words, ["a", "b"])
    assert served.growing(["b=s3://x/y/"], ["a", "b"]) == {"b": "s3://x/y"}
    assert served.growing(["s3://x/y"], ["a"]) == {"a": "s3://x/y"}
    for words in (["s3://x/y"], ["b=/x"]):
        with pytest.raises(ValueError, match=r"say MODEL=s3://bucket/folder, MODEL one of a, b"):
            served.growing(words, ["a", "b"])
    with pytest.raises(ValueError, match="model 'b' has two folders"):
        served.growing(["b=s3://x/y", "b=s3://x/z"], ["a", "b"])


@pytest.mark.parametrize("content", ["[]", "3", "not JSON"])
def test_a_config_that_is_none(home: Path, content: str) -> None:
    (home / "llama" / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"llama/config\.json"):
        served.of_models([str(home / "llama")])


@pytest.mark.parametrize("stated", [None, "many", 0])
def test_a_config_that_does_not_say_how_long(home: Path, stated: Any) -> None:
    config = {"text_config": None, "max_position_embeddings": stated, "num_attention_heads": 0, "hidden_size": "x"}
    (home / "llama" / "config.json").write_text(json.dumps(config))
    assert served.of_models([str(home / "llama")]).max_model_len == served.LONGEST
    assert engine.kv_cache_bytes(home / "llama", 100, 4) == engine.GIB


def test_a_sign_in_an_address_names_nothing(home: Path) -> None:
    (home / "step=100").mkdir()
    for file in (home / "llama").iterdir():
        (home / "step=100" / file.name).write_text(file.read_text())
    assert list(served.of_models([str(home / "step=100")]).models) == ["step=100"]
    assert served._named("s3://b/step=100/m") == ("m", "s3://b/step=100/m")
    assert served._named("m=s3://b/step=100") == ("m", "s3://b/step=100")


@pytest.mark.parametrize(("stated", "known"), [(4, 8), (8, 8), (17, 32), (256, 256)])
def test_ranks_are_rounded_up_to_what_vllm_knows(stated: int, known: int, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": stated}))
    assert adapters.engine_kwargs([str(tmp_path)] * 9) == {"enable_lora": True, "max_lora_rank": known, "max_loras": 4}
    assert adapters.engine_kwargs([]) == {}
    loaded = adapters.engine_kwargs([str(tmp_path)], 16)
    assert loaded == {"enable_lora": True, "max_lora_rank": max(16, known), "max_loras": 4}
    assert adapters.engine_kwargs([], 16)["max_lora_rank"] == 16


def test_what_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no LoRA adapter as peft saves them"):
        adapters.rank(str(tmp_path))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"models": {}}, "at least 1 item"),
        ({"adapters": {"a": {"model": "a", "path": "x"}}}, "a is the name of a model and of an adapter"),
        ({"adapters": {"x": {"model": "b", "path": "x"}}}, "adapter 'x' is for model 'b'; served are: a"),
        ({"adapters_at": {"b": "s3://x"}}, "for model 'b'"),
        ({"adapters_at": {"a": "/x"}}, "pattern"),
        ({"max_lora_rank": 7}, "Input should be 8"),
        ({"models": {"a#b": "x"}}, "no colon, no #"),
        ({"models": {"a.b": "x", "a_b": "y"}}, "models 'a.b' and 'a_b' would have one name for Ray"),
        ({"min_replicas": 3}, "min_replicas = 3 is more than max_replicas = 1"),
        ({"quue": 3}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_fit(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Endpoint.model_validate({"models": {"a": "x"}, "max_model_len": 10} | more)


def test_a_config_file_holds_what_was_set(tmp_path: Path) -> None:
    """And its arguments are the endpoint again, as Serve validates them."""
    made = Endpoint(models={"ä": "/m"}, max_model_len=10, max_output_tokens=4, keys="/keys.txt")
    config_file.write(tmp_path / "serve.yaml", made, Http("0.0.0.0", 8001))
    content = yaml.safe_load((tmp_path / "serve.yaml").read_text())
    (application,) = content["applications"]
    assert application["import_path"] == "serving.app:build" and content["http_options"]["port"] == 8001
    assert Endpoint.model_validate(application["args"]) == made and "queue" not in application["args"]
    assert made.output_tokens == 4 and made.engines == {"ä": "ä"}
