"""Kill -9 on whatever works for a job: the driver at many instants, a node; and interruptions. After each, one more go
completes; every row is there once, and what was committed before keeps its bytes."""

import random
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import drivers, generated
from tests.drivers import ECHO, Driver, landed, until

pytestmark = pytest.mark.timeout(1800)
ROWS, KILLS = 1_500, 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with drivers.cluster() as made:
        yield made


@pytest.fixture(scope="module")
def address(cluster: Any) -> str:
    return cluster.address


def test_kill_the_driver_at_many_instants(address: str, tmp_path: Path) -> None:
    """Kills in a row on one output: while it starts, while rows are answered, right when a part lands (twice). Many
    more: test_generate_soak."""
    source, out = generated.write(tmp_path / "in.jsonl", generated.rows(ROWS)), tmp_path / "out"
    chosen, log, grown = random.Random(7), tmp_path / "log", []
    for kill in range(KILLS):
        before = generated.bytes_of(out)
        driver = Driver(source, out, address, *ECHO, log=log, REGROW_ECHO_SECONDS="0.05")
        if kill % 4 == 0:  # somewhere in its start
            time.sleep(chosen.uniform(0.2, 6))
        else:
            wanted = len(before) + chosen.randint(1, 4)
            until(lambda: landed(out) >= wanted, driver, every=0.005)  # noqa: B023
            if kill % 4 == 1:
                time.sleep(chosen.uniform(0, 0.3))
        driver.kill()
        now = generated.bytes_of(out)
        assert all(now[name] == data for name, data in before.items()), "a part that was there has changed"
        grown.append(len(now) - len(before))
    assert 0 < sum(grown) < ROWS / 20, f"the kills have to come before the end: {grown}"
    time.sleep(1)  # what Ray had in flight when the last driver died may still land, whole
    before = generated.bytes_of(out)
    Driver(source, out, address, *ECHO, log=log).ends()
    generated.check(out, range(ROWS), before=before)


def test_a_node_dies(tmp_path: Path) -> None:
    """A node with an engine on it is lost in mid-work: others take over, and nobody has to start again."""
    source, out = generated.write(tmp_path / "in.jsonl", generated.rows(2_000)), tmp_path / "out"
    with drivers.cluster(cpus=1) as cluster:
        workers = [cluster.add_node(num_cpus=4, object_store_memory=128 << 20) for _ in range(2)]
        words = ("--engines", "2", "--max-num-seqs", "8", "--shard-rows", "20", "--model", "echo")
        driver = Driver(source, out, cluster.address, *words, log=tmp_path / "log", REGROW_ECHO_SECONDS="0.05")
        until(lambda: landed(out) >= 5, driver)
        before = generated.bytes_of(out)
        cluster.remove_node(workers[0], allow_graceful=False)
        driver.ends()
    generated.check(out, range(2_000), before=before)


def test_interruptions_end_in_time(address: str, tmp_path: Path) -> None:
    """SIGTERM and Ctrl-C: in half a minute on a quiet machine, with status and word; and the next go completes."""
    source, out = generated.write(tmp_path / "in.jsonl", generated.rows(600)), tmp_path / "out"
    for sign, status, said in ((signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")):
        log = tmp_path / said
        driver = Driver(source, out, address, *ECHO, log=log, REGROW_ECHO_SECONDS="0.1")
        here = landed(out)
        until(lambda: landed(out) > here, driver)  # noqa: B023
        driver.process.send_signal(sign)
        began = time.monotonic()
        driver.ends(status)
        assert time.monotonic() - began < 100 and said in driver.said() and "Traceback" not in driver.said()
    Driver(source, out, address, *ECHO, log=tmp_path / "log").ends()
    generated.check(out, range(600))


def test_prometheus_sees_the_job(cluster: Any, tmp_path: Path) -> None:
    """Ray's agent of the node exports what was answered and committed, while the job runs."""
    source, out = generated.write(tmp_path / "in.jsonl", generated.rows(2_000)), tmp_path / "out"
    driver = Driver(source, out, cluster.address, *ECHO, log=tmp_path / "log", REGROW_ECHO_SECONDS="0.2")
    node = next(node for node in cluster.global_state.node_table() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def told(name: str) -> float:
        try:
            lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
        except OSError:  # Ray's agent of the node takes its time to come up
            return 0
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"ray_{name}"))

    until(lambda: told("regrow_generate_samples_total") > 0 < told("regrow_generate_rows_total"), driver)
    driver.kill()
