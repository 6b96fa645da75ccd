"""A long soak, run by hand (`make soak`): kills of drivers, actors and their workers at random instants, on an S3
that fails and drops connections all the while. REGROW_SOAK_KILLS says how many kills (100)."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from cluster import storage
from tests import drivers, generated
from tests.drivers import ECHO, Driver, processes
from tests.faulty_s3 import FaultyBucket

pytestmark = [pytest.mark.soak, pytest.mark.timeout(6 * 3600)]
KILLS = int(os.environ.get("REGROW_SOAK_KILLS", "100"))
TITLES = ("MapWorker(MapBatches(Engine))", "ray::MapBatches", "ray::Board")


def test_soak(faulty_bucket: FaultyBucket, tmp_path: Path) -> None:
    """However often whatever dies: each row once, and no part that was there changes."""
    rows, chosen, log = 60 * KILLS, random.Random(KILLS), tmp_path / "log"
    source, out = f"{faulty_bucket.url}/in.jsonl", f"{faulty_bucket.url}/out"
    storage.create(source, generated.lines(generated.rows(rows)).encode())
    faulty_bucket.rates.update({"500": 0.03, "503": 0.03, "drop_upload": 0.02, "drop_answer": 0.02, "slow": 0.02})
    seen: dict[str, bytes] = {}
    driver = None
    with drivers.cluster() as cluster:
        for kill in range(KILLS):
            if driver is None or driver.process.poll() is not None:
                assert driver is None or driver.process.returncode in (0, -signal.SIGKILL), driver.said()
                driver = Driver(source, out, cluster.address, *ECHO, log=log, REGROW_ECHO_SECONDS="0.2")
            time.sleep(chosen.uniform(0.5, 15))
            victims = [found for title in TITLES for found in processes(title)]
            if victims and kill % 2:
                chosen.choice(victims).kill()
            else:
                driver.kill()
            now = generated.bytes_of(out)
            assert all(now[name] == data for name, data in seen.items())
            seen = now
        if driver is not None and driver.process.poll() is None:
            driver.kill()
        Driver(source, out, cluster.address, *ECHO, log=log).ends(timeout=3600)
    generated.check(out, range(rows), before=seen)
    print(f"{KILLS} kills, {len(seen)} parts before the last go, faults {dict(faulty_bucket.counts)}")
