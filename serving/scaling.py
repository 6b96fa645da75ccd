"""How many engines a model has: Ray Serve adds and removes replicas by the requests that are under way."""

from typing import Any

from serving.settings import Bounds

FULL = 0.8  # of an engine's seats: with more taken than that on average, the next engine is started
METRICS_SECONDS, LOOK_BACK_SECONDS, UP_SECONDS = 1.0, 5.0, 2.0  # Serve's own are 10, 30 and 30


def options(bounds: Bounds, least: int | None = None) -> dict[str, Any]:
    """A deployment's part of it, with `least` engines at least, else `min_replicas`. Where that is none, a model that
    nobody asks has none, and the next request waits for one to start. An engine that is to go gets no new requests, and
    the deadline for those it has (docs.ray.io, Serve, "Advanced Ray Serve Autoscaling")."""
    seats = bounds.max_num_seqs
    least = bounds.min_replicas if least is None else least
    drained = {"graceful_shutdown_timeout_s": bounds.timeout_seconds, "graceful_shutdown_wait_loop_s": 0.1}
    if bounds.max_replicas == 1 == least:
        return {"num_replicas": 1, "max_ongoing_requests": 4 * seats} | drained
    return {
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": bounds.max_replicas,
            "initial_replicas": least,
            "target_ongoing_requests": max(1.0, FULL * seats),
            "metrics_interval_s": METRICS_SECONDS,
            "look_back_period_s": LOOK_BACK_SECONDS,
            "upscale_delay_s": UP_SECONDS,
            "downscale_delay_s": bounds.idle_seconds,
            "downscale_to_zero_delay_s": bounds.idle_seconds,
        },
        # What an engine has no seat for waits before the engines, not in one: the next that comes up takes it.
        "max_ongoing_requests": seats + max(1, seats // 4),
    } | drained
