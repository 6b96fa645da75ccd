"""Prometheus metrics of a job, through Ray: every process that works for it counts, Ray's agent on its node exports."""

import functools
from typing import Any

NAMES = {
    "regrow_generate_rows": "Rows answered by engines",
    "regrow_generate_prompt_tokens": "Tokens read",
    "regrow_generate_completion_tokens": "Tokens written",
    "regrow_generate_engine_restarts": "Engines brought up again after they died",
    "regrow_generate_samples": "Samples committed, by verdict",
    "regrow_generate_quarantined": "Rows committed to quarantine",
}

COUNTED = {  # what engines count → the end of its metric's name
    "rows": "rows", "prompt_tokens": "prompt_tokens", "completion_tokens": "completion_tokens",
    "restarts": "engine_restarts",
}  # fmt: skip


def count(name: str, amount: float, **tags: str) -> None:
    """Add `amount` to the counter `name`, one of `NAMES`; under Prometheus it ends in `_total`."""
    if amount > 0:
        _counter(name, tuple(tags)).inc(amount, tags=tags)


@functools.cache
def _counter(name: str, tags: tuple[str, ...]) -> Any:
    from ray.util.metrics import Counter

    return Counter(name, description=NAMES[name], tag_keys=tags)
