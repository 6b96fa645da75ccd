"""A job's log as it is written, to its end and whatever happens to the connection; then its exit status."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from cluster.jobs.submit import Job, job

AGAIN = 2.0  # seconds between two tries to reach the dashboard
PATIENCE = 120.0  # seconds for which it may be away


def told(client: Any, job_id: str) -> Job:
    """What the cluster says of the job. Raises ValueError where it knows none by that id."""
    try:
        return job(client.get_job_info(job_id))
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
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
            if now.status != state and now.status == "PENDING":
                say(f"{job_id}: waits for the cluster{f' ({now.message})' if now.message else ''}")
            state = now.status
            if now.status != "PENDING":
                written = asyncio.run(_tail(client, job_id, written, write))
                now = told(client, job_id)
            away = 0.0
        except (OSError, RuntimeError) as error:  # requests' and aiohttp's are OSErrors, Ray's its own
            away = away or time.monotonic()
            if time.monotonic() - away > PATIENCE:
                raise ConnectionError(f"the cluster does not answer any more: {error}") from error
            time.sleep(AGAIN)
            continue
        if now.ended:
            return _whole(client, job_id, written, write, now)
        time.sleep(0.5)


def exit_status(ended: Job) -> int:
    """Of the command that followed it: that of the job's own, where it got as far as to have one."""
    if ended.status == "SUCCEEDED":
        return 0
    if ended.status == "STOPPED":
        return 143
    return ended.exit_status or 1


async def _tail(client: Any, job_id: str, skip: int, write: Callable[[str], Any]) -> int:
    """Write the log from character `skip` on until the stream ends; returns how many characters are written then."""
    seen = 0
    stream = client.tail_job_logs(job_id)
    async with contextlib.aclosing(stream):
        with contextlib.suppress(RuntimeError, OSError):  # a broken stream: who called looks how the job is
            async for part in stream:
                if seen + len(part) > skip:
                    write(part[max(0, skip - seen) :])
                seen += len(part)
    return max(seen, skip)


def _whole(client: Any, job_id: str, written: int, write: Callable[[str], Any], ended: Job) -> Job:
    """Write what the stream did not bring before it ended."""
    with contextlib.suppress(RuntimeError, OSError):  # a job that never started has no log
        text = client.get_job_logs(job_id)
        write(text[written:])
    return ended
