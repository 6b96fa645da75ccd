"""A random Llama that counts down: the last word of a prompt says how many tokens its text has.

Word k's embedding is the output layer's row for word k - 1, and word 0 ends the text. All other weights are random, as
transformers initialises them, and every one is computed with; the embeddings are so large beside what the blocks add
that the greedy choice is always the next lower word. So a row's length is known before, the same on every engine,
whatever the batch and the rounding, and a model of any size can be given lengths of any distribution.
"""

import math
import random
from pathlib import Path
from typing import Any

VOCABULARY, COUNTED = 8192, 1024  # words; those below COUNTED are lengths, the others are what prompts are made of
LARGE = 10.0  # standard deviation of the embeddings; the blocks add less than 1
SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16,
         "num_key_value_heads": 8}  # fmt: skip
SMALL = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 4}  # fmt: skip


def save(folder: Path, small: bool = False) -> Path:
    """Write the model (bf16, 158 million parameters; `small`: 19 million) and its tokenizer; returns `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = SMALL if small else SHAPE
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=0, pad_token_id=VOCABULARY - 1, **shape,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        words = torch.randn(VOCABULARY, config.hidden_size)
        model.model.embed_tokens.weight.copy_(LARGE * words)
        model.lm_head.weight.copy_(words.roll(-1, dims=0))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> Any:
    """Words w0, w1, … with a token each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({f"▁w{number}": number for number in range(VOCABULARY)}, unk_token="▁w1"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    last = f"▁w{VOCABULARY - 1}"
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="▁w0", unk_token="▁w1", pad_token=last)


def prompts(rows: int, tailed: bool) -> list[str]:
    """Prompts of 32 to 96 words, no two alike, each of which ends in the length of its text."""
    rng = random.Random(1)
    made = []
    for length in lengths(rows, tailed):
        words = [rng.randrange(COUNTED, VOCABULARY - 1) for _ in range(rng.randint(31, 95))]
        made.append(" ".join(f"w{word}" for word in [*words, length]))
    return made


def lengths(rows: int, tailed: bool) -> list[int]:
    """Tokens of each row's text: 48 to 80, evenly; `tailed`: log-normal between 8 and 512, a mean of about 64, one row
    in a hundred above 350."""
    rng = random.Random(2)
    if not tailed:
        return [rng.randint(48, 80) for _ in range(rows)]
    return [min(512, max(8, round(math.exp(rng.gauss(math.log(40), 1.0))))) for _ in range(rows)]


def questions(rows: int) -> list[str]:
    """What the packaged teacher was trained to answer, in turns of its families, no question twice."""
    from pipelines.tiny import families

    problems = [families.problems(family, "train", 3) for family in ("story", "compare", "sort", "reverse")]
    found: dict[str, None] = {}
    while len(found) < rows:
        for each in problems:
            found[next(each).question] = None
    return list(found)[:rows]
