"""How large the usual lm-eval tasks are, for plans. Items and choices are the data sets' own; tokens are rough means.

Items: ARC-Challenge test (arXiv 1803.05457), GSM8K test (2110.14168), MMLU test (2009.03300), HellaSwag validation
(1905.07830), WinoGrande XL validation (1907.10641), TruthfulQA multiple choice (2109.07958). Tokens of one item
are an estimate of this project for a vocabulary of about 128,000.
"""

from typing import NamedTuple


class Size(NamedTuple):
    """`items`; `requests` an item (a choice each); `tokens` of one item and of each example before it; `fixed`
    tokens before them all; `written`: tokens that are generated (0: only scored); `shots`: the task's own number;
    `parts`: tasks it is a group of."""

    items: int
    requests: float
    tokens: float
    fixed: float = 0
    written: float = 0
    shots: int = 0
    parts: int = 1


SIZES = {
    "arc_challenge": Size(1_172, 4, 40),
    "arc_easy": Size(2_376, 4, 35),
    "gsm8k": Size(1_319, 1, 165, written=150, shots=5),
    "mmlu": Size(14_042, 4, 115, parts=57),
    "hellaswag": Size(10_042, 4, 90),
    "winogrande": Size(1_267, 2, 27),
    "truthfulqa_mc2": Size(817, 7.2, 35, fixed=150),
}
