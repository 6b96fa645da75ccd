"""A job's log as it is written, to its end and whatever happens to the connection; then its exit status."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from cluster.jobs.submit import Job, job

AGAIN = 2.0  # seconds between two tries to reach the dashboard
PATIENCE = 120.0  # seconds for which it may be away
TRIES = 3  # at the end of a log that ended before its job


def told(client: Any, job_id: str) -> Job:
    """What the cluster says of the job. Raises ValueError where it knows none by that id."""
    try:
        return job(client.get_job_info(job_id))
    except RuntimeError as error:
        if "status code 404" in str(error):
            raise ValueError(f"no job {job_id!r} on this cluster; `regrow jobs` lists them") from None
        raise


def follow(client: Any, job_id: str, write: Callable[[str], Any], say: Callable[[str], Any]) -> Job:
    """Hand the log to `write` as it comes, from its first line on, until the job ends; returns how it ended. Where the
    connection breaks it is made again, and nothing is written twice.

    Raises ConnectionError where the dashboard stays away for two minutes; the job is none the worse for it."""
    written, away, state = 0, 0.0, ""
    while True:
        try:
            now = told(client, job_id)
            away = 0.0
        except (OSError, RuntimeError) as error:  # requests' and aiohttp's are OSErrors, Ray's its own
            away = away or time.monotonic()
            if time.monotonic() - away > PATIENCE:
                raise ConnectionError(f"the cluster does not answer any more: {error}") from error
            time.sleep(AGAIN)
            continue
        if now.status != state and now.status == "PENDING":
            say(f"{job_id}: waits for the cluster{f' ({now.message})' if now.message else ''}")
        state = now.status
        if now.ended:
            _rest(client, job_id, written, write, say)
            return now
        if now.status != "PENDING":
            written = asyncio.run(_tail(client, job_id, written, write))
        time.sleep(0.5)


def log(client: Any, job_id: str) -> str:
    """All that the job has written so far. Raises RuntimeError where the cluster does not hand it over."""
    try:
        text: str = client.get_job_logs(job_id)
        return text
    except RuntimeError as error:
        why = "it is not UTF-8" if "UnicodeDecodeError" in str(error) else str(error).strip().splitlines()[0][:300]
        raise RuntimeError(f"the log of {job_id} cannot be read: {why}") from None


def exit_status(ended: Job) -> int:
    """Of the command that followed it: that of the job's own, where it got as far as to have one."""
    if ended.status == "SUCCEEDED":
        return 0
    if ended.status == "STOPPED":
        return 143
    return ended.exit_status or 1


async def _tail(client: Any, job_id: str, skip: int, write: Callable[[str], Any]) -> int:
    """Write the log from character `skip` on until the stream ends; returns how many characters are written then. A
    stream that breaks has ended: who called looks how the job is."""
    seen = 0
    async with contextlib.aclosing(client.tail_job_logs(job_id)) as stream:
        while True:
            try:
                part = await anext(stream)
            except (StopAsyncIteration, RuntimeError, OSError):
                return max(seen, skip)
            if seen + len(part) > skip:
                write(part[max(0, skip - seen) :])
            seen += len(part)


def _rest(client: Any, job_id: str, written: int, write: Callable[[str], Any], say: Callable[[str], Any]) -> None:
    """Write what the stream did not bring before it ended, or say why it cannot be had."""
    for left in reversed(range(TRIES)):
        try:
            text = log(client, job_id)
        except (RuntimeError, OSError) as error:
            if left:
                time.sleep(AGAIN)
                continue
            say(f"{error}; what is above may lack its end")
            return
        write(text[written:])
        return
