"""What an output holds, counted from its parts' footers; each footer is read once in a go."""

import json
from collections import Counter
from typing import Any

from cluster import storage
from pipelines import parts, verdicts

COUNTS = ("rows", "samples", "quarantined", "fallback", "prompt_tokens", "completion_tokens", "parts")


class Tally:
    """Counts over the committed parts of the output at `url`, as far as they are taken."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._begin()

    def _begin(self) -> None:
        self.taken: set[str] = set()
        self.total: Counter[str] = Counter()
        self.said: Counter[str] = Counter()

    def take(self, mark: str | None = None) -> list[str]:
        """Count the parts that are not counted yet, and write the quarantine files that they lack. Where a `mark` is
        given, parts whose texts were read under another one (rereading.mark) are left out and returned."""
        others, committed = [], parts.names(self.url)
        if not self.taken <= committed.keys():  # somebody removed one: from the beginning
            self._begin()
        there = storage.files(storage.join(self.url, parts.QUARANTINE))
        for name, about in parts.footers(self.url, [name for name in committed if name not in self.taken]):
            if mark not in (None, about["parser"]):
                others.append(name)
                continue
            self.taken.add(name)
            self._add(about)
            if about["quarantine"] and f"{name}.jsonl" not in there:
                self._quarantine(name, about["quarantine"])
        return others

    def _add(self, about: dict[str, Any]) -> None:
        held = len(about["quarantine"])
        self.total.update(parts=1, rows=about["ids"] + held, samples=about["rows"], quarantined=held,
                          fallback=about["fallback"] + held, prompt_tokens=about["prompt_tokens"],
                          completion_tokens=about["completion_tokens"])  # fmt: skip
        self.said.update(about["verdicts"])

    def _quarantine(self, name: str, held: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in held)
        storage.create(storage.join(self.url, parts.QUARANTINE, f"{name}.jsonl"), lines.encode(errors="replace"))

    def counts(self) -> dict[str, Any]:
        """{rows, samples, quarantined, fallback, tokens, parts, each verdict}. `rows` are input rows, those in
        quarantine among them, which count as errors and as fallen back: their references stand in for them."""
        said = self.said + Counter(error=self.total["quarantined"])
        return {key: self.total[key] for key in COUNTS} | {v: said[v] for v in verdicts.VERDICTS}
