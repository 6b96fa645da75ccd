"""The tiny teacher, decoded under the mask of each prompt: small models against the whole one under its mask."""

import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines import masks, models, prompts, units
from pipelines.ifp import routed
from pipelines.ifp.decoding import Decoder
from pipelines.tiny import families
from serving.predictor import Reader
from tests import predictors, tiny

UNITS, MOST = 384, 48


@pytest.fixture(scope="module")
def teacher() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(models.TINY, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(models.TINY)


@pytest.fixture(scope="module")
def reader() -> Reader:
    """Its tokenizer is not the teacher's: the prompt is handed on as text."""
    return predictors.reader(8, 512, UNITS, 0.5)


def asked(tokenizer: Any, each: int) -> list[str]:
    found = [one.question for family in families.FAMILIES for one in families.distinct(family, "test", 5, each)]
    return [prompts.text(tokenizer, prompts.answer(question)) for question in found]


def test_each_prompt_is_decoded_as_under_its_mask(teacher: tuple[Any, Any], reader: Reader) -> None:
    """Masks differ between prompts, with λ below 1. Where tokens part, the whole model had two within 1e-3."""
    model, tokenizer = teacher
    decoder, texts, ties = Decoder(model, tokenizer, reader), asked(tokenizer, 4), 0
    for text in texts:
        mask = masks.mask(reader.scores([text])[0], UNITS, 0.5)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad(), units.masked(model, mask):
            how: dict[str, Any] = {"max_new_tokens": MOST, "do_sample": False, "output_logits": True}
            said = model.generate(ids, return_dict_in_generate=True, **how)
        wanted, made = said.sequences[0, ids.shape[1] :].tolist(), decoder.decode(text, MOST)
        assert made.subnetwork == masks.mask_hash(mask)
        assert made.text == tokenizer.decode(made.tokens, skip_special_tokens=True)
        if made.tokens != wanted:
            pairs = zip(made.tokens, wanted, strict=False)
            parted = next(place for place, (one, other) in enumerate(pairs) if one != other)
            first, second = said.logits[parted][0].topk(2).values.tolist()
            assert first - second < 1e-3, f"{text!r} parts at token {parted}"
            ties += 1
    assert ties <= 1 and decoder.gathered == len(decoder.kept) == len(texts) == 32
    assert not torch.equal(*routed.masks_of(reader, texts[:2])), "prompts have masks of their own"


def test_models_are_kept_by_mask_within_the_room(teacher: tuple[Any, Any], reader: Reader) -> None:
    model, tokenizer = teacher
    size = 8 * 3 * 192 * UNITS * 4  # bytes of a small model's FFNs
    decoder, texts = Decoder(model, tokenizer, reader, room=2 * size), asked(tokenizer, 1)[:3]
    first = [decoder.decode(text, 4) for text in texts[:2]]
    assert decoder.decode(texts[0], 4) == first[0] and decoder.gathered == 2
    decoder.decode(texts[2], 4)  # the second was unused for longest
    assert list(decoder.kept) == [first[0].subnetwork, decoder.decode(texts[2], 4).subnetwork]
    assert decoder.decode(texts[1], 4) == first[1] and decoder.gathered == 4
    none = Decoder(model, tokenizer, reader, room=0)
    assert [none.decode(text, 4) for text in texts[:2]] == first and list(none.kept) == [first[1].subnetwork]


def test_a_conversation_is_decoded_by_its_first_question(teacher: tuple[Any, Any], reader: Reader) -> None:
    """`read` alone chooses the units, the whole prompt is continued."""
    model, tokenizer = teacher
    turns = [{"role": "user", "content": "What is 1 + 2?"}, {"role": "assistant", "content": "The answer is 3."}]
    later = prompts.text(tokenizer, [*turns, {"role": "user", "content": "What is 3 + 4 + 5?"}])
    read = prompts.text(tokenizer, turns[:1])
    decoder = Decoder(model, tokenizer, reader)
    made = decoder.decode(later, 8, read)
    assert made.subnetwork == decoder.decode(read, 8).subnetwork != decoder.decode(later, 8).subnetwork
    ids = tokenizer(later, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad(), units.masked(model, routed.masks_of(reader, [read])[0]):
        wanted = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert made.tokens == wanted[0, ids.shape[1] :].tolist()


def test_what_cannot_be_decoded_is_refused(teacher: tuple[Any, Any], reader: Reader) -> None:
    model, tokenizer = teacher
    decoder = Decoder(model, tokenizer, reader)
    with pytest.raises(ValueError, match="the prompt is empty"):
        decoder.decode("", 4)
    with pytest.raises(ValueError, match="the prompt is empty"):
        decoder.decode("", 4, "What?")
    with pytest.raises(ValueError, match="mask predictor reads 256 at most"):
        decoder.decode("word " * 300, 4)
    with pytest.raises(ValueError, match=r"and 2,040 more do not fit into the model's 2,048"):
        decoder.decode("word " * 30, 2040)
    said = "is for models with 7 blocks of 512 FFN units, and LlamaForCausalLM has 8 of 512; give the model"
    with pytest.raises(ValueError, match=re.escape(said)):
        Decoder(model, tokenizer, predictors.reader(7, 512, UNITS))
    with pytest.raises(ValueError, match="513 of 512 FFN units cannot stay on; keep 1 to 512"):
        Decoder(model, tokenizer, predictors.reader(8, 512, 513)).decode("What?", 4)
    assert not decoder.kept and len(tiny.tokenizer()) != len(tokenizer)
