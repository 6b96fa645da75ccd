"""One side of benchmarks/generate_throughput.py in a process of its own: `generate_sides.py SIDE DIRECTORY`.

Each prints a JSON line a run: rates in tokens/s, tokens, seconds. A rate is taken from a curve, the tokens of all rows
that were finished by each point in time: `steady` between a fifth and nine tenths of a run's tokens, by the clock on
which they were reached, so that neither ramp-up nor tail is in it; `whole` from the first request to the last text.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FROM, TO = 0.2, 0.9  # of a run's tokens: where its steady state begins and ends
EXAMPLE_BATCH = 64  # batch_size in the examples of ray.data.llm.build_processor
TOLD = ("time_taken_llm", "num_input_tokens", "num_generated_tokens")
Curve = Sequence[tuple[float, int]]


def ours(home: Path) -> None:
    """One run of the real stage in a Ray session; its board, which engines tell how far they are, also notes when."""
    import ray

    from cluster import storage
    from cluster.session import session
    from pipelines import generate
    from pipelines.generation import board

    class Clocked(board.Board):
        def __init__(self) -> None:
            super().__init__()
            self.began, self.curve = 0.0, list[tuple[float, int]]()

        def tell(self, who: str, counts: dict[str, Any]) -> None:
            super().tell(who, counts)
            if counts["rows"]:
                self.curve.append((time.time(), counts["completion_tokens"]))

        def begin(self, what: str) -> int:
            self.began = self.began or time.time()  # the engine is up and gets its first shard
            return super().begin(what)

        def clock(self) -> tuple[float, Curve]:
            return self.began, self.curve

    kept: list[Any] = []
    put_up, board.Board = board.put_up, Clocked  # type: ignore[misc]

    def kept_up() -> Any:
        kept.append(put_up())
        return kept[-1]

    board.put_up = kept_up
    job, _, _ = settings(home)
    with tempfile.TemporaryDirectory(dir=home) as output, session("local", None):
        job = job.model_copy(update={"output": output})
        counts = generate.generate(job, storage.find(str(home / "rows.jsonl")), Path(job.model))
        began, curve = ray.get(kept[0].clock.remote())
        ended = max(file.stat().st_mtime for file in Path(counts["output"], "data").iterdir())
    tell(curve, began, ended, counts["prompt_tokens"])


def peer(home: Path) -> None:
    """vLLM's offline engine, which stays up: a run for each line on standard input, over all prompts at once."""
    job, kwargs, prompts = settings(home)
    from vllm import LLM, SamplingParams

    llm = LLM(model=job.model, **kwargs)
    curve: list[tuple[float, int]] = []
    step = llm.llm_engine.step

    def clocked() -> Any:
        outputs, before = step(), curve[-1][1] if curve else 0
        if done := sum(len(one.outputs[0].token_ids) for one in outputs if one.finished):
            curve.append((time.time(), before + done))
        return outputs

    llm.llm_engine.step = clocked
    print(json.dumps("up"), flush=True)
    for _ in sys.stdin:
        curve.clear()
        llm.reset_prefix_cache()
        asked: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
        began = time.time()
        llm.generate(asked, SamplingParams(temperature=0, max_tokens=job.max_tokens), use_tqdm=False)
        tell(curve, began, time.time(), sum(map(len, prompts)))


def example(home: Path) -> None:
    """One run of ray.data.llm as its documentation shows it: batches of rows, each answered as a whole."""
    import ray

    from cluster.session import session
    from serving import engine

    job, kwargs, _ = settings(home)
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    kwargs = kwargs | {"disable_log_stats": True}
    most = job.max_tokens
    with session("local", None):
        config = vLLMEngineProcessorConfig(
            model_source=job.model, engine_kwargs=kwargs, batch_size=EXAMPLE_BATCH, concurrency=1,
            chat_template_stage=False, accelerator_type=None, log_engine_metrics=False,
            placement_group_config=engine.placement_group_config(gpu=False),
            runtime_env={"env_vars": engine.env_vars(gpu=False)},
        )  # fmt: skip
        processor = build_processor(
            config,
            preprocess=lambda row: {**row, "sampling_params": {"temperature": 0.0, "max_tokens": most}},
            postprocess=lambda row: {name: row[name] for name in TOLD},
        )
        rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
        data = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // EXAMPLE_BATCH))
        finished, began, read = [], time.time(), 0
        for batch in processor(data).iter_batches(batch_size=None, prefetch_batches=0):
            # a block comes with its slowest row; the others were finished as much earlier as they took less
            took = batch["time_taken_llm"]
            ends = time.time() - took.max() + took
            finished += list(zip(ends.tolist(), batch["num_generated_tokens"].tolist(), strict=True))
            began = ends.max() - took.max() if len(finished) == len(took) else began
            read += int(batch["num_input_tokens"].sum())
    finished.sort()
    tokens = np.cumsum([number for _, number in finished]).tolist()
    tell(list(zip([at for at, _ in finished], tokens, strict=True)), began, finished[-1][0], read)


def settings(home: Path) -> tuple[Any, dict[str, Any], list[list[int]]]:
    """The prepared job, the arguments of every side's engine, and the prompts' tokens. Sets the engine's environment
    for this process."""
    from pipelines.generation.job import Job
    from serving import engine

    about = json.loads((home / "job.json").read_text())
    job = Job(**about["job"])
    os.environ.update(engine.env_vars(gpu=False))
    kwargs = engine.engine_kwargs(job.max_model_len, job.max_num_seqs, job.dtype, Path(job.model), gpu=False)
    return job, kwargs, about["tokens"]


def tell(curve: Curve, began: float, ended: float, prompt_tokens: int) -> None:
    """Print what a run came to."""
    whole = curve[-1][1] / (ended - began)
    run = {"steady": round(steady(curve), 2), "whole": round(whole, 2), "tokens": curve[-1][1],
           "prompt_tokens": prompt_tokens, "seconds": round(ended - began, 2)}  # fmt: skip
    print(json.dumps(run), flush=True)


def steady(curve: Curve) -> float:
    """Tokens a second while `curve` rises from `FROM` to `TO` of its end; between its points it is a straight line."""
    at, tokens = np.array(curve, float).T
    first, last = np.interp([FROM * tokens[-1], TO * tokens[-1]], tokens, at)
    return float((TO - FROM) * tokens[-1] / (last - first))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that an engine is taken down and not left behind
    {"ours": ours, "peer": peer, "example": example}[sys.argv[1]](Path(sys.argv[2]))
