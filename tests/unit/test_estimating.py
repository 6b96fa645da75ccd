"""`generate --dry-run`: prompts as the run asks them, token counts by brute force, time and cost by hand."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import gpus
from cluster.gpus import Gpu
from pipelines import models
from pipelines.dry_run import estimating, surveying
from pipelines.generation import asking
from pipelines.generation.job import Columns, Job
from pipelines.planning import work
from pipelines.planning.assumptions import Assumptions
from tests.unit.test_memory import SMALL, small

WORDS = "Tom has apples and gives some of them to his sister, how many are left".split()


def job(tmp_path: Path, **changed: Any) -> Job:
    return Job(**{"model": "tiny", "output": str(tmp_path / "out"), "max_tokens": 64, "max_model_len": 256} | changed)


def jsonl(path: Path, rows: list[Any]) -> dict[str, int]:
    """`rows` as lines (text as it is), and the file as storage.find has it."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return {str(path): path.stat().st_size}


def asked(number: int) -> list[dict[str, str]]:
    """Rows of different lengths."""
    return [{"prompt": f"{n} {' '.join(WORDS[: 1 + n % len(WORDS)])}?"} for n in range(number)]


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models.TINY)


def counted(one: Job, rows: list[dict[str, str]]) -> list[int]:
    """Tokens of each row's prompt, one by one."""
    words = tokenizer()
    texts = [asking.text(one, words, asking.ask(one, row).messages) for row in rows]
    return [len(words(text, add_special_tokens=False).input_ids) for text in texts]


def shown(text: str) -> list[str]:
    """The prompts that `text` shows."""
    return re.findall(r"(?ms)^--- prompt \d: [^\n]*, (?:line|row) \d+ ---\n(.*?)\n(?=\n?---)", text)


def line(text: str, name: str) -> str:
    """The line of `text` that begins with `name`."""
    return next(one for one in text.splitlines() if one.startswith(f"{name} "))


def test_prompts_are_those_of_the_run(tmp_path: Path) -> None:
    one, rows = job(tmp_path), asked(9)
    text = estimating.dry_run(one, jsonl(tmp_path / "a.jsonl", rows), models.TINY)
    words = tokenizer()
    assert shown(text) == [asking.text(one, words, asking.ask(one, rows[n]).messages) for n in (0, 4, 8)]
    assert f"--- prompt 2: {tmp_path}/a.jsonl, line 5 ---" in text
    assert not (tmp_path / "out").exists()


def test_token_counts(tmp_path: Path) -> None:
    one, rows = job(tmp_path, n=2, temperature=0.5), asked(100)
    lengths = sorted(counted(one, rows))
    text = estimating.dry_run(one, jsonl(tmp_path / "a.jsonl", rows), models.TINY)
    assert line(text, "rows").split() == ["rows", "100"]
    assert f"mean {sum(lengths) / 100:,.1f}, p50 {lengths[49]}, p95 {lengths[94]}, max {lengths[99]}" in text
    assert f"{sum(lengths):,} tokens of prompts" in line(text, "read")
    assert "at most 12,800 tokens" in line(text, "written") and "expected 6,400 tokens" in line(text, "written")
    assert "--gpu (A100-40GB, " in line(text, "time")


def test_too_long_rows(tmp_path: Path) -> None:
    """They are counted, named, left out of the totals and not shown as prompts, though their length is told."""
    rows = [*asked(3), {"prompt": "apples " * 300}]
    one = job(tmp_path)
    text = estimating.dry_run(one, jsonl(tmp_path / "a.jsonl", rows), models.TINY)
    lengths = counted(one, rows)
    assert f"{tmp_path}/a.jsonl, line 4: the prompt has {lengths[3]} tokens" in text
    assert "1 of the sample (25.0%)" in text and f"max {lengths[3]}" in text and "1 too long" in text
    assert f"3 to ask\nread       {sum(lengths[:3])} tokens" in text
    assert "apples apples apples apples" not in text


def test_bad_rows_are_named(tmp_path: Path) -> None:
    rows = [*asked(2), "{", {"other": 1}, {"prompt": None}, "[1]", {"prompt": ""}, *["["] * 3]
    text = estimating.dry_run(job(tmp_path), jsonl(tmp_path / "a.jsonl", rows), models.TINY)
    assert "8 of the sample (80.0%) cannot be asked" in text and "and 3 more" in text
    for number, reason in ((3, "not JSON"), (4, "column 'prompt' is missing"), (5, "column 'prompt' is null"),
                           (6, "a JSON object is needed"), (7, "the prompt is empty")):  # fmt: skip
        assert f"a.jsonl, line {number}: {reason}" in text
    assert "prompt (in 4 of 10 rows)" in line(text, "columns")
    assert line(text, "requests").split()[1] == "2"


def test_nothing_to_ask(tmp_path: Path) -> None:
    text = estimating.dry_run(job(tmp_path), jsonl(tmp_path / "a.jsonl", []), models.TINY, "H100-80GB", 3)
    assert "the input has no rows" in text and "--- prompt" not in text
    text = estimating.dry_run(job(tmp_path), jsonl(tmp_path / "a.jsonl", ["{"]), models.TINY, "H100-80GB", 3)
    assert "no row of the sample can be asked" in text and "line 1: not JSON" in text
    text = estimating.dry_run(
        job(tmp_path), jsonl(tmp_path / "a.jsonl", [{"prompt": "a " * 999}]), models.TINY, "H100-80GB", 3
    )
    assert "1 too long" in text and "--- prompt" not in text


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    files = jsonl(tmp_path / "a.jsonl", asked(3))
    with pytest.raises(ValueError, match=r"no column 'text'.*it has 'prompt'"):
        estimating.dry_run(job(tmp_path, columns=Columns(prompt="text")), files, models.TINY)
    with pytest.raises(ValueError, match="names column 'question', which the input lacks"):
        estimating.dry_run(job(tmp_path, template="{question}"), files, models.TINY)
    with pytest.raises(ValueError, match=r"rewrites a reference"):
        estimating.dry_run(job(tmp_path, mode="self_distill"), files, models.TINY)
    with pytest.raises(ValueError, match=r"--gpu 'H100' is not known; known are A100-40GB, .*H200-141GB"):
        estimating.dry_run(job(tmp_path), files, models.TINY, "H100")


def test_rewrites_are_as_long_as_their_references(tmp_path: Path) -> None:
    one = job(tmp_path, mode="self_distill", columns=Columns(reference="said"))
    rows = [row | {"said": " ".join(["apples"] * (20 * n))} for n, row in enumerate(asked(4), 1)]
    words = tokenizer()
    lengths = [len(words(row["said"], add_special_tokens=False).input_ids) for row in rows]
    expected = sum(min(1.2 * length, 64) for length in lengths)
    assert any(1.2 * length > 64 for length in lengths), "one is cut at max_tokens"
    text = estimating.dry_run(one, jsonl(tmp_path / "a.jsonl", rows), models.TINY)
    assert f"expected {float(f'{expected:.3g}'):,.0f} tokens: the references' length times rewrite_ratio = 1.2" in text
    assert "Reference answer: apples" in shown(text)[0]


def test_an_endpoint_and_echo_are_counted_in_words(tmp_path: Path) -> None:
    files = jsonl(tmp_path / "a.jsonl", [{"prompt": "one two three"}, {"prompt": "one"}])
    text = estimating.dry_run(job(tmp_path, endpoint="http://x/v1"), files, None, "H100-80GB", 3)
    assert "words a prompt: mean 2.0, p50 1, p95 3, max 3" in text and "http://x/v1 has the tokenizer" in text
    assert "the endpoint's GPUs are its own" in line(text, "time") and line(text, "requests").split()[1] == "2"
    assert shown(text) == ["one two three", "one"]
    assert "echo needs no GPU" in estimating.dry_run(job(tmp_path, model="echo"), files, None)
    rows = [row | {"reference": "a b c d e"} for row in asked(2)]
    text = estimating.dry_run(job(tmp_path, model="echo"), jsonl(tmp_path / "b.jsonl", rows), None)
    assert "expected 64 tokens: half of max_tokens" in text
    text = estimating.dry_run(job(tmp_path, model="echo", mode="self_distill"), jsonl(tmp_path / "b.jsonl", rows), None)
    assert "expected 12 words: the references' length" in text


def test_time_and_cost_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 prompts of 10 tokens on two engines, two texts of four tokens each, four seats: ten rounds of four steps."""
    gpu = Gpu("slow memory", 1e11, 1e12, 1e6)
    one = job(tmp_path, engines=2, max_num_seqs=4, n=2, temperature=1, dtype="bfloat16", max_model_len=100)
    step = (2 * 2536 + 4 * 12 * 64) / (1e6 * 0.6)
    read = 20 * 10 * 2 * (4 * 592 + 88) / (1e12 * 0.5)
    taken = estimating.cost(one, SMALL, gpu, 40, 10, 4)
    assert taken.gpus == 2 and taken.seconds == pytest.approx(read + 20 * 2 / 4 * 4 * step + 180)
    monkeypatch.setitem(gpus.GPUS, "H100-80GB", gpu._replace(name="H100-80GB"))
    row = {"prompt": "What is 1 + 2?"}
    text = estimating.dry_run(one, jsonl(tmp_path / "a.jsonl", [row] * 40), models.TINY, "H100-80GB", 3)
    taken = estimating.cost(one, models.configuration(models.TINY), gpu, 40, counted(one, [row])[0], 32)
    assert f"{taken.gpu_hours * 3:,.2f}; " in line(text, "cost")
    assert f"{taken.seconds / 60:,.0f} min on 2 × H100-80GB" in line(text, "time")


def test_a_model_too_big_or_unknown_has_no_time(tmp_path: Path) -> None:
    one = job(tmp_path, tensor_parallel=1)
    with pytest.raises(ValueError, match=r"1 × small needs .* raise --tensor-parallel"):
        estimating.cost(one, SMALL, Gpu("small", 1e9, 1e12, 1e12), 1, 1, 1)
    with pytest.raises(ValueError, match=r"family 'gemma'; work is counted for llama"):
        estimating.cost(one, SMALL | {"model_type": "gemma"}, gpus.GPUS["H100-80GB"], 1, 1, 1)


def test_samples_share_their_prompt() -> None:
    engine = work.engine(small(), 4, 2, Gpu("test", 1e11, 1e6, 1e6), 1, 4, Assumptions())
    assert engine.room == 1e11 * 0.92 - 2 * 2536 - 4e9
    again = engine.answer(40, 10, 4) - engine.answer(20, 10, 4, samples=2)
    assert again == pytest.approx(engine.read(20 * 10, 0.5))


def test_rows_of_a_large_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet files say how many rows they have; lines are reckoned from the files' beginnings, also packed ones."""
    monkeypatch.setattr(surveying, "WHOLE", 1000)
    monkeypatch.setattr(surveying, "BEGINNING", 20_000)
    rows = asked(5000)
    plain = jsonl(tmp_path / "a.jsonl", rows)
    found = surveying.survey(plain)
    assert not found.counted and found.rows == pytest.approx(5000, rel=0.05)
    assert found.looked == 256 and [row.line for row in found.sample] == list(range(1, 257))
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert surveying.survey({str(packed): packed.stat().st_size}).rows == pytest.approx(5000, rel=0.1)
    columnar = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist(rows), columnar)
    files = {str(columnar): columnar.stat().st_size}
    assert surveying.survey(files)[1:3] == (5000, True)
    assert surveying.survey(files, 7).looked == 7
    monkeypatch.setattr(surveying, "FEW", 100)
    assert surveying.survey(files, 4000)[1:4] == (4000, True, 256)
    two = plain | jsonl(tmp_path / "d.jsonl", rows)
    assert {row.url for row in surveying.survey(two, 4000).sample} == set(plain), "the limit is in the first"
    assert {row.url for row in surveying.survey(two, 6000).sample} == set(two)
    table = tmp_path / "e.csv"
    table.write_text("prompt\n" + "why?\n" * 5000)
    mixed = plain | files | {str(packed): packed.stat().st_size, str(table): table.stat().st_size}
    found = surveying.survey(mixed)
    assert not found.counted and found.rows == pytest.approx(20_000, rel=0.05), "a row's length by format"
    assert {row.url for row in found.sample} == {*mixed} and len(found.sample) == 256
    with pytest.raises(ValueError, match=r"'x\.txt' has an unknown ending"):
        surveying.survey(files | {"x.txt": 5000})
    assert "about " in line(estimating.dry_run(job(tmp_path), plain, models.TINY), "rows")


def test_a_sample_is_spread_and_never_beyond_the_limit(tmp_path: Path) -> None:
    files = jsonl(tmp_path / "a.jsonl", asked(3000)) | jsonl(tmp_path / "b.jsonl", asked(10))
    found = surveying.survey(files)
    assert (found.rows, found.counted, len(found.sample)) == (3010, True, 256)
    places = [row.line + 3000 * row.url.endswith("b.jsonl") for row in found.sample]
    assert places == sorted(set(places)) and places[0] == 1
    for tenth in range(10):
        assert 10 < sum(tenth * 301 < place <= (tenth + 1) * 301 for place in places) < 45
    assert 90 < sum(place % 2 for place in places) < 166, "rows that take turns are both drawn"
    assert max(row.line for row in surveying.survey(files, 100).sample) == 100
    assert surveying.survey(files, 9999).rows == 3010


def test_a_long_prompt_is_cut_in_the_middle(tmp_path: Path) -> None:
    text = "a" * 1200 + "b" * 345 + "c" * 600
    said = estimating.dry_run(job(tmp_path, model="echo"), jsonl(tmp_path / "a.jsonl", [{"prompt": text}]), None)
    assert shown(said) == ["a" * 1200 + "\n[… 345 characters left out …]\n" + "c" * 600]
    said = estimating.dry_run(job(tmp_path, model="echo"), jsonl(tmp_path / "a.jsonl", [{"prompt": "a\x1b[2Jb"}]), None)
    assert shown(said) == ["a\\x1b[2Jb"], "a terminal does not obey a row"


def test_parts_that_are_there(tmp_path: Path) -> None:
    one = job(tmp_path, model="echo")
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "part-0000000-abc.parquet").write_bytes(b"12345")
    text = estimating.dry_run(one, jsonl(tmp_path / "a.jsonl", asked(1)), None)
    assert "1 part (5 bytes) committed" in line(text, "output")
