"""A writer that outlives its engine. When the engine dies, the rows that it held are suspects: it is started again and
they are tried apart by halving, until the rows that kill it are known and refused, and all others are answered."""

import asyncio
from dataclasses import dataclass, field

from serving.writers.request import Died, Refused, Request, Writer, Written

# An engine takes about a minute to come up: one restart in so many answered rows costs a job little.
ROWS_A_RESTART = 1000


@dataclass(eq=False)
class _Row:
    """A request on its way. `turn` is resolved when it, as a suspect, may go again (None) or gets its verdict."""

    attempts: int = 0
    died_alone: bool = False
    turn: asyncio.Future[Exception | None] = field(default_factory=asyncio.Future)


class Revived:
    """Passes requests through to `writer`, and starts it again when it died.

    A row that kills the engine twice while alone in it is refused. With at most m rows in flight, p rows that kill
    and k deaths from outside, the engine is started again at most p * (max(1, ceil(log2 m)) + 2) + k times: each such
    row is held in one dying group of every size down to one, where it dies twice. Rows that die of two deaths from
    outside while alone are refused as well: they cannot be told apart.

    At most `restarts` restarts, and one more for every thousand rows answered, then RuntimeError. `restarts` is the
    number made so far, `killers` the rows refused for the engine's death, `suspects` the rows on trial now."""

    def __init__(self, writer: Writer, restarts: int = 32) -> None:
        if restarts < 0:
            raise ValueError(f"restarts is {restarts}: write 0 (a dead engine ends the job) or more")
        self.restarts = 0
        self.killers = 0
        self._writer = writer
        self._allowed = restarts
        self._answered = 0
        self._flying: set[_Row] = set()
        self._suspects: set[_Row] = set()
        self._fallen: list[_Row] = []
        self._landed = asyncio.Event()
        self._open = asyncio.Event()
        self._revival: asyncio.Task[None] | None = None
        self._failed = "the writer was not started"
        self._cause: BaseException | None = None

    @property
    def suspects(self) -> int:
        """Rows that the engine held when it died, and that are neither answered nor refused yet."""
        return len(self._suspects)

    async def start(self) -> None:
        """Come up. Raises what the engine's own start raises."""
        await self._writer.start()
        self._failed, self._cause = "", None
        self._open.set()

    async def write(self, request: Request) -> Written:
        """The answer to one request, however often the engine dies meanwhile.

        Raises Refused for a row that kills the engine, RuntimeError where the engine does not come up again or too
        many rows kill it, and what the writer itself raises but Died."""
        row = _Row()
        while self._failed or not self._open.is_set():
            if self._failed:
                raise RuntimeError(self._failed) from self._cause
            await self._open.wait()
        self._send([row])
        try:
            while True:
                row.attempts += 1
                try:
                    answer = await self._writer.write(request)
                except Died:
                    await self._suspect(row)
                else:
                    self._answered += 1
                    return answer
        finally:
            self._suspects.discard(row)
            self._land(row)

    async def close(self) -> None:
        """Leave nothing running; rows on trial or waiting raise RuntimeError."""
        self._failed = self._failed or "the writer was closed"
        if self._revival is not None:
            self._revival.cancel()
            await asyncio.wait([self._revival])
        await self._writer.close()

    def _send(self, group: list[_Row]) -> None:
        self._flying.update(group)
        self._landed.clear()

    def _land(self, row: _Row) -> None:
        self._flying.discard(row)
        if not self._flying:
            self._landed.set()

    async def _suspect(self, row: _Row) -> None:
        """Waits until a row whose engine died may be sent again; raises its verdict where there is one."""
        row.turn = asyncio.get_running_loop().create_future()
        self._fallen.append(row)
        self._suspects.add(row)
        self._land(row)
        if self._revival is None:
            self._open.clear()
            self._revival = asyncio.create_task(self._revive())
            self._revival.add_done_callback(self._revived)
        verdict = await row.turn
        if verdict is not None:
            raise verdict

    async def _revive(self) -> None:
        """Tries the suspects apart. No new row comes in meanwhile."""
        await self._landed.wait()
        answered = self._answered
        groups = _halves(self._taken())
        killers: list[_Row] = []
        await self._restart()
        while groups:
            # The callers of some may have gone away.
            group = [row for row in groups.pop() if not row.turn.done()]
            if not group:
                continue
            self._send(group)
            for row in group:
                row.turn.set_result(None)
            await self._landed.wait()
            fallen = self._taken()
            if len(group) > 1:
                groups += _halves(fallen)
            elif fallen and fallen[0].died_alone:
                killers += fallen
            elif fallen:
                fallen[0].died_alone = True
                groups.append(fallen)
            # An engine that dies of everything is no fault of the rows: none is refused before another was answered.
            if self._answered > answered or not groups:
                self._refuse(killers)
            if fallen:
                await self._restart()
        self._refuse(killers)

    def _taken(self) -> list[_Row]:
        fallen, self._fallen = self._fallen, []
        return fallen

    def _refuse(self, killers: list[_Row]) -> None:
        for row in killers:
            self.killers += 1
            said = f"the engine died of this row each of the {row.attempts} times that it was tried, twice of it alone"
            self._tell(row, Refused(said, row.attempts))
        killers.clear()

    def _tell(self, row: _Row, verdict: Exception) -> None:
        self._suspects.discard(row)
        if not row.turn.done():
            row.turn.set_result(verdict)

    async def _restart(self) -> None:
        """Starts the engine again, also where it dies while it comes up."""
        while self.restarts < self._allowed + self._answered // ROWS_A_RESTART:
            self.restarts += 1
            try:
                return await self._writer.start()
            except Died:
                continue
            except (RuntimeError, OSError) as error:
                raise RuntimeError(f"the engine died and does not come up again: {error}") from error
        raise RuntimeError(
            f"the engine died again after {self.restarts} restarts: {self.killers} rows were found to kill it and "
            f"refused, {self.suspects} more are suspects, {self._answered} were answered. Something else than the "
            "rows may be wrong: see the engine's log, and try with less memory for it or fewer rows in flight"
        )

    def _revived(self, revival: asyncio.Task[None]) -> None:
        """Opens the gate, or, where the revival failed, ends all who wait."""
        self._revival = None
        if not revival.cancelled():
            self._cause = error = revival.exception()
            if error is not None:
                self._failed = (
                    str(error) if isinstance(error, RuntimeError) else f"starting the engine again: {error!r}"
                )
        elif not self._failed:
            self._failed = "the engine's restart was interrupted"
        if self._failed:
            for row in list(self._suspects):
                self._tell(row, RuntimeError(self._failed))
        self._open.set()


def _halves(rows: list[_Row]) -> list[list[_Row]]:
    """The two halves of a group, as a stack: the first half is the last."""
    half = (len(rows) + 1) // 2
    return [part for part in (rows[half:], rows[:half]) if part]
