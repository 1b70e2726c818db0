"""A browser for tests: headless Chromium, if it is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.deadline import DEADLINE_S

CHROMIUM = shutil.which("chromium")
CHROMIUM_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=5000",
    "--window-size=1280,1600",
)  # fmt: skip

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to run the page's script")


def browse(url: str, folder: Path, *options: str) -> str:
    """Load a page in Chromium with `options`; return Chromium's output."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *CHROMIUM_OPTIONS, f"--user-data-dir={folder / 'chromium'}", *options, url]
    return subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S).stdout.decode()


def text_of(dom: str, identifier: str) -> str:
    """Return the text of the element `identifier` up to the first end tag of its kind."""
    match = re.search(rf'<(\w+)[^>]* id="{identifier}".*?</\1>', dom, re.DOTALL)
    assert match is not None
    return " ".join(re.sub(r"<[^>]*>", " ", match[0]).split())
