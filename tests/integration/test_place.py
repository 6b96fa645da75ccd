"""A run's directory that cannot be written, or is full: what is said, with what exit status, and that work goes on."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from pipelines import place
from pipelines.recipe_file import BadInput
from tests import tiny

Regrow = Callable[..., subprocess.CompletedProcess[str]]
Shell = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("where", ["/sys/regrow", "/proc/regrow", "/dev/null/regrow", "rows.jsonl"])
def test_where_nothing_can_be_written(regrow: Regrow, tmp_path: Path, where: str) -> None:
    """Places where root is refused as well: kernel file systems, and below or in place of a file."""
    tiny.run_home(tmp_path)
    done = regrow("run", "mine.toml", f"run_dir={where}", "--until", "prune")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "run_dir: cannot write to " in done.stderr and where in done.stderr
    assert not (tmp_path / "runs").exists()


def test_read_only_file_system(small_disk: Shell, tmp_path: Path) -> None:
    tiny.run_home(tmp_path)
    done = small_disk("disk 1m runs && mount -o remount,ro runs && regrow run mine.toml --until prune")
    assert done.returncode == 2 and "Read-only file system" in done.stderr and "Traceback" not in done.stderr, done


def test_a_full_disk_and_then_more_room(small_disk: Shell, tmp_path: Path) -> None:
    """The checkpoint (0.5 MB) does not fit; safetensors raises an error of its own, which is no OSError."""
    tiny.run_home(tmp_path)
    done = small_disk(
        "disk 300k runs; regrow run mine.toml --until prune; echo status=$?;"
        "mount -o remount,size=20m runs; regrow run mine.toml --until prune; echo status=$?"
    )
    assert done.stdout.split() == ["status=1", "status=0"], done
    assert "regrow: no space left on device (" in done.stderr and "MB free at" in done.stderr
    assert "Traceback" not in done.stderr and "prepare: reused" in done.stderr


def test_not_even_room_to_begin(small_disk: Shell, tmp_path: Path) -> None:
    tiny.run_home(tmp_path)
    done = small_disk("disk 4k runs; printf 1 > runs/filled; regrow run mine.toml --until prune")
    assert done.returncode == 1 and "regrow: no space left" in done.stderr and "Traceback" not in done.stderr, done


def test_all_on_one_full_disk(small_disk: Shell, tmp_path: Path) -> None:
    """The usual case: the run, the temporary directory and the current one fill up together."""
    tiny.run_home(tmp_path)
    done = small_disk(
        "disk 6m room && mv teacher rows.jsonl mine.toml room/ && mount --bind room /var/tmp && mount --bind room /tmp;"
        "cd /tmp && mkdir -p runs/mine && cat /dev/zero > filled; regrow run mine.toml --until prune"
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done
    assert "regrow: no space left on device (0 MB free at /tmp/runs/mine" in done.stderr


WRITERS = {
    "the system": "Path('full/a').write_bytes(bytes(100_000))",
    "tokenizers": "from tests import tiny; tiny.tokenizer().backend_tokenizer.save('full/a')",
    "safetensors": "import torch, safetensors.torch as s; s.save_file({'a': torch.zeros(100_000)}, 'full/a')",
    "arrow": "import pyarrow as p, pyarrow.parquet as q; q.write_table(p.table({'a': list(range(99_999))}), 'full/a')",
    "torch": "import torch; torch.save(torch.zeros(100_000), 'full/a')",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_libraries_raise_is_known(small_disk: Shell, tmp_path: Path, writer: str) -> None:
    """8 kB are all there is. (Not /dev/full: safetensors would put its file in the device's place.)"""
    script = (
        f"from pathlib import Path\nfrom pipelines import place\nwith place.claimed('full'):\n    {WRITERS[writer]}\n"
    )
    (tmp_path / "write.py").write_text(script)
    done = small_disk("disk 8k full; python write.py")
    assert done.stderr.splitlines()[-1].startswith("OSError: no space left on device (0 MB free at full, "), done.stderr


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), place.claimed(str(tmp_path)):
        print(1 / 0)
    with pytest.raises(FileNotFoundError, match="nowhere"), place.claimed(str(tmp_path)):
        Path("/nowhere").read_text()


def test_on_s3_a_lease_stands_for_the_lock(bucket: str) -> None:
    home = storage.join(bucket, "both")
    busy = pytest.raises(BadInput, match=r"is in use by process \d+.*run_dir=DIR")
    with place.claimed(home), busy, place.claimed(home):
        pass
    with place.claimed(home):
        pass


IMPATIENT = "from cluster import s3; s3.PATIENCE = 2.0; from pipelines import cli; cli.main()"


def test_s3_without_credentials_or_server_is_told(regrow: Regrow, tmp_path: Path, monkeypatch: Any) -> None:
    tiny.run_home(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    words = ("run", "mine.toml", "run_dir=s3://nowhere/x", "--until", "prune")
    done = regrow(*words)
    assert done.returncode == 2 and "credentials" in done.stderr and "Traceback" not in done.stderr, done.stderr
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    done = subprocess.run([sys.executable, "-c", IMPATIENT, *words], capture_output=True, text=True, cwd=tmp_path,
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode == 1 and "127.0.0.1:9" in done.stderr and "Traceback" not in done.stderr, done.stderr
