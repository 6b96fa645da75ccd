"""What breaks while a student is trained: workers, drivers and nodes die, checkpoints are damaged, numbers and memory
run out. Real workers; attention drops out, so that random numbers are part of what is taken up again."""

import contextlib
import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import MistralConfig, MistralForCausalLM

from pipelines import train
from pipelines.student import Student
from pipelines.training import checkpoints
from tests import drivers, others, tiny, trainings
from tests.trainings import losses, recipe, when

pytestmark = pytest.mark.timeout(1800)
KILLS = int(os.environ.get("REGROW_SOAK_KILLS", "100"))
STUDENT = Student(
    name="sft", epochs=12, batch_tokens=160, micro_tokens=64, learning_rate=3e-3, checkpoint_steps=4, max_length=100
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return trainings.sums(tmp_path_factory.mktemp("data") / "rows.parquet")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in fp32."""
    return tiny.model_dir(tmp_path_factory.mktemp("pruned"), layers=2, attention_dropout=0.1)


@pytest.fixture(scope="module")
def unbroken(ray_session: None, pruned: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    assert train.train(recipe(2), STUDENT, pruned, data, out)["notes"] == []
    return out


def same(out: Path, unbroken: Path) -> None:
    """Assert that two trainings saw the same and made the same."""
    assert losses(out) == pytest.approx(losses(unbroken), rel=1e-6)
    made, expected = (load_file(folder / "model" / "model.safetensors") for folder in (out, unbroken))
    for name, weight in expected.items():
        torch.testing.assert_close(made[name], weight, rtol=1e-6, atol=1e-6)


def test_killed_workers_and_a_truncated_shard_change_nothing(
    unbroken: Path, pruned: Path, data: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = random.Random(1)

    def break_twice() -> None:
        when(lambda: trainings.whole(tmp_path))
        time.sleep(chosen.uniform(0, 0.5))
        chosen.choice(trainings.workers()).kill()
        here = trainings.whole(tmp_path)
        when(lambda: len(set(trainings.whole(tmp_path)) - set(here)) == 2)
        with trainings.at_rest() as workers:  # else the next checkpoint might come before the kill
            file = trainings.whole(tmp_path)[-1] / "__1_0.distcp"
            os.truncate(file, file.stat().st_size // 2)
            workers[-1].kill()

    breaking = threading.Thread(target=break_twice)
    breaking.start()
    summary = train.train(recipe(2), STUDENT, pruned, data, tmp_path)
    breaking.join()
    lost, damaged, back, again = summary["notes"]
    assert lost.startswith("sft: a worker was lost; goes on from step ")
    assert "is damaged: __" in damaged and " bytes of " in damaged
    step = int(damaged.split("checkpoint of step ")[1].split()[0])
    assert back == f"sft: goes on from step {step - STUDENT.checkpoint_steps}" and again.endswith(back[5:])
    said = capfd.readouterr().err
    assert all(note in said for note in summary["notes"])
    same(tmp_path, unbroken)


def test_a_node_dies_and_another_comes(unbroken: Path, pruned: Path, data: str, tmp_path: Path) -> None:
    """Two nodes with room for a worker each, one of which is lost: the training waits for the next, and says so."""
    out, log = tmp_path / "out", tmp_path / "log"
    with drivers.cluster(cpus=0) as cluster:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=128 << 20) for _ in range(2)]
        driver = trainings.driver(cluster.address, recipe(2), STUDENT, pruned, data, out, log)
        when(lambda: trainings.whole(out))
        cluster.remove_node(nodes[0], allow_graceful=False)
        when(lambda: "the cluster has 1 CPUs, cluster.workers = 2 needs as many" in " ".join(log.read_text().split()))
        cluster.add_node(num_cpus=1, object_store_memory=128 << 20)
        assert driver.wait() == 0
    assert re.search(r"sft: a worker was lost; goes on from step \d+", log.read_text())
    same(out, unbroken)


def test_fewer_gpus_than_workers_are_waited_for(pruned: Path, data: str, tmp_path: Path) -> None:
    """Not made up for by CPUs without a word. The GPU is one by name: no worker gets as far as to use it."""
    out, log = tmp_path / "out", tmp_path / "log"
    with drivers.cluster(cpus=2) as cluster:
        cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=128 << 20)
        asked = recipe(2, address=cluster.address)
        driver = trainings.driver(cluster.address, asked, STUDENT, pruned, data, out, log)
        when(lambda: "the cluster has 1 GPUs, cluster.workers = 2 needs as many" in " ".join(log.read_text().split()))
        driver.kill()
        driver.wait()
    assert not list(out.glob("checkpoints/step-*"))


def test_validation_that_is_no_number_stops(ray_session: None, tmp_path: Path) -> None:
    """A word that only the validation rows hold has no numbers in the embedding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.model_dir(tmp_path / "model", layers=2, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[AutoTokenizer.from_pretrained(folder).encode("~")] = torch.nan
    model.save_pretrained(folder)
    rows, held = trainings.sums(tmp_path / "rows.parquet"), str(tmp_path / "held.parquet")
    pq.write_table(pa.Table.from_pylist([{"id": "v", "prompt": "What is 1 ~ 2?", "target": "3."}]), held)
    student = STUDENT.model_copy(update={"validation_steps": 6})
    said = r"^sft: the validation loss is nan after step 6 of \d+, .* Last good checkpoint: step 4, "
    with pytest.raises(RuntimeError, match=said):
        train.train(recipe(1), student, folder, rows, tmp_path / "out", held)
    assert len(trainings.whole(tmp_path / "out")) == 1


def test_numbers_that_run_out_stop_before_the_weights_are_spoiled(
    regrow: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """A rate that throws the weights out of all bounds: the step after ends the command, at once and for good."""
    tiny.run_home(tmp_path)
    with (tmp_path / "mine.toml").open("a") as file:
        file.write('[[student]]\nname = "sft"\nlearning_rate = 1e30\nepochs = 9\ncheckpoint_steps = 1\n')
    ended = regrow("run", "mine.toml", "cluster.workers=1", "--until", "train")
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr and "goes on from" not in ended.stderr
    message = ended.stderr.strip().splitlines()[-1]
    said = re.search(r"step (\d+) of 9 has the loss \S+ and the gradient norm (nan|inf); .*\. 5 rows of it: ", message)
    last = re.search(r"Last good checkpoint: step (\d+), (\S+)\. ", message)
    assert said and last and int(last[1]) == int(said[1]) - 1, message
    assert checkpoints.damage(Path(last[2])) == ""
    (rows,) = tmp_path.glob("runs/mine/artifacts/prepare-*/train.parquet")
    ids = pq.read_table(rows).column("id").to_pylist()
    assert sorted(message.split("rows of it: ")[1].split(". ")[0].split(", ")) == sorted(ids)


def test_memory_that_runs_out_names_what_helps(ray_session: None, tmp_path: Path) -> None:
    """A row of 10⁵ tokens under a sliding window, whose mask is of its length squared, in a worker that may have 64 GiB
    of addresses: torch's own allocator refuses."""
    words = tiny.tokenizer()
    config = MistralConfig(**others.SHAPE, sliding_window=others.WINDOW, head_dim=32, vocab_size=len(words))
    MistralForCausalLM(config).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    long = {"id": "long", "prompt": "What is 1 + 1?" * 15_000, "target": "2"}
    rows = trainings.sums(tmp_path / "rows.parquet", long)
    student = Student(name="sft", batch_tokens=10**6, micro_tokens=10**6, max_length=10**6)
    limits = (64 << 30, 64 << 30)
    limiting = threading.Thread(
        target=lambda: when(trainings.workers, lambda: trainings.workers()[0].rlimit(psutil.RLIMIT_AS, limits))
    )
    limiting.start()
    with pytest.raises(RuntimeError) as caught:
        train.train(recipe(1), student, tmp_path / "model", rows, tmp_path / "out")
    limiting.join()
    message = str(caught.value)
    assert message.startswith("sft: a worker ran out of memory") and "can't allocate memory" in message
    knobs = ("micro_tokens=", "activation_checkpointing=true", "max_length=", "cluster.workers=2", "lora_rank=")
    places = [message.index(knob) for knob in knobs]
    assert places == sorted(places)
    assert not (tmp_path / "out" / "checkpoints" / "notes.jsonl").exists(), "it was not tried again"


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_soak(unbroken: Path, pruned: Path, data: str, tmp_path: Path) -> None:
    """REGROW_SOAK_KILLS (100) kills of workers and drivers at random instants, over as many trainings as they take."""
    chosen, finished, log = random.Random(KILLS), 0, tmp_path / "log"
    with drivers.cluster(cpus=2) as cluster:

        def started() -> subprocess.Popen[bytes]:
            out = tmp_path / str(finished)
            return trainings.driver(cluster.address, recipe(2), STUDENT, pruned, data, out, log)

        driver = started()
        for kill in range(KILLS):
            time.sleep(chosen.uniform(0, 15))
            if driver.poll() == 0:
                same(tmp_path / str(finished), unbroken)
                finished += 1
            elif driver.returncode is None and kill % 3 and (found := trainings.workers()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    chosen.choice(found).kill()
                continue
            elif driver.returncode is None:
                driver.kill()
                driver.wait()
            else:  # too many kills without a checkpoint in between
                assert "3 times between step" in log.read_text()[-3000:]
            driver = started()
        driver.wait()
        if driver.returncode:
            assert started().wait() == 0
    same(tmp_path / str(finished), unbroken)
    print(f"{KILLS} kills, {finished + 1} trainings; damaged: {log.read_text().count('is damaged')}")
