"""The parts of the Jobs API's client that need no cluster (the rest: tests/integration/test_submit.py)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import gpus
from cluster.jobs import connect, follow, submit


@pytest.mark.parametrize("token", ["planted en", "planted\nen", "plänted", "planted\0", ""])
@pytest.mark.parametrize("source", ["file", "variable", "named"])
def test_a_token_that_cannot_be_one_is_refused_unshown(
    token: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(token)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    if source == "variable":
        if not token or "\0" in token:
            pytest.skip("no variable can be that")
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    elif source == "named":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ValueError, match="does not hold one token") as refused:
        connect.connect("http://127.0.0.1:9", tmp_path / "token" if source == "file" else None)
    assert "pl" not in str(refused.value).replace(str(tmp_path), "")


def test_one_run_has_one_id_however_its_directory_is_written() -> None:
    assert submit.run_id("Mine.v2", "/a/b") == submit.run_id("mine-v2", "file:///a/./c/../b/")
    assert submit.run_id("x", "s3://b/x/") == submit.run_id("x", "s3a://b/x")
    assert submit.run_id("x", "s3://b/x") != submit.run_id("x", "s3://b/y")


class Cluster:
    """A job whose log ends as `log` says, and whose stream brings what is in `streamed`."""

    def __init__(self, streamed: list[str], log: str | Exception, status: str = "SUCCEEDED") -> None:
        self.streamed, self.log = streamed, log
        self.statuses = iter(["RUNNING", status])

    def get_job_info(self, _: str) -> Any:
        about = {"start_time": 1, "end_time": 2, "driver_exit_code": 0, "message": "", "metadata": {}}
        return SimpleNamespace(submission_id="x", status=next(self.statuses), **about)

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for part in self.streamed:
            yield part
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_logs(self, _: str) -> str:
        if isinstance(self.log, Exception):
            raise self.log
        return self.log


def test_what_a_broken_stream_did_not_bring_comes_at_the_end() -> None:
    seen = list[str]()
    follow.follow(Cluster(["one\n", "tw"], "one\ntwo\nthree\n"), "x", seen.append, print)
    assert "".join(seen) == "one\ntwo\nthree\n"


def test_a_log_that_cannot_be_read_to_its_end_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "AGAIN", 0.0)
    said, failing = list[str](), RuntimeError("status code 500: Traceback…\nUnicodeDecodeError: 'utf-8' codec…")
    follow.follow(Cluster(["one\n"], failing), "x", lambda _: None, said.append)
    assert said == ["the log of x cannot be read: it is not UTF-8; what is above may lack its end"]


def test_whoever_reads_the_log_and_goes_away_ends_it() -> None:
    def gone(_: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        asyncio.run(follow._tail(Cluster(["one\n"], ""), "x", 0, gone))
    with pytest.raises(BrokenPipeError):
        follow.follow(Cluster(["one\n"], "one\n"), "x", gone, print)


def test_only_a_404_means_that_there_is_no_such_job() -> None:
    def answers(text: str) -> Any:
        def get(_: str) -> Any:
            raise RuntimeError(f"Request failed with status code {text}.")

        return SimpleNamespace(get_job_info=get)

    with pytest.raises(ValueError, match="no job 'x-40412-1'"):
        follow.told(answers("404: Job x-40412-1 does not exist"), "x-40412-1")
    with pytest.raises(RuntimeError, match="502"):
        follow.told(answers("502: Bad gateway for x-40412-1"), "x-40412-1")


def test_gpus_that_are_promised_count_and_nonsense_is_refused(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(gpus.PROMISED, raising=False)
    assert gpus.there() == 0
    monkeypatch.setenv(gpus.PROMISED, "8")
    assert gpus.there() == 8
    monkeypatch.setenv(gpus.PROMISED, "many")
    with pytest.raises(ValueError, match="REGROW_GPUS='many' is no number of GPUs"):
        gpus.there()
