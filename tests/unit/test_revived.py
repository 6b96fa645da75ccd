"""The writer that survives its engine, over an engine that is asyncio code alone: rows in it die together."""

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.writers.request import Died, Refused, Request, Sample, Written
from serving.writers.revived import ROWS_A_RESTART, Revived


class Engine:
    """Holds each row for some turns of the loop; a poison row kills it, and the writes of `killed` do from outside."""

    def __init__(self, poison: set[int] = frozenset(), turns: list[int] | None = None, killed: set[int] = frozenset()):  # type: ignore[assignment]
        self.poison, self.turns, self.killed = poison, turns or [2], killed
        self.alive = False
        self.life = self.starts = self.writes = self.now = self.most = 0
        self.wont_start: Exception | None = None
        self.closed = False

    def die(self) -> None:
        self.alive, self.life = False, self.life + 1

    async def start(self) -> None:
        await asyncio.sleep(0)
        self.starts += 1
        if self.wont_start and self.starts > 1:
            raise self.wont_start
        self.alive = True

    async def write(self, request: Request) -> Written:
        row, life = int(request.key), self.life
        self.writes += 1
        if self.writes in self.killed:
            self.die()
        if not self.alive:
            raise Died("no engine")
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            for _ in range(self.turns[row % len(self.turns)]):
                await asyncio.sleep(0)
                if self.life != life:
                    raise Died("gone")
            if row in self.poison:
                self.die()
                raise Died("killed")
        finally:
            self.now -= 1
        return Written([Sample(request.key, "stop", 1)], 1)

    async def close(self) -> None:
        self.closed = True


def run(job: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(job, 20)

    return asyncio.run(bounded())


async def all_of(writer: Revived, order: list[int], concurrency: int) -> dict[int, str | Refused]:
    """What became of every row, `concurrency` in flight."""
    found: dict[int, str | Refused] = {}
    waiting = iter(order)

    async def worker() -> None:
        for row in waiting:
            try:
                found[row] = (await writer.write(Request(str(row), "p"))).samples[0].text
            except Refused as refused:
                found[row] = refused

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return found


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 40),
    concurrency=st.integers(1, 40),
    turns=st.lists(st.integers(1, 6), min_size=1, max_size=7),
    killed=st.sets(st.integers(1, 60), max_size=3),
    data=st.data(),
)
def test_the_innocent_are_answered_and_the_killers_refused(
    rows: int, concurrency: int, turns: list[int], killed: set[int], data: st.DataObject
) -> None:
    """For any poison rows, order, lengths and deaths from outside; and no more restarts than are promised."""
    poison = data.draw(st.sets(st.integers(0, rows - 1), max_size=6))
    order = data.draw(st.permutations(range(rows)))
    engine = Engine(poison, turns, killed)
    writer = Revived(engine, restarts=1000)

    async def job() -> dict[int, str | Refused]:
        await writer.start()
        return await all_of(writer, order, concurrency)

    found = run(job())
    refused = {row for row, answer in found.items() if isinstance(answer, Refused)}
    assert found.keys() == set(range(rows))
    assert all(found[row] == str(row) for row in found.keys() - refused)
    assert poison <= refused and len(refused - poison) <= len(killed) // 2
    depth = max(1, math.ceil(math.log2(min(rows, concurrency))))
    assert writer.restarts == engine.starts - 1 <= len(poison) * (depth + 2) + len(killed)
    assert engine.most <= concurrency and writer.suspects == 0 and writer.killers == len(refused)


def test_the_bound_is_reached_and_the_attempts_are_counted() -> None:
    """One killer among 64: the first death, groups of 32, 16, 8, 4, 2, and twice alone."""
    writer = Revived(Engine({5}, [1]))

    async def job() -> dict[int, str | Refused]:
        await writer.start()
        return await all_of(writer, list(range(64)), 64)

    refused = run(job())[5]
    assert isinstance(refused, Refused) and refused.attempts == writer.restarts == 6 + 2
    assert "died of this row each of the 8 times" in str(refused)


def test_a_row_alone_when_somebody_kills_the_engine_is_answered() -> None:
    async def job() -> None:
        writer = Revived(Engine(killed={1, 2}))
        await writer.start()
        assert await all_of(writer, [0], 1) == {0: "0"}
        assert writer.restarts == 2

    run(job())


def test_an_engine_found_dead_is_started_again() -> None:
    async def job() -> None:
        engine = Engine()
        writer = Revived(engine)
        await writer.start()
        await all_of(writer, list(range(4)), 2)
        engine.die()
        assert len(await all_of(writer, list(range(8)), 8)) == 8
        assert writer.restarts == 1 and writer.killers == 0

    run(job())


def test_many_killers_end_the_job_with_their_number() -> None:
    async def job() -> None:
        writer = Revived(Engine(set(range(0, 400, 2))), restarts=20)
        await writer.start()
        with pytest.raises(BaseExceptionGroup) as raised:
            await all_of(writer, list(range(400)), 8)
        told = raised.value.exceptions[0]
        assert isinstance(told, RuntimeError) and "after 20 restarts" in str(told) and writer.killers > 2
        assert f"{writer.killers} rows were found to kill it" in str(told)

    run(job())


def test_an_engine_that_dies_of_everything_refuses_no_row() -> None:
    """The rows are not to blame, so none must end in quarantine."""

    async def job() -> None:
        writer = Revived(Engine(set(range(100))), restarts=20)
        await writer.start()
        asked = [asyncio.create_task(writer.write(Request(str(row), "p"))) for row in range(16)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(end) for end in ends} == {RuntimeError} and writer.killers == 0

    run(job())


def test_answered_rows_earn_restarts() -> None:
    async def job() -> None:
        engine = Engine()
        writer = Revived(engine, restarts=1)
        await writer.start()
        for _ in range(3):
            engine.die()
            await all_of(writer, list(range(ROWS_A_RESTART)), 50)
        assert writer.restarts == 3
        engine.die()
        await all_of(writer, [0], 1)
        engine.die()
        with pytest.raises(BaseExceptionGroup):
            await all_of(writer, [0], 1)

    run(job())


@pytest.mark.parametrize("error", [RuntimeError("no memory"), OSError("no memory"), TypeError("no memory")])
def test_an_engine_that_stays_down_ends_all_who_wait(error: Exception) -> None:
    async def job() -> None:
        engine = Engine({3})
        engine.wont_start = error
        writer = Revived(engine)
        await writer.start()
        asked = [asyncio.create_task(writer.write(Request(str(row), "p"))) for row in range(8)]
        while not writer.suspects:
            await asyncio.sleep(0)
        asked.append(asyncio.create_task(writer.write(Request("9", "p"))))  # waits at the gate
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(end, RuntimeError) and "no memory" in str(end) for end in ends[-2:])
        with pytest.raises(RuntimeError, match="no memory"):
            await writer.write(Request("10", "p"))

    run(job())


@settings(max_examples=100, deadline=None)
@given(after=st.lists(st.integers(0, 40), min_size=1, max_size=6), poison=st.sets(st.integers(0, 11), max_size=3))
def test_cancelled_callers_hold_up_nobody(after: list[int], poison: set[int]) -> None:
    """Rows are cancelled at any turn of the loop, before, during and after the trial."""

    async def job() -> None:
        engine = Engine(poison, [2, 5])
        writer = Revived(engine, restarts=1000)
        await writer.start()
        asked = [asyncio.create_task(writer.write(Request(str(row), "p"))) for row in range(12)]
        for place, turns in enumerate(after):
            for _ in range(turns):
                await asyncio.sleep(0)
            asked[place * 2].cancel()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        for row, end in enumerate(ends):
            cancelled = isinstance(end, asyncio.CancelledError) and row % 2 == 0 and row // 2 < len(after)
            assert cancelled or (isinstance(end, Refused) if row in poison else isinstance(end, Written))
        assert writer.suspects == 0
        assert len(await all_of(writer, [20, 21], 2)) == 2

    run(job())


def test_closing_in_the_middle_of_a_revival_leaves_nothing() -> None:
    async def job() -> None:
        engine = Engine({0})
        writer = Revived(engine)
        await writer.start()
        asked = [asyncio.create_task(writer.write(Request(str(row), "p"))) for row in range(8)]
        while not writer.suspects:
            await asyncio.sleep(0)
        await writer.close()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert any(isinstance(end, RuntimeError) and "closed" in str(end) for end in ends) and engine.closed
        assert len(asyncio.all_tasks()) <= 2  # this one and the one that bounds it

    run(job())


def test_what_the_writer_refuses_is_refused_also_on_trial() -> None:
    class Choosy(Engine):
        async def write(self, request: Request) -> Written:
            written = await super().write(request)
            if request.key == "2":
                raise Refused("too long")
            return written

    async def job() -> None:
        writer = Revived(Choosy({0}, [1, 1, 4]))
        await writer.start()
        found = await all_of(writer, [0, 1, 2, 3], 4)
        assert str(found[2]) == "too long" and found[1] == "1" and found[3] == "3"

    run(job())


def test_before_its_start_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        run(Revived(Engine()).write(Request("0", "p")))
    with pytest.raises(ValueError, match="restarts is -1"):
        Revived(Engine(), restarts=-1)
