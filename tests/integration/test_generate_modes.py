"""Generation in each of its ways, small: one engine's job a way (an engine takes half a minute to come up)."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cluster import storage
from pipelines import answers, generate, models, parts, prompts, rationales
from pipelines.generation import asking
from pipelines.generation.job import Columns, Job
from tests import endpoints

pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("ray_session")]
QUESTIONS = [
    "Leo has 29 cards. Leo loses 7. Leo loses 18. How many cards does Leo have now?",
    "Ben has 21 books. Ben buys 3 more. Ben sells 18. Ben gets 15 more. How many books does Ben have now?",
    "Ben has 7 apples. Ben finds 18 more. Ben gets 2 more. How many apples does Ben have now?",
    "How many stars are in the sky over the house of Ben?",  # nothing that the tiny teacher was taught
]
GOLD = ["4", "22", None, None]  # the second is wrong, so that a right label is a mismatch
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["low", "high"]}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


def run(home: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(counts, committed rows in the order of their prompts' lines) of one job."""
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = Job(**{"model": "tiny", "output": str(home / "out"), "max_num_seqs": 8, "max_model_len": 256} | settings)
    counts = generate.generate(asked, storage.find(str(home / "rows.jsonl")), models.TINY if asked.local else None)
    return counts, list(parts.rows(asked.output))


def held(home: Path) -> list[dict[str, Any]]:
    files = sorted((home / "out" / "quarantine").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_rationales_vote_where_no_label_is_known(tmp_path: Path) -> None:
    """Three samples a row: judged by the label where there is one, by one another where there is none."""
    rows = [{"prompt": q, "reference": gold} for q, gold in zip(QUESTIONS, GOLD, strict=True)]
    columns = Columns(reference="reference")
    how = {"mode": "rationale", "kind": "number", "n": 3, "temperature": 0.7, "max_tokens": 64, "columns": columns}
    counts, made = run(tmp_path, rows, **how)
    assert (counts["rows"], counts["samples"], counts["quarantined"]) == (4, 12, 0)
    assert len({row["id"] for row in made}) == 4
    by_question = {q: [row for row in made if q in row["prompt"]] for q in QUESTIONS}
    assert counts["prompt_tokens"] == sum(samples[0]["prompt_tokens"] for samples in by_question.values())
    for (question, samples), gold in zip(by_question.items(), GOLD, strict=True):
        assert [row["sample"] for row in samples] == [0, 1, 2]
        labels = []
        for row in samples:
            said = rationales.split(row["text"], "number")
            assert (row["rationale"], row["label"]) == (said or ("", ""))
            labels.append(said and said[1])
            missing = "truncated" if row["finish_reason"] == "length" else "unparsable"
            right = bool(said) and answers.same(row["label"], gold or "", "number")
            judged = ("match" if right else "mismatch") if gold else "unchecked"
            assert row["verdict"] == (judged if said else missing), question
        votes = Counter(label for label in labels if label).most_common(1)
        if gold:
            assert {row["target"] for row in samples} == {gold}
        elif votes:
            assert {row["target"] for row in samples} == {votes[0][0]}
            assert {row["agreement"] for row in samples} == {votes[0][1] / 3}
    assert {row["verdict"] for row in by_question[QUESTIONS[0]]} >= {"match"}
    assert "mismatch" in {row["verdict"] for row in by_question[QUESTIONS[1]]}
    assert by_question[QUESTIONS[2]][0]["target"] == "27"
    assert any(len({row["text"] for row in samples}) > 1 for samples in by_question.values()), "samples are drawn"


def test_a_schema_holds_for_every_text(tmp_path: Path) -> None:
    counts, made = run(tmp_path, [{"prompt": q} for q in QUESTIONS], schema_=SCHEMA, max_tokens=64)
    assert (counts["rows"], counts["unchecked"]) == (4, 4)
    for row in made:
        jsonschema.validate(json.loads(row["text"]), SCHEMA)
        assert row["target"] == row["text"].strip() and row["finish_reason"] == "stop"


def adapted(folder: Path) -> Any:
    """The tiny teacher under an adapter, loud enough to change every text, that is saved in `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(models.TINY, dtype="float32").eval()
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    made = get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight *= 2
    made.save_pretrained(folder)
    return made.eval()


def greedy(model: Any, tokenizer: Any, question: str, new: int) -> str:
    """transformers' own greedy text."""
    import torch

    ids = torch.tensor(
        [tokenizer(prompts.text(tokenizer, prompts.answer(question)), add_special_tokens=False).input_ids]
    )
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_adapter_stop_and_the_context_to_the_token(tmp_path: Path) -> None:
    """An adapter's texts are those of transformers with peft, cut at the stop text; a prompt that leaves exactly
    `max_tokens` is answered, one with a token more is in quarantine."""
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(models.TINY), adapted(tmp_path / "adapter")
    said = [greedy(model, tokenizer, question, 24) for question in QUESTIONS]
    with model.disable_adapter():
        plain = [greedy(model, tokenizer, question, 24) for question in QUESTIONS]
    assert all(ours != base for ours, base in zip(said, plain, strict=True))
    stop = said[0].strip()[6:8]
    wanted = {q: text.partition(stop)[0] for q, text in zip(QUESTIONS, said, strict=True)}

    how = Job(
        model="tiny", output="x", adapter=str(tmp_path / "adapter"), stop=(stop,), max_tokens=24, max_model_len=96
    )
    sized = {}  # tokens of the prompt → question
    for long in ("cat " * number + "?" for number in range(96)):
        text = asking.text(how, tokenizer, prompts.answer(long))
        sized[len(asking.tokens(tokenizer, [text], templated=True)[0])] = long
    rows = [{"prompt": question} for question in (*QUESTIONS, sized[72], sized[73])]
    settings = how.model_dump(include={"adapter", "stop", "max_tokens", "max_model_len"})
    counts, made = run(tmp_path, rows, **settings)

    found = {q: next(row for row in made if q in row["prompt"]) for q in QUESTIONS}
    same = [found[q]["text"].strip() == text.strip() for q, text in wanted.items()]
    assert same[0] and sum(same) >= len(same) - 1, (wanted, found)  # a tie in the logits may differ in one row
    assert found[QUESTIONS[0]]["finish_reason"] == "stop"
    assert (counts["rows"], counts["quarantined"]) == (6, 1)
    (exact,) = (row for row in made if row["prompt_tokens"] == 72)
    assert sized[72] in exact["prompt"] and exact["completion_tokens"] > 0
    (over,) = held(tmp_path)
    assert over["line"] == 6 and "73 tokens" in over["reason"] and "97 of max_model_len = 96" in over["reason"]


def test_an_endpoint_answers_and_refuses(tmp_path: Path) -> None:
    """Each row is asked once as chat messages; what the endpoint refuses is in quarantine; again asks nothing."""
    rows = [{"prompt": f"question {number}"} for number in range(40)]
    with endpoints.serving() as server:
        server.plan["question 7"], server.said = [400], "too rude"
        how = {"model": "m", "endpoint": server.url, "n": 2, "temperature": 0.5, "seed": 3, "shard_rows": 16}
        counts, made = run(tmp_path, rows, **how)
        assert server.asked == Counter(row["prompt"] for row in rows)
        assert (counts["rows"], counts["samples"], counts["quarantined"]) == (40, 78, 1)
        asked = {body["messages"][-1]["content"]: (path, body) for path, body in server.bodies}
        for row in made:
            path, body = asked[row["prompt"]]
            assert path == "/v1/chat/completions" and (body["n"], body["temperature"]) == (2, 0.5)
            assert row["text"] == f"echo {row['prompt']} {body['seed'] + row['sample']}"
        assert len({body["seed"] for _, body in server.bodies}) == 40, "each row has a seed of its own"
        assert counts["prompt_tokens"] == 3 * 39 and counts["completion_tokens"] == 7 * 39
        (refused,) = held(tmp_path)
        assert refused["prompt"] == "question 7" and "too rude" in refused["reason"] and refused["line"] == 8
        again, _ = run(tmp_path, rows, **how)
        assert server.asked.total() == 40 and {**again, "seconds": 0} == {**counts, "seconds": 0}
