"""How far a job is: drawn anew on a terminal, a line every few seconds elsewhere."""

import threading
import time
from collections import Counter, deque
from typing import Any

from pipelines import verdicts
from pipelines.screen import console, say

EVERY = 5.0  # seconds between lines; a terminal is drawn twice a second
WINDOW = 30.0  # seconds over which rates are taken


class Progress:
    """A context manager around the work; `add` is told of each committed shard."""

    def __init__(self, job: Any, rows: int, done: int, board: Any, price: float | None) -> None:
        self.job, self.rows, self.done, self.board, self.price = job, rows, done, board, price
        self.tally: Counter[str] = Counter()
        self.held = 0
        self.began = time.monotonic()
        self.seen: deque[tuple[float, Counter[str]]] = deque()
        self.state = "starting"
        self.engines = 0
        self.restarts = self.suspects = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        self.thread.join(timeout=8)  # longer than it waits for the board: nobody may ask Ray at its shutdown

    def add(self, counts: dict[str, Any]) -> None:
        """Count one committed shard: {rows, held, "verdict …"}."""
        self.done += counts["rows"] + counts["held"]
        self.held += counts["held"]
        self.tally.update({v: counts[f"verdict {v}"] or 0 for v in verdicts.VERDICTS})

    def line(self) -> str:
        """Where the job stands, in one line."""
        return f"generate: {', '.join(f'{value} {name}'.strip() for name, value in self.facts())}"

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) of all that is known, in the order in which people ask."""
        rates = self._rates()
        answered = self.seen[-1][1]["rows"] if self.seen else 0
        samples = self.tally.total()
        shares = [f"{self.tally[v] / samples:.1%} {v}" for v in verdicts.VERDICTS if self.tally[v]]
        found = [(f"rows ({', '.join(shares)})" if shares else "rows", f"{self.done:,} of {self.rows:,}")]
        if self.held:
            found.append(("in quarantine", f"{self.held:,}"))
        found.append(("tokens/s in", f"{rates['prompt_tokens']:,.0f}"))
        found.append(("out", f"{rates['completion_tokens']:,.0f}"))
        found.append((f"engine(s) {self.state}", f"{self.engines} of {self.job.engines}"))
        if self.restarts:
            search = f", looking for the cause among {self.suspects} rows" if self.suspects else ""
            found.append((f"engine restart(s){search}", f"{self.restarts}"))
        if self.price is not None:
            found.append(("so far", f"{self._cost():,.2f}"))
        left = self.rows - self.done
        if rates["rows"] > 0 and answered:
            found.append(("left", _clock(left / rates["rows"])))
        return found

    def _cost(self) -> float:
        gpus = self.job.engines * self.job.tensor_parallel
        return (self.price or 0.0) * gpus * (time.monotonic() - self.began) / 3600

    def _rates(self) -> Counter[str]:
        """Rows and tokens a second over the last `WINDOW` seconds."""
        if len(self.seen) < 2:
            return Counter()
        (first, before), (last, now) = self.seen[0], self.seen[-1]
        return Counter({key: (now[key] - before[key]) / max(last - first, 1e-3) for key in now})

    def _look(self) -> None:
        """Take what the engines say of themselves. A board that is away for a moment says nothing."""
        import ray

        try:
            told = ray.get(self.board.read.remote(), timeout=5)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return
        sums = Counter({key: sum(one[key] for one in told.values()) for key in ("rows", *_TOKENS)})
        self.engines = sum(one["state"] == "up" for one in told.values())
        self.state = "up" if self.engines else "starting"
        self.restarts = sum(one["restarts"] for one in told.values())
        self.suspects = sum(one["searching"] for one in told.values())
        if not self.engines:
            return
        self.seen.append((time.monotonic(), sums))
        while len(self.seen) > 2 and self.seen[0][0] < time.monotonic() - WINDOW:
            self.seen.popleft()

    def _watch(self) -> None:
        if console.is_terminal:
            from rich.live import Live

            with Live(console=console, refresh_per_second=2, transient=True, get_renderable=self._drawn):
                while not self.over.wait(0.5):
                    self._look()
        else:
            while not self.over.wait(EVERY):
                self._look()
                say(self.line())
        self._look()
        say(self.line())

    def _drawn(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        drawn = Table.grid()
        drawn.add_row(ProgressBar(total=max(self.rows, 1), completed=self.done, width=60))
        drawn.add_row("   ".join(f"{value} {name}".strip() for name, value in self.facts()))
        return drawn


_TOKENS = ("prompt_tokens", "completion_tokens")


def _clock(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3 min, 2 h 05 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
