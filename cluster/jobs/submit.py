"""One regrow run as Ray jobs: each submission is a job of its own, and all of one run carry the run's id."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from cluster import storage

RUN = "regrow.run"  # keys of a job's metadata
NAME = "regrow.name"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Job(NamedTuple):
    """A job of regrow: its submission id, the run it belongs to, Ray's status and message, seconds since the epoch of
    start and end (None: not yet), and the exit status of `regrow run` (None: not known)."""

    id: str
    run: str
    name: str
    status: str
    message: str
    start: float | None
    end: float | None
    exit_status: int | None

    @property
    def ended(self) -> bool:
        """Whether it is over, for better or worse."""
        return self.status in ENDED


def run_id(name: str, run_dir: str) -> str:
    """What identifies a run on any cluster: its name and where its artifacts go. So the same recipe submitted again,
    to the same cluster or another, is the same run and goes on from what is there."""
    word = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    local = storage.is_local(run_dir)
    where = os.path.normpath(run_dir.removeprefix("file://")) if local else run_dir.replace("s3a://", "s3://", 1)
    return f"{word}-{hashlib.sha256(where.rstrip('/').encode()).hexdigest()[:8]}"


def jobs(client: Any) -> list[Job]:
    """Regrow's jobs on the cluster, the newest first."""
    found = [job(one) for one in client.list_jobs() if RUN in (one.metadata or {})]
    return sorted(found, key=lambda one: one.start or float("inf"), reverse=True)


def job(told: Any) -> Job:
    """A job of what the Jobs API tells of it (ray.job_submission.JobDetails)."""
    about = told.metadata or {}
    start, end = (None if at is None else at / 1000 for at in (told.start_time, told.end_time))
    run, name = about.get(RUN, ""), about.get(NAME, "")
    status = getattr(told.status, "value", str(told.status))
    return Job(told.submission_id, run, name, status, told.message or "", start, end, told.driver_exit_code)


def submit(client: Any, folder: Path, entrypoint: str, run: str, name: str, environment: dict[str, str]) -> str:
    """Submit `entrypoint` (a shell command) with `folder` as its working directory; returns the submission id: the
    run's id and a number. `environment` of the job stands in Ray's logs and on its dashboard: no secrets.

    Raises ValueError where the run is under way already."""
    before = [one for one in jobs(client) if one.run == run]
    if going := next((one for one in before if not one.ended), None):
        raise ValueError(f"this run is under way as job {going.id} ({going.status.lower()})")
    numbers = [int(one.id.rpartition("-")[2]) for one in before if one.id.rpartition("-")[2].isdigit()]
    job_id = f"{run}-{max(numbers, default=0) + 1}"
    os.environ.setdefault("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")  # such a file in the folder speaks of git alone
    what: dict[str, Any] = {"working_dir": str(folder), "env_vars": environment}
    metadata = {RUN: run, NAME: name}
    try:
        done: str = client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=what, metadata=metadata)
    except RuntimeError as error:
        if "already exists" in str(error):
            raise ValueError(f"this run was submitted by somebody else just now as job {job_id}") from None
        raise
    return done
