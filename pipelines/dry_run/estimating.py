"""`regrow generate --dry-run`: what a job would read, ask, write, take and cost, on one page. It starts nothing, writes
nothing and loads no weights.

Rows are asked as the run asks them, by the same function. Time is that of `--plan`: the same arithmetic, the same
assumptions; none of it is measured.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster import gpus
from cluster.gpus import Gpu
from pipelines import models, parts
from pipelines.dry_run import surveying
from pipelines.dry_run.surveying import Asked, Prompt, Survey
from pipelines.generation import asking, shaping
from pipelines.generation.job import Job
from pipelines.planning import architecture, memory, work
from pipelines.planning.assumptions import Assumptions
from pipelines.recipe_file import BadInput

SHOWN = 3  # prompts, and files
HELD = 5  # rows with a reason
HEAD, TAIL = 1200, 600  # characters of a long prompt that are shown


class Amounts(NamedTuple):
    """What a job asks and gets. `requests`: the rows that can be asked; `prompt`, `written`: mean tokens (words, where
    there is no tokenizer) of a prompt and of one text; `longest`: of a text at the most; `told`: why `written`."""

    requests: float
    prompt: float
    written: float
    longest: int
    told: str


class Cost(NamedTuple):
    """`seconds` until a job is done on `gpus` GPUs that are held throughout."""

    gpus: int
    seconds: float

    @property
    def gpu_hours(self) -> float:
        """GPUs times hours."""
        return self.gpus * self.seconds / 3600


def dry_run(
    job: Job, files: dict[str, int], folder: Path | None, gpu: str | None = None, gpu_hour_price: float | None = None
) -> str:
    """What `job` would do with `files` (URL → bytes), as text for people.

    Args: `folder`, the model's directory, None where an endpoint or echo answers; `gpu`, a name of cluster.gpus, whose
    time is reckoned; `gpu_hour_price`, of an hour of one GPU in any currency. Raises BadInput for an unknown GPU
    and for an input that lacks a column which the job needs, ValueError for one that cannot be read."""
    if gpu is not None and gpu not in gpus.GPUS:
        raise BadInput(f"--gpu {gpu!r} is not known; known are {', '.join(gpus.GPUS)}")
    found = surveying.survey(files, job.limit)
    try:
        job = asking.settled(job, dict.fromkeys(found.columns, ""))
    except ValueError as error:
        few = "" if found.looked == found.rows else f" ({found.looked:,} rows were looked at)"
        raise BadInput(f"{error}{few}") from error
    asked = surveying.ask(job, folder, found.sample)
    lines = ["dry run: nothing is started, nothing is written", "", *_input(job, found), *_sample(job, found, asked)]
    for number, prompt in enumerate(_three([one for one in asked.prompts if one.fits]), 1):
        lines += ["", f"--- prompt {number}: {_place(prompt.row.url, prompt.row.line)} ---", _cut(prompt.text)]
    if any(one.fits for one in asked.prompts):
        lines += ["--- end of prompts ---", "", *_work(job, found, asked, folder, gpu, gpu_hour_price)]
    there = parts.names(job.output)
    if there:
        lines.append(
            f"{'output':<11}{_many(len(there), 'part')} ({_bytes(sum(there.values()))}) committed in {job.output} "
            "already; a run goes on there, the figures above are of the whole input"
        )
    return "\n".join(lines)


def amounts(job: Job, rows: int, asked: Asked, references: Sequence[int], assumed: Assumptions) -> Amounts:
    """What `rows` rows like those `asked` come to. `references`: lengths of the references of the prompts that fit."""
    fit = [_length(one) for one in asked.prompts if one.fits]
    whole = len(fit) + len(asked.held)
    mean = sum(fit) / len(fit) if fit else 0.0
    written, told = job.max_tokens / 2, "half of max_tokens, an assumption"
    if job.mode == "self_distill" and references:
        written = sum(min(length * assumed.rewrite_ratio, job.max_tokens) for length in references) / len(references)
        told = f"the references' length times rewrite_ratio = {assumed.rewrite_ratio:g}, as --plan assumes"
    return Amounts(rows * len(fit) / whole if whole else 0.0, mean, written, job.max_tokens, told)


def cost(job: Job, config: dict[str, Any], gpu: Gpu, requests: float, prompt: float, written: float) -> Cost:
    """Time of `requests` prompts on the job's engines, each split over `tensor_parallel` GPUs. `config` is the model's
    config.json. Raises ValueError for a family whose work cannot be counted, and a model that the GPUs cannot hold."""
    assumed = Assumptions()
    if config.get("model_type") not in architecture.FAMILIES:
        known = ", ".join(architecture.FAMILIES)
        raise ValueError(f"the model is of the family {config.get('model_type')!r}; work is counted for {known}")
    model = architecture.read(config, "config.json")
    width = architecture.BYTES[model.dtype if job.dtype == "auto" else job.dtype]
    lengths = (job.tensor_parallel, job.max_model_len, job.max_num_seqs)
    needed = memory.engine(model, model.layers, width, *lengths, assumed, gpu.memory)
    if not needed.fits:
        raise ValueError(
            f"an engine on {job.tensor_parallel} × {gpu.name} needs {needed.total / 1e9:,.1f} GB of each and may take "
            f"{(needed.limit or 0) / 1e9:,.1f}; raise --tensor-parallel or lower --max-model-len"
        )
    engine = work.engine(model, model.layers, width, gpu, job.tensor_parallel, job.max_num_seqs, assumed)
    seconds = engine.answer(requests / job.engines, prompt, written, job.n) + assumed.start_minutes * 60
    return Cost(job.engines * job.tensor_parallel, seconds)


def quantile(lengths: Sequence[int], share: float) -> int:
    """The smallest of `lengths` that at least `share` of them do not exceed (the nearest rank)."""
    return sorted(lengths)[max(math.ceil(share * len(lengths)) - 1, 0)]


def _input(job: Job, found: Survey) -> list[str]:
    size = sum(found.files.values())
    named = [*list(found.files)[:SHOWN], *(["…"] if len(found.files) > SHOWN else [])]
    rows = f"{found.rows:,}"
    if not found.counted:
        rows = f"about {_round(found.rows)}, from {size / found.rows:,.0f} bytes a row"
    if job.limit is not None and found.rows >= job.limit:
        rows = f"the first {job.limit:,} (--limit)"
    columns = [
        name if number + found.unreadable == found.looked else f"{name} (in {number:,} of {found.looked:,} rows)"
        for name, number in found.columns.items()
    ]
    return [
        f"{'input':<11}{_many(len(found.files), 'file')}, {_bytes(size)}: {', '.join(named)}",
        f"{'rows':<11}{rows}",
        f"{'columns':<11}{', '.join(columns) or 'none'}",
    ]


def _sample(job: Job, found: Survey, asked: Asked) -> list[str]:
    if not found.sample:
        return ["", "the input has no rows: there is nothing to ask"]
    lines = [f"{'sample':<11}{_many(len(found.sample), 'row')}, {_drawn(found)}"]
    if asked.held:
        share = len(asked.held) / len(found.sample)
        lines.append(f"{'quarantine':<11}{len(asked.held):,} of the sample ({share:.1%}) cannot be asked:")
        long = {one.row.id for one in asked.prompts if not one.fits}
        first = sorted(asked.held, key=lambda one: one["id"] in long)[:HELD]  # too long ones are counted below anyway
        lines += [f"  {_place(one['file'], one['line'])}: {one['reason']}" for one in first]
        lines += [f"  and {len(asked.held) - HELD:,} more"] if len(asked.held) > HELD else []
    if found.looked > len(found.sample) and found.unreadable:
        lines.append(f"{'unreadable':<11}{found.unreadable:,} of the {found.looked:,} rows that were read do not parse")
    if not asked.prompts:
        return [*lines, "no row of the sample can be asked: there is nothing to reckon with"]
    lengths, what = [_length(one) for one in asked.prompts], _unit(asked)
    lines.append(
        f"{'prompts':<11}{what} a prompt: mean {sum(lengths) / len(lengths):,.1f}, p50 {quantile(lengths, 0.5):,}, "
        f"p95 {quantile(lengths, 0.95):,}, max {max(lengths):,}"
    )
    if what == "words":
        who = f"{job.endpoint} has the tokenizer and the chat template" if job.endpoint else "echo has no tokenizer"
        lines.append(f"{'':<11}words, not tokens: {who}")
    elif too_long := sum(not one.fits for one in asked.prompts):
        lines.append(
            f"{'':<11}{too_long:,} too long: with max_tokens = {job.max_tokens:,} they exceed max_model_len = "
            f"{job.max_model_len:,}, and go to quarantine"
        )
    return lines


def _work(
    job: Job, found: Survey, asked: Asked, folder: Path | None, gpu: str | None, price: float | None
) -> list[str]:
    assumed = Assumptions()
    rewritten = [one.reference for one in asked.prompts if one.fits and job.mode == "self_distill"]
    references = _lengths(folder, rewritten)
    made, what = amounts(job, found.rows, asked, references, assumed), _unit(asked)
    texts = made.requests * job.n
    exact = len(found.sample) == found.rows
    near = "" if exact else "about "
    asks = f"{near}{_round(made.requests, exact)} to ask"
    samples = f", {job.n} texts each" if job.n > 1 else ""
    lines = [
        f"{'requests':<11}{asks}{samples}",
        f"{'read':<11}{near}{_round(made.requests * made.prompt, exact)} {what} of prompts",
        f"{'written':<11}at most {_round(texts * made.longest, exact)} tokens, max_tokens = {job.max_tokens:,} a text; "
        f"expected {_round(texts * made.written)} {what if references else 'tokens'}: {made.told}",
    ]
    if not job.local:
        who = "the endpoint's GPUs are its own" if job.endpoint else "echo needs no GPU"
        return [*lines, f"{'time':<11}none reckoned: {who}"]
    if gpu is None or folder is None:
        return [*lines, f"{'time':<11}give --gpu ({', '.join(gpus.GPUS)}) for time, and --gpu-hour-price for cost"]
    return [*lines, *_time(job, models.configuration(folder), gpus.GPUS[gpu], made, price)]


def _time(job: Job, config: dict[str, Any], gpu: Gpu, made: Amounts, price: float | None) -> list[str]:
    try:
        likely = cost(job, config, gpu, made.requests, made.prompt, made.written)
        longest = cost(job, config, gpu, made.requests, made.prompt, made.longest)
    except ValueError as error:
        return [f"{'time':<11}cannot be reckoned: {error}"]
    used = {"prefill_mfu", "decode_bandwidth", "tensor_parallel_efficiency", "gpu_memory_utilization", "start_minutes"}
    said = ", ".join(f"{name} {value:g}" for name, value in Assumptions().model_dump().items() if name in used)
    lines = [
        f"{'time':<11}{_clock(likely.seconds)} on {likely.gpus} × {gpu.name}, {likely.gpu_hours:,.2f} GPU hours; "
        f"{_clock(longest.seconds)} were every text {made.longest:,} tokens long",
        f"{'':<11}reckoned, not measured, from {said}",
    ]
    if price is None:
        return [*lines, f"{'cost':<11}give --gpu-hour-price"]
    both = f"{likely.gpu_hours * price:,.2f}; {longest.gpu_hours * price:,.2f} were every text that long"
    return [*lines, f"{'cost':<11}{both} ({price:g} a GPU hour)"]


def _lengths(folder: Path | None, texts: list[str]) -> list[int]:
    """Lengths of the references among `texts`: in tokens, or in words where there is no tokenizer."""
    texts = [text for text in texts if text]
    if not folder:
        return [len(text.split()) for text in texts]
    return [len(ids) for ids in asking.tokens(shaping.tokenizer_of(str(folder.resolve())), texts, templated=True)]


def _length(prompt: Prompt) -> int:
    return len(prompt.text.split()) if prompt.tokens is None else prompt.tokens


def _unit(asked: Asked) -> str:
    return "words" if any(one.tokens is None for one in asked.prompts) else "tokens"


def _drawn(found: Survey) -> str:
    if len(found.sample) == found.rows:
        return "the whole input"
    if found.looked > len(found.sample):
        return f"drawn from the {found.looked:,} that were read"
    return f"the first of {_many(len({row.url for row in found.sample}), 'file')}"


def _three(prompts: list[Prompt]) -> list[Prompt]:
    """The first, the middle and the last."""
    places = sorted({0, len(prompts) // 2, len(prompts) - 1})
    return [prompts[place] for place in places] if prompts else []


def _cut(text: str) -> str:
    """`text` with its middle left out where it is long; control characters, which terminals obey, are spelled."""
    left = len(text) - HEAD - TAIL
    if left > 0:
        text = f"{text[:HEAD]}\n[… {left:,} characters left out …]\n{text[-TAIL:]}"
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _place(url: str, line: int) -> str:
    return f"{url}, row {line:,}" if url.endswith(".parquet") else f"{url}, line {line:,}"


def _round(number: float, exact: bool = False) -> str:
    """To three figures, unless exact."""
    return f"{round(number):,}" if exact else f"{float(f'{number:.3g}'):,.0f}"


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _bytes(size: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size:,} bytes"


def _clock(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 7200 else f"{seconds / 60:,.0f} min"
