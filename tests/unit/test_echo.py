"""The writer without a model."""

import asyncio
import time

import pytest

from serving.writers.echo import Echo
from serving.writers.request import Request, Sample, Sampling, Written


@pytest.mark.parametrize(
    ("prompt", "written"),
    [
        ("one  two", Written([Sample("one two", "stop", 2)] * 2, 2)),
        ("one two\nthree four", Written([Sample("one two three", "length", 3)] * 2, 4)),
        ([{"content": "no"}, {"role": "user", "content": "yes"}], Written([Sample("yes", "stop", 1)] * 2, 1)),
        ("", Written([Sample("", "stop", 0)] * 2, 0)),
        ([], Written([Sample("", "stop", 0)] * 2, 0)),
    ],
)
def test_the_prompts_words_come_back(prompt: str | list[dict[str, str]], written: Written) -> None:
    assert asyncio.run(Echo(Sampling(max_tokens=3, n=2)).write(Request("k", prompt))) == written


def test_a_row_takes_as_long_as_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGROW_ECHO_SECONDS", "0.05")
    began = time.monotonic()
    asyncio.run(Echo(Sampling()).write(Request("k", "p")))
    assert time.monotonic() - began >= 0.04


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf"])
def test_seconds_that_are_none_are_named(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("REGROW_ECHO_SECONDS", given)
    with pytest.raises(ValueError, match=f"REGROW_ECHO_SECONDS is '{given}'"):
        Echo(Sampling())
