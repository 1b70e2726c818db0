"""The page /pipeline of the command line itself, in a browser while an extraction runs."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.browser import browse, needs_chromium, text_of
from tests.support.gate import Gate
from tests.support.whole_system import SMALL, command, run, write_corpus

pytestmark = pytest.mark.slow


@needs_chromium
def test_browser_watches_an_extraction(tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "corpus"), tmp_path / "out"
    assert run("scan", "--corpus", corpus, "--out", out, "--executor", "serial", *SMALL).returncode == 0
    arguments = command("extract", "--corpus", corpus, "--out", out, "--workers", "2", *SMALL)
    gate = Gate.at(tmp_path / "gate", out / "shards", 2)
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=gate.environment) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "extract: dashboard at" in line)
        dom = browse(line.split()[-1], tmp_path, "--dump-dom")
        gate.open()
        rest = process.stderr.read()
    assert process.returncode == 0, rest
    assert line.rstrip().endswith("/pipeline")
    shards = len(list((out / "shards").glob("*.json")))
    assert text_of(dom, "status") == "running"
    done = re.search(rf"([\d,]+) of {shards:,} shards done", dom)
    assert done is not None
    assert 0 <= int(done[1].replace(",", "")) < shards
    assert text_of(dom, "workers").count("of 1.0 GiB") == 2
    assert (out / "report" / "dask.html").exists()
    series = (out / "report" / "extraction.csv").read_text().splitlines()
    assert int(series[-1].split(",")[1]) == shards
