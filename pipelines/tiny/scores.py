"""Score the tiny teacher on held-out problems and write its model card: `python -m pipelines.tiny.scores`.

Three figures a family: exact match of plain answers; of rewrites, the share that keeps the right
answer, and of these the share in the own style and the share equal to the reference. And one overall:
the teacher's own loss on its rewrites against that on the references it was shown.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from pipelines import answers, prompts
from pipelines.models import TINY
from pipelines.tiny import families, styles
from pipelines.tiny.teacher import ROUNDS
from pipelines.training.batches import collate, encode
from pipelines.training.losses import ByToken


def write(
    model: Any, tokenizer: Any, asked: list[list[prompts.Message]], longest: int = 200, batch: int = 100,
    temperature: float = 0.0,
) -> list[str]:  # fmt: skip
    """Answers of `model` to a list of conversations, in their order, `batch` at a time; greedy at temperature 0."""
    how: dict[str, Any] = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0}
    tokenizer.padding_side = "left"
    said = []
    for start in range(0, len(asked), batch):
        texts = [prompts.text(tokenizer, messages) for messages in asked[start : start + batch]]
        encoded = tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False
        )
        with torch.inference_mode():
            made = model.generate(**encoded.to(model.device), max_new_tokens=longest, **how)
        said += tokenizer.batch_decode(made[:, encoded.input_ids.shape[1] :], skip_special_tokens=True)
    return said


def mean_loss(model: Any, tokenizer: Any, rows: list[tuple[str, str]]) -> float:
    """Nats per target token of (question, answer) rows under the plain prompt."""
    total, count, by_token = 0.0, 0, ByToken(model)
    for start in range(0, len(rows), 64):
        encoded = [encode(tokenizer, prompts.answer(asked), said) for asked, said in rows[start : start + 64]]
        with torch.inference_mode():
            nats = by_token(**collate(encoded, np.ones((1, len(encoded))), tokenizer.pad_token_id).inputs)
        total += nats.sum().item()
        count += len(nats)
    return total / count


def scores(path: Path, n: int) -> dict[str, Any]:
    """The scores of the checkpoint in `path`, over `n` held-out problems of each family."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    table: dict[str, dict[str, float]] = {}
    rewritten: list[tuple[str, str]] = []
    shown: list[tuple[str, str]] = []
    for family in families.FAMILIES:
        problems = families.distinct(family, "test", 1, n)
        plain = write(model, tokenizer, [prompts.answer(p.question) for p in problems])
        references = [styles.render(p, styles.FOREIGN[i % 2]) for i, p in enumerate(problems)]
        rewrites = write(
            model, tokenizer, [prompts.rewrite(p.question, r) for p, r in zip(problems, references, strict=True)]
        )
        explained = write(model, tokenizer, [prompts.explain(p.question) for p in problems])
        kept = [i for i, p in enumerate(problems) if right(p, rewrites[i])]
        rewritten += [(problems[i].question, rewrites[i]) for i in kept]
        shown += [(problems[i].question, references[i]) for i in kept]
        table[family] = {
            "answer": sum(map(right, problems, plain)) / n,
            "explain": sum(map(right, problems, explained)) / n,
            "rewrite": len(kept) / n,
            "own_style": sum(styles.is_own(rewrites[i]) for i in kept) / max(len(kept), 1),
            "equal_to_reference": sum(rewrites[i] == references[i] for i in kept) / max(len(kept), 1),
        }
    keys = next(iter(table.values())).keys()
    mean = {key: sum(row[key] for row in table.values()) / len(table) for key in keys}
    losses = {
        "rewrites": mean_loss(model, tokenizer, rewritten),
        "references": mean_loss(model, tokenizer, shown),
    }
    parameters = sum(p.numel() for p in model.parameters())
    return {"items_each": n, "families": table, "mean": mean, "nats_per_token": losses, "parameters": parameters}


def right(problem: families.Problem, said: str) -> bool:
    """Whether the final answer of `said` is the problem's."""
    found = answers.extract(said, problem.kind)
    return found is not None and answers.same(found, problem.answer, problem.kind)


def card(found: dict[str, Any]) -> str:
    """The model card: what it is, how it was made, what it scores."""
    rows = [
        f"| {family} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |"
        for family, row in [*found["families"].items(), ("**mean**", found["mean"])]
    ]
    losses = found["nats_per_token"]
    return CARD.format(
        millions=found["parameters"] / 1e6,
        rounds=ROUNDS,
        items=found["items_each"],
        rows="\n".join(rows),
        rewrites=losses["rewrites"],
        references=losses["references"],
    )


CARD = """---
license: apache-2.0
library_name: transformers
---

# regrow tiny teacher

A Llama of {millions:.2f} M parameters (8 layers, width 192, FFN 512, context 2,048, bf16), trained from scratch by
`make tiny-teacher` on eight generated task families. It answers, rewrites foreign solutions in its own style, and
explains. It knows nothing else: its use is to test a pipeline.

Muon for the matrices of the blocks, AdamW for embeddings and norms; {rounds} rounds of 1,024 rows.

Greedy exact match on {items} held-out items of each family (no held-out question was trained on, by hash):

| family | answer | explain | rewrite keeps the answer | of these own style | of these equal to the reference |
|---|---|---|---|---|---|
{rows}

Loss under the plain prompt, nats per token: own rewrites {rewrites:.3f}, references {references:.3f}.

The tokenizer (byte-level BPE, 2,560 tokens, 0–199 single tokens) was also shown GSM8K train questions (MIT) and
TinyStories text (CDLA-Sharing-1.0), kept in `text.txt.gz`; the model was not trained on them.
"""


def main(
    path: Annotated[Path, typer.Option(help="The checkpoint to score.")] = TINY,
    n: Annotated[int, typer.Option(help="Held-out problems of each family.")] = 200,
) -> None:
    """Score a checkpoint, print the figures, and write scores.json and README.md beside it."""
    found = scores(path, n)
    (path / "scores.json").write_text(json.dumps(found, indent=2) + "\n")
    (path / "README.md").write_text(card(found))
    print(card(found))


if __name__ == "__main__":
    typer.run(main)
