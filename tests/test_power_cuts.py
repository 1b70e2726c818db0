"""Power cuts at random moments: the same command again ends with the bytes of an undisturbed run.

POWER_CUTS is the number of cuts, of which each has a seed of its own (`make power-cuts CUTS=50`).
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from upath import UPath

from model.bundle import version_of
from model.registry.registry import champion_folder
from tests.support.deadline import DEADLINE_S
from tests.support.disk import Disk, mounted
from tests.support.whole_system import SMALL, store_bytes, write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.long]

CUTS = int(os.environ.get("POWER_CUTS", "5"))
COMMANDS = {
    "extract": ("extract",),
    "append": ("scan", "extract"),
    "compact": ("compact",),
    "train": ("train",),
    "promote": ("promote",),
}
"""The commands of a job, in the order in which jobs follow each other."""
SETTINGS = ("--executor", "serial", *SMALL, "--set=models.ann=null", "--set=promotion.model=lstm")
TIMES = ("wall_s", "steps_per_s", "input_wait")
"""Columns of history.csv that depend on the machine."""


@dataclass(frozen=True)
class Job:
    """Commands, the folder that they begin with, the results in which they end, and the seconds that they take."""

    commands: tuple[str, ...]
    before: Path
    results: Mapping[str, Any]
    wall_s: float


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", recordings=6)


@pytest.fixture(scope="module")
def jobs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Every job, done once without a power cut."""
    place = tmp_path_factory.mktemp("undisturbed")
    out, jobs = place / "out", {}
    assert start(corpus, out, ("scan",)).wait(DEADLINE_S) == 0
    for name, commands in COMMANDS.items():
        if name == "append":
            write_corpus(corpus.parent / "more", languages=("de", "fr"), recordings=2)
            shutil.copytree(corpus.parent / "more" / "fr", corpus / "fr")
        before = Path(shutil.copytree(out, place / name))
        process = start(corpus, out, commands)
        begun_s = wait_until_begun(process, out)
        assert process.wait(DEADLINE_S) == 0
        jobs[name] = Job(commands, before, results_in(out), time.monotonic() - begun_s)
    return jobs


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path) as disk:
        yield disk


def start(corpus: Path, out: Path, commands: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start commands, one after the other, in a process group of their own."""
    options = ["--out", str(out), *SETTINGS]
    lines = [[sys.executable, "-m", "pipeline.run", name, "--corpus", str(corpus), *options] for name in commands]
    script = " && ".join(shlex.join(line) for line in lines)
    return subprocess.Popen(["sh", "-c", script], start_new_session=True)


def wait_until_begun(process: subprocess.Popen[bytes], out: Path) -> float:
    """Wait for the first write of a command, which is that of run.json; return the time."""
    file, deadline_s = out / "run.json", time.monotonic() + DEADLINE_S
    before = file.stat().st_mtime_ns
    while process.poll() is None and file.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    return time.monotonic()


def wait_until_ended(group: int) -> None:
    """Wait for the last process of a group: those that a write keeps busy end later than the first."""
    deadline_s = time.monotonic() + DEADLINE_S
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline_s:
            os.killpg(group, 0)
            time.sleep(0.01)


def results_in(out: Path) -> dict[str, Any]:
    """Return what must be equal in the end: bytes, the weights of models, and the champion."""
    files = ["manifest.parquet", "ledger.parquet", *(f"models/lstm/{name}" for name in ("labels.json",))]
    found: dict[str, Any] = {name: (out / name).read_bytes() for name in files if (out / name).exists()}
    found |= store_bytes(out)
    if (out / "models/lstm").exists():
        found["version"] = version_of(UPath(str(out / "models/lstm")))
        history = pd.read_csv(out / "models/lstm/history.csv").drop(columns=list(TIMES), errors="ignore")
        found["history"] = history.to_csv()
    champion = champion_folder(UPath(str(out / "registry")))
    if champion is not None:
        found["champion"] = (champion.name, version_of(champion))
    return found


@pytest.mark.parametrize("number", range(CUTS))
def test_nothing_is_lost_by_a_power_cut(number: int, corpus: Path, jobs: dict[str, Job], disk: Disk) -> None:
    job, out = list(jobs.values())[number % len(jobs)], disk.place / "out"
    shutil.copytree(job.before, out)
    disk.restart()
    process = start(corpus, out, job.commands)
    wait_until_begun(process, out)
    with suppress(subprocess.TimeoutExpired):  # a moment of the job, or just after its end
        process.wait(np.random.default_rng(number).uniform(0, 1.1 * job.wall_s))
    finished = process.poll() == 0
    disk.cut_power()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(DEADLINE_S)
    wait_until_ended(process.pid)
    disk.restart()
    if finished:
        assert differing(job.results, results_in(out)) == []
    again = start(corpus, out, job.commands)
    assert again.wait(DEADLINE_S) == 0
    assert differing(job.results, results_in(out)) == []
    assert not (out / "compacted").exists()
    assert list(out.rglob("*.partial")) == []


def differing(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the names of results that differ."""
    return sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
