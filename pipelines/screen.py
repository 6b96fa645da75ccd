"""What a run prints: lines with the time since the start, on standard error, so that output can be piped."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(stderr=True, highlight=False)
_began = time.monotonic()


def say(text: str) -> None:
    """Print one line of progress."""
    minutes, seconds = divmod(int(time.monotonic() - _began), 60)
    console.print(f"[dim]{minutes:02d}:{seconds:02d}[/dim] {text}", soft_wrap=True)


def table(report: dict[str, Any]) -> None:
    """Print the recovery table of a report to standard output."""
    shown = Table("model", "parameters", "average", "in-domain", "out-of-domain", "recovery %", "95 % interval")
    size = {model["name"]: model["parameters"] for model in report["models"]}
    for row in report["recovery"]:
        shares = [_share(row[key]) for key in ("average", "in_domain", "out_of_domain")]
        interval = "" if not row["ci95"] else f"{row['ci95'][0]:.1f} – {row['ci95'][1]:.1f}"
        recovery = "" if row["recovery"] is None else f"{row['recovery']:.1f}"
        shown.add_row(row["model"], f"{size[row['model']] / 1e6:,.2f} M", *shares, recovery, interval)
    # A pipe has no width; 80 columns would break the table's cells.
    Console(width=None if sys.stdout.isatty() else 110).print(shown)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
