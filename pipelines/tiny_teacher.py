"""Train the tiny teacher from scratch: `make tiny-teacher`, or `python -m pipelines.tiny_teacher`.

A Llama of about 4 M parameters that solves the generated task families in its own style, rewrites
foreign solutions in it, and explains. Two CPU cores, about an hour; a checkpoint every ten minutes,
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

from pipelines import families, loop, prompts, styles, tokenizers
from pipelines.batches import bucketed, collate, encode

HOME = Path(__file__).parent / "recipes" / "tiny_teacher"
VOCABULARY, SEED, PEAK = 2560, 0, 1.5e-3
ROWS, TOKENS = 1024, 2400  # rows drawn a round; padded tokens a batch


def example(stream: dict[str, Iterator[families.Problem]], rng: random.Random) -> tuple[list[prompts.Message], str]:
    """One training row: 60 % answer, 28 % rewrite, 12 % explain."""
    problem = next(stream[rng.choice(list(stream))])
    kind = rng.random()
    if kind < 0.60:
        return prompts.answer(problem.question), styles.render(problem, "own")
    if kind < 0.88:
        reference = styles.render(problem, rng.choice(styles.FOREIGN))
        return prompts.rewrite(problem.question, reference), styles.render(problem, "own")
    return prompts.explain(problem.question), styles.render(problem, "explain")


def examples(seed: str) -> Iterator[tuple[list[prompts.Message], str]]:
    """Endless training rows over all families, from the train split alone."""
    rng = random.Random(seed)
    stream = {family: families.problems(family, "train", rng.randrange(2**32)) for family in families.FAMILIES}
    while True:
        yield example(stream, rng)


def make_tokenizer() -> Any:
    """The tokenizer, from 20,000 generated rows and the real text beside the recipe."""
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


def plan(tokenizer: Any, first: int, rounds: int) -> Iterator[tuple[float, list[loop.Batch]]]:
    """Batches of every round from `first` on; the last item of a round ends on a whole share."""
    for number in range(first, rounds):
        rows = [encode(tokenizer, *row) for row in islice(examples(f"{SEED}/{number}"), ROWS)]
        batches = bucketed([len(row.ids) for row in rows], TOKENS, random.Random(number))
        for i, batch in enumerate(batches):
            share = (number + (i + 1) / len(batches)) / rounds
            yield share, [collate([rows[row] for row in batch], tokenizer.pad_token_id)]


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of 1,024 rows.")] = 220,
    work: Annotated[Path, typer.Option(help="Where checkpoints go.")] = Path("runs/tiny-teacher"),
    minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 10,
) -> None:
    """Train (or go on training) and write model and tokenizer beside the recipe."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    optimizer = loop.optimizer_for(model, PEAK, 0.05)
    checkpoint, first, step = work / "checkpoint.pt", 0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, step = state["round"], state["step"]
    began = saved = time.monotonic()
    seen, begun = 0, first
    with (work / "log.jsonl").open("a") as log:
        pairs = plan(tokenizer, first, rounds)
        shares: list[float] = []

        def watched() -> Iterator[tuple[float, list[loop.Batch]]]:
            for share, batches in pairs:
                shares.append(share)
                yield share, batches

        for report in loop.steps(model, optimizer, watched(), "flat-linear", PEAK, step):
            seen += report.tokens
            done = shares[-1]
            if report.step % 50 == 0:
                left = (time.monotonic() - began) * (1 - done) / max(done - begun / rounds, 1e-9)
                line = {**report._asdict(), "done": round(done, 4), "minutes_left": round(left / 60, 1)}
                log.write(json.dumps(line) + "\n")
                log.flush()
                print(line, flush=True)
            whole = abs(done * rounds - round(done * rounds)) < 1e-6
            if whole and time.monotonic() - saved > 60 * minutes:
                saved = time.monotonic()
                _save(checkpoint, model, optimizer, round(done * rounds), report.step + 1)
                model.to(torch.bfloat16).save_pretrained(work / "model")
                model.to(torch.float32)
                model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
                tokenizer.save_pretrained(work / "model")
    model.to(torch.bfloat16).save_pretrained(HOME)
    tokenizer.save_pretrained(HOME)


def _save(path: Path, model: Any, optimizer: torch.optim.Optimizer, number: int, step: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "round": number, "step": step}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


if __name__ == "__main__":
    typer.run(main)
