"""A RayJob's status (KubeRay 1.7, `rayjob_types.go`) in words, and how it ended. Pure."""

import datetime
import re
from typing import Any, NamedTuple

TAIL = re.compile(r"last available logs[^:]*:\s*", re.I)  # Ray appends the driver's last lines to its message
WHY = {
    "AppFailed": "the job's command failed",
    "SubmissionFailed": "the job could not be submitted to the Ray cluster",
    "DeadlineExceeded": "it ran longer than spec.activeDeadlineSeconds allows, and is not tried again",
    "PreRunningDeadlineExceeded": "it was not running within spec.preRunningDeadlineSeconds",
    "JobStatusCheckTimeoutExceeded": "KubeRay could not ask the Ray head for the job's status for too long",
    "JobDeploymentStatusTransitionGracePeriodExceeded": "its last state was not confirmed in time",
    "ValidationFailed": "KubeRay refuses the RayJob",
}


class End(NamedTuple):
    """How a RayJob ended: the exit status of whoever follows it, and what to say."""

    status: int
    text: str


def phrase(job: dict[str, Any]) -> str:
    """One line on where `job` is now; equal lines mean that nothing changed for a reader."""
    status = job.get("status") or {}
    state, cluster = status.get("jobDeploymentStatus") or "New", status.get("rayClusterName") or ""
    if job["metadata"].get("deletionTimestamp"):
        return "being deleted"
    if state == "New":
        failed = status.get("failed") or 0
        return f"New: attempt {failed + 1} is next" if failed else "New: waits for KubeRay's operator"
    if state == "Initializing":
        return f"Initializing: Ray cluster {cluster} starts"
    if state == "Waiting":
        return f"Waiting: Ray cluster {cluster} is up; submitting is left to you (InteractiveMode)"
    if state == "Running":
        return f"Running: Ray job {status.get('jobId')} on {cluster} ({status.get('jobStatus') or 'submitting'})"
    if state == "Retrying":
        return f"Retrying: attempt {status.get('failed')} failed ({first(job)}); a new cluster goes on from there"
    if state in ("Suspending", "Suspended"):
        return f"{state}: no pods are held"
    return f"{state}: {status.get('jobStatus') or status.get('reason') or ''}".rstrip(": ")


def end(job: dict[str, Any]) -> End | None:
    """How `job` ended, or None while it may go on. Status 0: succeeded; 1: failed or stopped."""
    status = job.get("status") or {}
    state, result = status.get("jobDeploymentStatus"), status.get("jobStatus")
    name, took = job["metadata"]["name"], _took(status)
    if state == "ValidationFailed":
        return End(1, f"RayJob {name}: {WHY['ValidationFailed']}: {status.get('message')}")
    if state == "Complete" and result == "SUCCEEDED":
        return End(0, f"RayJob {name} succeeded{took}")
    if state == "Complete":
        return End(1, f"RayJob {name} ended{took} as {result}: somebody stopped the Ray job; submit again to go on")
    if state != "Failed":
        return None
    spec = job.get("spec") or {}
    tries, failed = (spec.get("backoffLimit") or 0) + 1, status.get("failed") or 1
    used = f", {failed} of {tries} attempts used" if tries > 1 else ""
    return End(1, f"RayJob {name} failed{took}{used}: {first(job)}; submit again to go on from what is done")


def first(job: dict[str, Any]) -> str:
    """Why it failed: KubeRay's reason in words, and its message's first line."""
    status = job.get("status") or {}
    reason, message = status.get("reason") or "", TAIL.split(status.get("message") or "", maxsplit=1)[0].strip()
    said = message.splitlines()[0].rstrip(" ,.") if message else ""
    return ": ".join(part for part in (WHY.get(reason, reason) or "no reason given", said) if part)


def tail(job: dict[str, Any], lines: int = 20) -> list[str]:
    """The driver's last lines that Ray put into the status, for whom the log itself is gone."""
    parts = TAIL.split((job.get("status") or {}).get("message") or "", maxsplit=1)
    return parts[1].splitlines()[-lines:] if len(parts) > 1 else []


def _took(status: dict[str, Any]) -> str:
    try:
        began, ended = (datetime.datetime.fromisoformat(status[name]) for name in ("startTime", "endTime"))
    except (KeyError, ValueError):
        return ""
    return f" after {datetime.timedelta(seconds=round((ended - began).total_seconds()))}"
