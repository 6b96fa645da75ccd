"""Train the tiny teacher from scratch: `make tiny-teacher`, or `python -m pipelines.tiny.teacher`.

A Llama of about 4 M parameters that solves the generated task families in its own style, rewrites
foreign solutions in it, and explains. Two CPU cores, about forty minutes; a checkpoint every ten minutes,
and the same command goes on from the last one.
"""

import gzip
import json
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pipelines import models, prompts
from pipelines.student import Student
from pipelines.tiny import families, styles, tokenizers
from pipelines.training import attention, feed, loop, losses, optimizers
from pipelines.training.batches import Planned, encode, flat

HOME = models.TINY
Row = tuple[list[prompts.Message], str]
VOCABULARY, SEED, PEAK = 2560, 0, 1.2e-3
ROUNDS, ROWS, TOKENS = 200, 1024, 2400  # rows drawn a round; tokens a step


def example(stream: dict[str, Iterator[families.Problem]], rng: random.Random) -> Row:
    """One training row: 58 % answer, 14 % rewrite, 10 % explain, 18 % drill."""
    kind = rng.random()
    if kind < 0.18:
        return drill(rng)
    problem = next(stream[rng.choice(list(stream))])
    if kind < 0.76:
        return prompts.answer(problem.question), styles.render(problem, "own")
    if kind < 0.90:
        reference = styles.render(problem, rng.choice(styles.FOREIGN))
        return prompts.rewrite(problem.question, reference), styles.render(problem, "own")
    return prompts.explain(problem.question), styles.render(problem, "explain")


def drill(rng: random.Random) -> Row:
    """Eight sums and differences to work out: the tables that every family stands on, more of them a
    token than any problem holds."""
    sums = []
    for _ in range(8):
        a, b = rng.randint(2, 105), rng.randint(1, 25)
        shape = rng.randrange(3)
        if shape == 0:
            sums.append((f"{a} + {b}", a + b))
        elif shape == 1:
            sums.append((f"{a + b} - {b}", a))
        else:
            sums.append((f"{a + b} - {a}", b))
    asked = prompts.answer(f"Work out: {', '.join(text for text, _ in sums)}")
    return asked, "\n".join(f"{text} = {value}" for text, value in sums)


def examples(seed: str) -> Iterator[Row]:
    """Endless training rows over all families, from the train split alone."""
    rng = random.Random(seed)
    stream = {family: families.problems(family, "train", rng.randrange(2**32)) for family in families.FAMILIES}
    while True:
        yield example(stream, rng)


def make_tokenizer() -> Any:
    """The committed tokenizer, or where there is none a new one: from 20,000 generated rows and the real
    text beside the recipe."""
    if (HOME / "tokenizer.json").exists():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(HOME)
    rows = (f"{message[0]['content']}\n{target}" for message, target in islice(examples("tokenizer"), 20_000))
    with gzip.open(HOME / "text.txt.gz", "rt", encoding="utf8") as text:
        return tokenizers.train([*rows, *text.read().split("\n\n")], VOCABULARY)


def make_model(tokenizer: Any) -> Any:
    """A fresh Llama: 8 layers, width 192, 6 heads of 32, FFN 512, tied embeddings, context 2,048."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=8,
            num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=2048, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def plan(tokenizer: Any, number: int, rounds: int) -> Iterator[Planned]:
    """The steps of one round: 1,024 rows; each with the share of training done."""
    rows = flat([encode(tokenizer, *row) for row in islice(examples(f"{SEED}/{number}"), ROWS)])
    student = Student(name="sft", batch_tokens=TOKENS, micro_tokens=TOKENS)
    for step in feed.steps(rows, student, number, tokenizer.pad_token_id)[1]:
        yield step._replace(done=(number + step.done) / rounds)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of 1,024 rows.")] = ROUNDS,
    work: Annotated[Path, typer.Option(help="Where checkpoints go.")] = Path("runs/tiny-teacher"),
    minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 10,
) -> None:
    """Train (or go on training) and write model and tokenizer beside the recipe."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    model.set_attn_implementation(attention.PACKED)
    trained = losses.ByToken(model)
    optimizer = optimizers.muon(model, PEAK, 0.05)
    first = resume(work / "checkpoint.pt", model, optimizer)
    began = saved = time.monotonic()
    for number in range(first, rounds):
        reports = list(loop.steps(trained, optimizer, plan(tokenizer, number, rounds), "flat-linear", PEAK))
        loss = sum(r.loss * r.tokens for r in reports) / sum(r.tokens for r in reports)
        left = (time.monotonic() - began) / (number + 1 - first) * (rounds - number - 1) / 60
        rate = reports[-1].learning_rate
        line = {"round": number + 1, "loss": round(loss, 4), "rate": rate, "minutes_left": round(left, 1)}
        print(json.dumps(line), flush=True)
        if time.monotonic() - saved > 60 * minutes:
            saved = time.monotonic()
            save(work, model, optimizer, tokenizer, number + 1)
    model.to(torch.bfloat16).save_pretrained(HOME)
    tokenizer.save_pretrained(HOME)
    models.readable(HOME)


def save(work: Path, model: Any, optimizer: loop.Optimizer, tokenizer: Any, number: int) -> None:
    """A checkpoint to go on from, whole or not at all, and a model to try."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "round": number}
    torch.save(state, work / "checkpoint.tmp")
    (work / "checkpoint.tmp").replace(work / "checkpoint.pt")
    model.save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")


def resume(checkpoint: Path, model: Any, optimizer: loop.Optimizer) -> int:
    """Load `checkpoint` where there is one; returns the round to go on with."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["round"])


if __name__ == "__main__":
    typer.run(main)
