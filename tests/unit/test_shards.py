"""The plan of shards: ids against the plainest way to make them, and every row once whatever happens to the input."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.generation import shards, source

FILES = st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=5)


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "UNIT_FILES", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("input")


class Output:
    """Committed shards: name → (id, content) of its rows."""

    def __init__(self) -> None:
        self.files: dict[str, list[tuple[str, int]]] = {}

    def plan(self, folder: Path, files: list[list[int]], limit: int | None, rows: int = 3) -> shards.Plan:
        sizes = {}
        for number, content in enumerate(files):
            path = folder / f"{number}.jsonl"
            path.write_text("".join(json.dumps({"n": n}) + "\n" for n in content))
            sizes[str(path)] = path.stat().st_size
        units = source.units(sizes)
        ids = self.ids_in
        return shards.plan([source.scan(unit) for unit in units], units, rows, 1000, limit, set(self.files), ids)

    def ids_in(self, name: str) -> Iterator[str]:
        return (identity for identity, _ in self.files[name])

    def commit(self, plan: shards.Plan, wanted: float) -> None:
        """Commit those of the pending shards that `wanted` picks: all where it is 1, else by its bits."""
        for work in plan.work:
            for shard, rows in source.read(work.unit, work.shards, work.lines_before):
                wanted = wanted * 2 % 1 if wanted < 1 else wanted
                if wanted >= 0.5:
                    assert shard.name not in self.files and len(rows) == shard.rows
                    self.files[shard.name] = [(row.id, row.content["n"]) for row in rows]  # type: ignore[index]

    def rows(self) -> list[tuple[str, int]]:
        return [row for rows in self.files.values() for row in rows]


def plainly(files: list[list[int]], limit: int | None) -> list[tuple[str, int]]:
    """(id, content) of the input's rows, one after the other."""
    found, seen = [], Counter[int]()
    for n in [n for content in files for n in content][:limit]:
        seen[n] += 1
        digest = hashlib.sha256(f'{{"n":{n}}}'.encode()).digest()[:16]
        found.append((hashlib.sha256(digest + seen[n].to_bytes(8, "big")).hexdigest()[:20], n))
    return found


@settings(deadline=None)
@given(files=FILES, limit=st.none() | st.integers(1, 30), rows=st.integers(1, 9))
def test_ids_are_those_made_one_by_one(folder: Path, files: list[list[int]], limit: int | None, rows: int) -> None:
    output = Output()
    plan = output.plan(folder, files, limit, rows)
    expected = plainly(files, limit)
    assert (plan.rows, plan.done, plan.pending) == (len(expected), 0, len(expected))
    output.commit(plan, 1)
    assert output.rows() == expected
    assert [name.split("-")[1] for name in output.files] == [f"{n:07d}" for n in range(len(output.files))]
    again = output.plan(folder, files, limit, rows)
    assert (again.work, again.done, again.pending, again.orphans) == ([], len(expected), 0, 0)


STEP = st.tuples(FILES, st.none() | st.integers(1, 30), st.integers(1, 5), st.floats(0, 1))


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=5))
def test_every_row_once_whatever_the_input_was(folder: Path, steps: list) -> None:
    """Inputs that grow, shrink, are reordered or cut otherwise, with any shards committed in between."""
    output, ever = Output(), set[tuple[str, int]]()
    for files, limit, rows, share in [*steps, (*steps[-1][:3], 1)]:
        plan = output.plan(folder, files, limit, rows)
        expected = set(plainly(files, limit))
        before = set(output.rows())
        assert (plan.rows, plan.done) == (len(expected), len(expected & before))
        assert plan.orphans in (None, len(before - expected)) and plan.pending == len(expected - before)
        output.commit(plan, share)
        ever |= expected
        found = output.rows()
        assert len({identity for identity, _ in found}) == len(found) and before <= set(found) <= ever
    assert expected <= set(output.rows())


@settings(deadline=None)
@given(files=FILES, more=FILES)
def test_what_is_appended_leaves_whole_units_as_they_are(
    folder: Path, files: list[list[int]], more: list[list[int]]
) -> None:
    files = files[: len(files) // 2 * 2]
    names = [[shard.name for shard in work.shards] for work in Output().plan(folder, files, None).work]
    longer = [[shard.name for shard in work.shards] for work in Output().plan(folder, files + more, None).work]
    assert longer[: len(names)] == names


def test_a_higher_limit_reads_nothing_back_but_the_last_shard(folder: Path) -> None:
    output, files = Output(), [list(range(10)), list(range(10))]
    output.commit(output.plan(folder, files, 11), 1)
    first = set(output.files)
    plan = output.plan(folder, files, None)
    assert plan.strangers == [sorted(first)[-1]] and (plan.done, plan.pending, plan.orphans) == (11, 9, 0)
    output.commit(plan, 1)
    assert sorted(output.rows()) == sorted(plainly(files, None)) and first < set(output.files)
    lower = output.plan(folder, files, 11)
    assert (lower.work, lower.done) == ([], 11)


def test_strangers_are_read_only_where_rows_are_pending(folder: Path) -> None:
    output, files = Output(), [[1, 2, 3, 4, 5]]
    output.commit(output.plan(folder, files, None), 1)
    output.files["part-0000009-0123456789ab"] = [("00" * 10, 0)]
    read = output.ids_in
    output.ids_in = lambda name: pytest.fail("read")  # type: ignore[method-assign,assignment,return-value]
    plan = output.plan(folder, files, None)
    assert (plan.strangers, plan.orphans, plan.work) == (["part-0000009-0123456789ab"], None, [])
    output.ids_in = read  # type: ignore[method-assign]
    assert output.plan(folder, [[1, 2, 3, 4, 5, 6]], None).orphans == 1


@pytest.mark.parametrize("wrong", ["x", "zz" * 10, "", "0" * 21])
def test_foreign_files_are_named(folder: Path, wrong: str) -> None:
    output = Output()
    output.files["part-0000009-0123456789ab"] = [("00" * 10, 0), (wrong, 0)]
    with pytest.raises(ValueError, match=r"part-0000009-0123456789ab holds an id that regrow did not make"):
        output.plan(folder, [[1]], None)


def test_shards_keep_to_rows_and_bytes() -> None:
    sizes = np.array([1, 1, 1, 1, 50, 3, 3, 4, 1, 9, 11], np.uint32)
    found = list(shards._runs(sizes, 3, 10))
    assert found == [(0, 3), (3, 4), (4, 5), (5, 8), (8, 10), (10, 11)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=40), st.integers(1, 50))
def test_occurrences_where_halves_of_digests_are_equal(pairs: list[tuple[int, int]], limit: int) -> None:
    digests = np.array(pairs, np.uint64).reshape(-1, 2)
    seen, expected = Counter[tuple[int, int]](), []
    for row, pair in enumerate(pairs[:limit]):
        seen[pair] += 1
        if seen[pair] > 1:
            expected.append([row, seen[pair]])
    middle = len(pairs) // 2
    assert shards.occurrences([digests[:middle], digests[middle:]], limit).tolist() == expected


def test_sizes_below_one_are_refused() -> None:
    for rows, size, limit in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            shards.plan([], [], rows, size, limit, set(), lambda name: [])
    empty = shards.plan([], [], 1, 1, None, set(), lambda name: [])
    assert (empty.work, empty.rows, empty.orphans) == ([], 0, 0)
