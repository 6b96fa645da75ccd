"""The tiny teacher's tokenizer: byte-level BPE with the whole numbers 0 to 199 as single tokens."""

import json
from collections.abc import Iterable
from typing import Any

SPECIALS = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train(texts: Iterable[str], vocabulary: int) -> Any:
    """A `PreTrainedTokenizerFast` of `vocabulary` tokens learned from `texts`.

    Digits are kept apart while merges are learned; then 0 to 199 get merges of their own, so that a
    number's tokens never depend on how often the corpus happens to show it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\d"), "isolated"), byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 190,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer.from_str(json.dumps(_with_numbers(json.loads(tokenizer.to_str()))))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\d+"), "isolated"), byte_level])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _with_numbers(spec: dict[str, Any]) -> dict[str, Any]:
    """Append the tokens "10" … "199" and the merges that always build them."""
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    for number in range(10, 200):
        word = str(number)
        vocab[word] = len(vocab)
        merges += [[word[:i], word[i:]] for i in range(1, len(word)) if word[i] != "0" or len(word) - i == 1]
    return spec
