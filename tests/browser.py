"""A real browser for pages."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        if os.environ.get("REGROW_NO_BROWSER") == "1":
            pytest.skip("REGROW_NO_BROWSER=1: the page is not looked at in a browser")
        pytest.fail("no Chromium found: install it (apt-get install chromium) or set REGROW_NO_BROWSER=1 to do without")
    return found


def chromium(tmp_path: Path, page: Path | str, *flags: str) -> tuple[str, list[str]]:
    """Open `page`, a file or an address, in a fresh headless Chromium: what it prints, and the lines of its console."""
    command = [browser(), "--headless", "--no-sandbox", "--enable-logging=stderr", "--no-first-run",
               "--disable-gpu", "--disable-quic",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}", *flags,
               page if isinstance(page, str) else page.as_uri()]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
