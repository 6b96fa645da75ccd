"""The benchmark of the importance pass: both of its sides compute the same thing, and its worked estimate adds up."""

import pytest

from benchmarks import prune_analysis


def test_the_two_sides_agree_and_a_difference_would_show() -> None:
    model, texts = prune_analysis.llama(), [text[:32] for text in prune_analysis.calibration(3)]
    ours, peer = prune_analysis.ours(model, texts), prune_analysis.peer(model, texts)
    assert sorted(ours) == list(range(1, prune_analysis.LAYERS))
    assert prune_analysis.agreement(ours, peer) < prune_analysis.TOLERANCE
    assert min(min(row) for row in ours.values()) > 1000 * prune_analysis.TOLERANCE, "distances that say something"
    peer[3][2] += 1e-4
    assert prune_analysis.agreement(ours, peer) == pytest.approx(1e-4, rel=0.5)
    with pytest.raises(ValueError):
        prune_analysis.agreement(ours, {n: row[1:] for n, row in peer.items()})


def test_the_estimate_by_hand() -> None:
    """2 × 6.98e9 weights × 5.12e6 tokens at 0.4 × 989 TFLOP/s are 181 s; the output layer has 0.525e9 weights."""
    said = prune_analysis.estimate()
    assert "1 pass, 7.15e+16 FLOP, 3.0 min" in said
    assert "31 passes, 2.38e+18 FLOP, 1.7 h; 138 MB of states and 131 MB of logits" in said
