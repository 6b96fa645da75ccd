"""The benchmark of generation: rates by hand, sides that did different work, lengths that prompts state."""

from pathlib import Path

import pytest

from benchmarks import counting_llama, generate_sides, generate_throughput


def run(steady: float, tokens: int = 1000, prompt_tokens: int = 50) -> dict[str, float]:
    return {"steady": steady, "whole": steady / 2, "tokens": tokens, "prompt_tokens": prompt_tokens, "seconds": 9.0}


def test_a_steady_rate_leaves_out_ramp_up_and_tail() -> None:
    """100 tokens in a slow first 100 s, 850 at 10 a second, 50 in a slow last 100 s."""
    curve = [(0.0, 0), (100.0, 100), (185.0, 950), (285.0, 1000)]
    assert generate_sides.steady(curve) == pytest.approx(10.0)
    assert generate_sides.steady([(0.0, 0), (185.0, 950), (285.0, 1000)]) == pytest.approx(950 / 185)


def test_a_ratio_is_the_median_over_pairs_not_of_medians() -> None:
    found = {"ours": [run(90.0), run(50.0), run(100.0)], "peer": [run(100.0), run(50.0), run(80.0)]}
    said = generate_throughput.summary(found)
    assert (said["ratio"], said["ratio, range"], said["equal"]) == (1.0, [0.9, 1.25], True)
    assert (said["ours"], said["peer"]) == (90.0, 80.0)
    before = generate_throughput.figures({"tiny": {"ours": [run(9.0)], "peer": [run(10.0)]}}, {})
    figures = generate_throughput.figures({"even": found}, before)
    assert (figures["ratio"], figures["held"], figures["workloads"]["tiny"]["ratio"]) == (1.0, False, 0.9)


@pytest.mark.parametrize("other", [run(1.0, tokens=1011), run(1.0, prompt_tokens=51)], ids=["written", "read"])
def test_sides_that_did_different_work_are_no_comparison(other: dict[str, float]) -> None:
    generate_throughput.check("even", {"ours": [run(1.0)], "peer": [run(1.0, tokens=1009)]})
    with pytest.raises(SystemExit, match="did not do the same work"):
        generate_throughput.check("even", {"ours": [run(1.0)], "peer": [other]})


def test_lengths_have_the_spread_that_is_said() -> None:
    even, tailed = (counting_llama.lengths(1200, tail) for tail in (False, True))
    assert min(even) == 48 and max(even) == 80
    assert min(tailed) == 8 and max(tailed) == 512 and sum(length > 350 for length in tailed) / 1200 > 0.01
    assert sum(even) / 1200 == pytest.approx(64, abs=1) and sum(tailed) / 1200 == pytest.approx(64, abs=3)


def test_a_text_is_as_long_as_its_prompt_says(tmp_path: Path) -> None:
    """The model itself, by transformers: what vLLM writes is compared by the benchmark."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = counting_llama.save(tmp_path, small=True)
    words, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for prompt, length in zip(counting_llama.prompts(3, False), counting_llama.lengths(3, False), strict=True):
        asked = torch.tensor([words(prompt).input_ids])
        assert asked[0, -1] == length and asked.shape[1] == len(prompt.split())
        written = model.generate(asked, max_new_tokens=100, do_sample=False)[0, asked.shape[1] :]
        assert written.tolist() == list(reversed(range(length)))
