"""The actor that answers shards: one writer (engine, endpoint or echo), kept busy with the rows of several shards."""

import asyncio
import json
import time
import uuid
import zlib
from typing import Any

import pyarrow as pa

from pipelines.generation import metrics
from pipelines.generation.job import ECHO, Job
from pipelines.generation.packets import pack, part
from pipelines.generation.shaping import ANSWERS
from serving.writers.request import Message, Refused, Request, Writer, Written

ROUNDS = 2  # times that a shard may take its actor with it before its rows are asked one by one
EACH = 2  # times that a row asked alone may
HOPELESS = 200  # rows that an engine refuses before it has answered one: then it is not the rows
Outcome = Written | dict[str, Any]  # an answer, or {reason, attempts} of a row that has none


class Engine:
    """Ray Data calls it with one shard at a time, several calls at once."""

    def __init__(self, job: str, model: str, kwargs: dict[str, Any], board: Any) -> None:
        self.job = Job.model_validate_json(job)
        self.board = board
        self.who = uuid.uuid4().hex[:8]
        self.writer = _writer(self.job, model, kwargs)
        self.most = seats(self.job)
        self.seats = asyncio.Semaphore(self.most)
        self.turn = asyncio.Lock()
        self.lone = asyncio.Lock()
        self.refused = 0
        self.up: asyncio.Task[None] | None = None
        self.counts: dict[str, Any] = {
            "state": "starting",
            "actor": _actor(),
            "rows": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "restarts": 0,
            "searching": 0,
        }
        self.counted = dict.fromkeys(metrics.COUNTED, 0)
        self.told = 0.0
        self._tell()

    async def __call__(self, packet: pa.Table) -> pa.Table:
        """One shard's packet with its answers put in."""
        asked, name = requests(self.job, packet), packet.column("name")[0].as_py()
        if asked:  # no engine for rows that are all too long
            await self._started()
        if await self._tries(name) <= ROUNDS:
            found = await self._together(asked)
        else:
            found = [await self._alone(one) for one in asked]
        held = [{"id": one.key} | reason for one, reason in zip(asked, found, strict=True) if isinstance(reason, dict)]
        kept = json.dumps(json.loads(packet.column("held")[0].as_py()) + held)
        self.board.end.remote(name)
        self._tell(always=True)
        return pa.table({"name": packet.column("name"), "rows": packet.column("rows"), "held": [kept],
                         "answers": [pack(answers(found))]})  # fmt: skip

    async def _together(self, asked: list[Request]) -> list[Outcome]:
        """The outcome of each of `asked`, no more of them under way than there are seats."""
        found: list[Outcome] = [{}] * len(asked)
        waiting = iter(enumerate(asked, 1))
        last = asyncio.Event()

        async def ask() -> None:
            for number, one in waiting:
                if number == len(asked):
                    last.set()
                found[number - 1] = await self._answer(one)

        # Shards take their seats one after the other: the first is whole, and safe, while others are under way.
        async with self.turn:
            askers = [asyncio.ensure_future(ask()) for _ in range(min(len(asked), self.most))]
            if askers:
                taken = asyncio.ensure_future(last.wait())
                await asyncio.wait([*askers, taken], return_when=asyncio.FIRST_COMPLETED)
                taken.cancel()
        await asyncio.gather(*askers)
        return found

    async def _started(self) -> None:
        if self.up is None:
            self.up = asyncio.ensure_future(self.writer.start())
        await asyncio.shield(self.up)
        self.counts["state"] = "up"

    async def _answer(self, request: Request) -> Outcome:
        """The outcome of one row."""
        try:
            async with self.seats:
                made = await self.writer.write(request)
        except Refused as error:
            self.refused += 1
            if self.refused >= HOPELESS and not self.counts["rows"]:
                raise RuntimeError(f"the first {self.refused:,} rows were all refused; the last: {error}") from error
            return {"reason": str(error), "attempts": error.attempts}
        self.counts["rows"] += 1
        self.counts["prompt_tokens"] += made.prompt_tokens
        self.counts["completion_tokens"] += sum(sample.tokens for sample in made.samples)
        self._tell()
        return made

    async def _alone(self, one: Request) -> Outcome:
        """The outcome of one row of a shard that took its actor with it: by itself, and counted first."""
        async with self.lone:
            tries = await self._tries(one.key)
            if tries > EACH:
                return {"reason": "the process that asks the engine died of this row", "attempts": tries - 1 + ROUNDS}
            made = await self._answer(one)
            self.board.end.remote(one.key)
            return made

    async def _tries(self, what: str) -> int:
        import ray

        try:
            return await self.board.begin.remote(what)
        except ray.exceptions.RayError:  # the board is away for a moment
            return 1

    def _tell(self, always: bool = False) -> None:
        now = time.monotonic()
        if always or now - self.told > 1:
            self.told = now
            self.counts["restarts"] = getattr(self.writer, "restarts", 0)
            self.counts["searching"] = getattr(self.writer, "suspects", 0)
            self.board.tell.remote(self.who, self.counts)
            for key in metrics.COUNTED:
                metrics.count(f"regrow_generate_{metrics.COUNTED[key]}", self.counts[key] - self.counted[key])
                self.counted[key] = self.counts[key]


def requests(job: Job, packet: pa.Table) -> list[Request]:
    """What a shard's packet asks the writer, row by row."""
    rows, asked = part(packet, "rows").select(["id", "prompt"]), part(packet, "asked")
    return [
        Request(key, _prompt(prompt, messages), tokens or [], _seed(job, key))
        for key, prompt, messages, tokens in zip(*_lists(rows), *_lists(asked), strict=True)
    ]


def answers(found: list[Outcome]) -> pa.Table:
    """The samples of a shard's rows as `shaping.ANSWERS`."""
    made = [(place, one.prompt_tokens, one.samples) for place, one in enumerate(found) if isinstance(one, Written)]
    samples = [sample for *_, drawn in made for sample in drawn]
    return pa.table({
        "row": [place for place, _, drawn in made for _ in drawn],
        "sample": [number for *_, drawn in made for number in range(len(drawn))],
        "text": [sample.text for sample in samples],
        "finish_reason": [sample.finish_reason for sample in samples],
        "prompt_tokens": [tokens for _, tokens, drawn in made for _ in drawn],
        "completion_tokens": [sample.tokens for sample in samples],
    }, ANSWERS)  # fmt: skip


def seats(job: Job) -> int:
    """Requests in flight: what the engine works on and a few that wait for a free seat."""
    if job.endpoint:
        return job.concurrency
    return job.max_num_seqs + max(4, job.max_num_seqs // 8)


def _actor() -> str:
    """This actor's id, which stays when Ray starts the actor again."""
    import ray

    return ray.get_runtime_context().get_actor_id() or ""


def _writer(job: Job, model: str, kwargs: dict[str, Any]) -> Writer:
    if job.endpoint:
        from serving.writers.remote import Remote

        return Remote(job.endpoint, job.model, job.sampling, job.concurrency)
    if job.model == ECHO:
        from serving.writers.echo import Echo

        return Echo(job.sampling)
    from serving.writers.local import Local
    from serving.writers.revived import Revived

    return Revived(Local(model, kwargs, job.sampling, job.adapter))


def _prompt(prompt: str, messages: str | None) -> str | list[Message]:
    """A row's prompt as the writer takes it, of `shaping.ASKED`."""
    if messages is None:
        return prompt
    return json.loads(messages) if messages else [{"role": "user", "content": prompt}]


def _seed(job: Job, key: str) -> int | None:
    """A row's own seed, whichever rows are asked beside it; None where nothing is drawn."""
    return (zlib.crc32(key.encode()) + job.seed) % 2**31 if job.temperature else None


def _lists(table: pa.Table) -> list[list[Any]]:
    return [column.to_pylist() for column in table.columns]
