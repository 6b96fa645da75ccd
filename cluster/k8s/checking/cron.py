"""Schedules as KubeRay reads them: the standard parser of robfig/cron v3 (its docs, "CRON Expression Format")."""

import re

FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec".split()),
    ("day of week", 0, 6, "sun mon tue wed thu fri sat".split()),
)
NAMED = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
DURATION = re.compile(r"[+-]?(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+|[+-]?0")


def fault(schedule: str) -> str | None:
    """What is wrong with `schedule`, and what to write; None where nothing is."""
    if "TZ" in schedule:
        return "write the time zone in timeZone, not in the schedule"
    if schedule.startswith("@"):
        every = schedule.removeprefix("@every ")
        good = schedule in NAMED or (every != schedule and bool(DURATION.fullmatch(every)))
        return None if good else f"is none of {', '.join(NAMED)} and no `@every 1h30m`"
    parts = schedule.split()
    if len(parts) != len(FIELDS):
        return f"has {len(parts)} fields; write five: minute, hour, day of month, month, day of week"
    for text, (name, least, most, names) in zip(parts, FIELDS, strict=True):
        if not all(_is_range(part, least, most, list(names)) for part in text.split(",")):
            return f"the {name} is none from {least} to {most}, no range, no step and no `*`"
    return None


def _is_range(text: str, least: int, most: int, names: list[str]) -> bool:
    span, slash, step = text.partition("/")
    if slash and not (step.isdigit() and int(step)):
        return False
    if span in ("*", "?"):
        return True
    numbers = []
    for end in span.lower().split("-"):
        value = names.index(end) + least if end in names else int(end) if end.isdigit() else -1
        if not least <= value <= most:
            return False
        numbers.append(value)
    return len(numbers) <= 2 and numbers == sorted(numbers)
