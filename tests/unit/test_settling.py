"""What an output directory is bound to: written once, compared later, on a disk and on S3."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from pipelines.generation import job as jobs
from pipelines.generation import settling
from pipelines.generation.job import Job
from pipelines.recipe_file import BadInput


@pytest.fixture(params=["disk", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output of this test's own."""
    if request.param == "disk":
        return str(tmp_path / "out")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}/out"


def job(output: str, **settings: Any) -> tuple[Job, dict[str, Any]]:
    """A job and its fingerprint."""
    made = Job(**{"model": "echo", "output": output} | settings)
    return made, jobs.fingerprint(made, None, {"prompt": "string"})


def test_an_empty_output_is_bound(output: str) -> None:
    asked, fingerprint = job(output, seed=1)
    assert settling.settings(output) is None
    assert settling.settle(asked, fingerprint, new=False) == asked
    there = settling.settings(output)
    assert there and there["fingerprint"] == fingerprint
    assert Job.model_validate(there["settings"]) == asked


def test_the_same_texts_go_on_there(output: str) -> None:
    """The settings of the first go stay, whatever speed is asked for later."""
    settling.settle(*job(output), new=False)
    there = settling.settings(output)
    faster, fingerprint = job(output, engines=4, shard_rows=8, limit=3)
    assert settling.settle(faster, fingerprint, new=False) == faster
    assert settling.settle(faster, fingerprint, new=True) == faster, "--new is for other texts alone"
    assert settling.settings(output) == there


def test_other_texts_are_refused_with_what_differs(output: str) -> None:
    settling.settle(*job(output), new=False)
    there = settling.settings(output)
    with pytest.raises(BadInput) as caught:
        settling.settle(*job(output, seed=2, temperature=0.5), new=False)
    said = str(caught.value).splitlines()
    assert said[0] == f"{output} holds texts that were made otherwise, and the two are not mixed:"
    assert said[1:3] == ["  seed: 0 there, 2 asked", "  temperature: 0.0 there, 0.5 asked"]
    assert "--new" in said[3]
    assert settling.settings(output) == there


def test_new_starts_beside_and_is_found_again(output: str) -> None:
    first = job(output)
    settling.settle(*first, new=False)
    other, fingerprint = job(output, seed=2)
    beside = settling.settle(other, fingerprint, new=True)
    assert beside == other.model_copy(update={"output": f"{output}-{jobs.name_of(fingerprint)}"})
    assert settling.settle(other, fingerprint, new=True) == beside
    third = settling.settle(*job(f"{output}/", seed=3), new=True).output
    assert third.startswith(f"{output}-") and third != beside.output
    assert settling.settle(*first, new=False).output == output


def test_of_two_at_once_one_binds(output: str) -> None:
    """Eight jobs, each with texts of its own, meet at an empty output: one has it, the others are told."""
    ready, ends = threading.Barrier(8), list[Any]()

    def settle(seed: int) -> None:
        asked, fingerprint = job(output, seed=seed)
        ready.wait()
        try:
            ends.append(settling.settle(asked, fingerprint, new=False).seed)
        except BadInput as error:
            ends.append(str(error))

    threads = [threading.Thread(target=settle, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (end for end in ends if isinstance(end, int))
    told = [end for end in ends if isinstance(end, str)]
    assert len(told) == 7 and all(f"seed: {winner} there, " in one for one in told)
    there = settling.settings(output)
    assert there and there["fingerprint"]["seed"] == winner


def test_equal_jobs_may_meet(output: str) -> None:
    asked, fingerprint = job(output)
    ready, ends = threading.Barrier(4), list[str]()

    def settle() -> None:
        ready.wait()
        ends.append(settling.settle(asked, fingerprint, new=False).output)

    threads = [threading.Thread(target=settle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [output] * 4


def test_one_process_writes_at_a_time(output: str) -> None:
    """While a job is at work in it, a second is told; afterwards it is free."""
    with settling.claimed(output), pytest.raises(BadInput, match="give another --output"), settling.claimed(output):
        raise AssertionError("two writers")
    with settling.claimed(output):
        pass


def test_settings_are_readable(tmp_path: Path) -> None:
    settling.settle(*job(str(tmp_path / "out"), stop=("###",)), new=False)
    content = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert content["settings"]["stop"] == ["###"] and content["created"].startswith("20")
    assert settling.settings(str(tmp_path / "out" / "settings.json")) is None, "a file is no output"
