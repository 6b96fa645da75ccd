"""The benchmark of exported sub-networks: speeds and ratios by hand."""

import pytest

from benchmarks import ifp_serving


def test_a_speed_is_that_of_the_median_step_after_the_prompt() -> None:
    """Four steps that read prompts, slow ones; then 0.1 s each, and one that somebody got in the way of."""
    ended = [1.0, 2.0, 3.0, 4.0, 4.1, 4.2, 4.9, 5.0, 5.1]
    assert ifp_serving.speed(ended, 8) == pytest.approx(80.0)


def test_a_ratio_is_the_median_over_runs_and_every_size_must_hold() -> None:
    found = {
        "ours": [{"1": 90.0, "8": 97.0}, {"1": 50.0, "8": 97.0}, {"1": 100.0, "8": 97.0}],
        "peer": [{"1": 100.0, "8": 100.0}, {"1": 50.0, "8": 100.0}, {"1": 80.0, "8": 100.0}],
        "unpruned": [{"1": 45.0, "8": 50.0}] * 3,
    }
    said = ifp_serving.figures(found, [1, 8])
    assert (said["ratio"], said["ours"], said["peer"]) == (1.0, 90.0, 80.0)
    first, second = said["by requests at once"].values()
    assert first["ratio, range"] == [0.9, 1.25] and first["ratio to the unpruned model"] == 2.0
    assert second["ratio"] == 0.97 and not said["held"]
    assert ifp_serving.figures(found, [1])["held"]
