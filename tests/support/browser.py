"""A browser for tests: headless Chromium, where there is one."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
CHROMIUM_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=5000",
    "--window-size=1280,1600",
)  # fmt: skip

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: the page's script is not run"
)


def browse(url: str, folder: Path, *options: str) -> str:
    """Return what Chromium writes to stdout for a page."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *CHROMIUM_OPTIONS, f"--user-data-dir={folder / 'chromium'}", *options, url]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.decode()


def text_of(dom: str, identifier: str) -> str:
    """Return the text of the element `identifier` of a page's DOM, which ends with the next tag of its kind."""
    match = re.search(rf'<(\w+)[^>]* id="{identifier}".*?</\1>', dom, re.DOTALL)
    assert match is not None
    return " ".join(re.sub(r"<[^>]*>", " ", match[0]).split())
