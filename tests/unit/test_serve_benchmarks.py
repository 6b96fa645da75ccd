"""The benchmarks of serving: their figures, from outcomes by hand."""

import pytest

from benchmarks import serve_overload, serve_throughput
from serving.load import Outcome


def answered(sent: float, first: float, seconds: float = 1.0) -> Outcome:
    return Outcome(sent, 200, seconds, first, 64, 64)


def test_ratios_are_of_neighbours() -> None:
    ours = [{"tokens": 95.0, "p50": 0.2, "p95": 0.4}, {"tokens": 50.0, "p50": 0.2, "p95": 0.4}]
    peer = [{"tokens": 100.0, "p50": 0.2, "p95": 0.4}, {"tokens": 50.0, "p50": 0.1, "p95": 0.4}]
    told = serve_throughput.summary({"ours": ours, "peer": peer})
    assert told["ratio"] == 0.975 and told["ratio, range"] == [0.95, 1.0]
    assert told["first token p50, ratio"] == 1.5 and not told["held"]
    with pytest.raises(SystemExit, match="not every request was answered in full"):
        serve_throughput.figures([answered(0, 0.1), Outcome(0, 200, 1, 0.1, 64, 63)], [64, 64])


def test_goodput_refusals_and_recovery() -> None:
    """Nine answers and ninety refusals in ten seconds, where ten answers are possible; back after the second probe."""
    flood = [answered(number, 0.5) for number in range(9)] + [Outcome(1, 429, 0.01, 0, 0, 0)] * 90
    flood.append(answered(8, 0.5, 2.0))
    idle, after = [answered(0, 0.1), answered(1, 0.2)], [answered(0, 3.0), answered(3, 0.3)]
    told = serve_overload.summary(1.0, idle, flood, after, 5 << 20)
    assert told["ratio"] == 1.0 and told["statuses"] == {"200": 10, "429": 90} and told["grown"] == 5
    assert told["first token, idle"] == 0.2 and told["as before after"] == 3.3 and told["held"]
    slow = [*flood, *[Outcome(1, 429, 0.3, 0, 0, 0)] * 90]
    assert not serve_overload.summary(1.0, idle, slow, after, 0)["held"]
    assert serve_overload.summary(1.0, idle, flood, after[:1], 0)["as before after"] is None
