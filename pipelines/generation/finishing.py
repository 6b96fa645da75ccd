"""The end of a job: manifest, dataset card and chat messages are written."""

import datetime
import json
from pathlib import Path
from typing import Any

from cluster import storage
from cluster.artifacts import versions
from pipelines import answers, cards, conversations, parts, verdicts
from pipelines.generation import asking, reading
from pipelines.generation.job import Job

MESSAGES = "messages"


def figures(done: dict[str, Any]) -> dict[str, Any]:
    """The numbers among what generate.generate returned."""
    return {name: value for name, value in done.items() if isinstance(value, int | float)}


def write(folder: Path | None, done: dict[str, Any]) -> None:
    """Write `README.md` and, last, `manifest.json` of a job that came to its end; `done` as generate.generate made
    it, `folder` the model's directory."""
    job: Job = done["job"]
    storage.replace(storage.join(job.output, parts.CARD), _card(job, folder, done).encode())
    made = {
        "counts": figures(done),
        "settings": job.model_dump(mode="json"),
        "fingerprint": done["fingerprint"],
        "versions": versions(),
        "files": {f"{parts.DATA}/{name}.parquet": size for name, size in parts.names(job.output).items()},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    storage.replace(storage.join(job.output, parts.MANIFEST), json.dumps(made, indent=2).encode())


def messages(job: Job) -> int:
    """Write each part's usable rows as chat messages, `messages/part-*.jsonl`, one conversation a line as SFT tools
    read them; returns how many. The question is the plain one, not the prompt that showed the reference."""
    written = 0
    for name in parts.names(job.output):
        lines: dict[str, None] = {}  # in order, each once: samples that fell back have one target
        for row in parts.table(job.output, name).to_pylist():
            if said := _taught(job, row):
                turns = [*_asked(job, row), {"role": "assistant", "content": said}]
                lines[json.dumps({"messages": turns}, ensure_ascii=False)] = None
        data = "".join(f"{line}\n" for line in lines).encode()
        storage.replace(storage.join(job.output, MESSAGES, f"{name}.jsonl"), data)
        written += len(lines)
    return written


def _taught(job: Job, row: dict[str, Any]) -> str | None:
    """What a student is to say, if anything: of a rationale, where its label is right or the one that was voted for,
    the rationale and the label, as the few-shot prompts say it."""
    if job.mode != "rationale":
        return row["target"]
    kind = reading.label_kind(row["kind"])
    voted = row["verdict"] == "unchecked" and answers.same(row["label"], row["target"], kind)
    right = row["verdict"] == "match" or voted
    return f"{row['rationale']} So the answer is {row['label']}.".strip() if right else None


def _asked(job: Job, row: dict[str, Any]) -> list[conversations.Message]:
    """What a student is asked: in mode self_distill the question without its reference."""
    plain = job.model_copy(update={"mode": "respond", "template": None}) if job.mode == "self_distill" else job
    turns = asking.ask(plain, parts.own(row)).messages
    if plain.template is not None:  # columns as stored may read otherwise than they were asked: 3 as 3.0
        turns[-1] = {"role": "user", "content": row[parts.TURN]}
    return turns


def _card(job: Job, folder: Path | None, counts: dict[str, Any]) -> str:
    rows = {
        "model": job.model, "adapter": job.adapter or "none", "endpoint": job.endpoint or "none", "mode": job.mode,
        "temperature": float(job.temperature), "top_p": float(job.top_p), "max_tokens": job.max_tokens,
        "samples a row": job.n, "seed": job.seed, "stop": [repr(word) for word in job.stop],
        "input rows": counts["rows"], "samples": counts["samples"], "in quarantine": counts["quarantined"],
        "prompt tokens": counts["prompt_tokens"], "completion tokens": counts["completion_tokens"],
    }  # fmt: skip
    rows |= {f"verdict {v}": counts[v] for v in verdicts.VERDICTS if counts[v]}
    rows |= {f"version of {name}": version for name, version in versions().items()}
    return cards.dataset_card(
        Path(job.output).name, job.model, rows, cards.licence(folder) if folder else "", parts.DATA
    )
