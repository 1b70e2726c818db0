"""Processes that die in their first seconds: workers are replaced, and a dead scheduler is one line."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.runtime.nanny import MAX_STARTS
from pipeline.runtime.profiles import ADDRESS_VARIABLE
from tests.support.clusters import run_watched
from tests.support.deadline import DEADLINE_S
from tests.support.hosts import Hosts
from tests.support.whole_system import SMALL, command, write_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), recordings=1)


class Killer:
    """Kills the first worker processes of this process's command as soon as they appear."""

    def __init__(self, kills: int) -> None:
        self.kills = kills
        self.killed: set[int] = set()

    def __call__(self) -> None:
        for process in psutil.Process().children(recursive=True):
            try:
                is_worker = "spawn_main" in " ".join(process.cmdline())
                if is_worker and len(self.killed) < self.kills and process.pid not in self.killed:
                    process.kill()
                    self.killed.add(process.pid)
            except psutil.NoSuchProcess:
                continue


def warnings_and_errors(log: str) -> list[str]:
    return [line for line in log.splitlines() if " INFO " not in line]


def test_worker_that_dies_while_it_starts_is_replaced(corpus: Path, tmp_path: Path) -> None:
    killer = Killer(1)
    result = run_watched(killer, "scan", "--corpus", corpus, "--out", tmp_path, "--workers", "2", *SMALL)
    assert result.returncode == 0, result.stderr
    assert len(killer.killed) == 1
    assert warnings_and_errors(result.stderr) == []
    assert (tmp_path / "manifest.parquet").exists()


def test_workers_that_always_die_while_they_start_are_one_line(corpus: Path, tmp_path: Path) -> None:
    killer = Killer(1000)
    result = run_watched(killer, "scan", "--corpus", corpus, "--out", tmp_path, "--workers", "1", *SMALL)
    assert result.returncode == 1, result.stderr
    assert len(killer.killed) == MAX_STARTS
    (line,) = warnings_and_errors(result.stderr)
    assert line.endswith(
        "--cluster: dask.distributed.LocalCluster did not start: 3 worker processes in a row were killed while they "
        "started, probably for lack of memory"
    )


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("hosts")) as found:
        yield found


def test_scheduler_that_dies_before_a_worker_connects_is_one_line(hosts: Hosts, corpus: Path, tmp_path: Path) -> None:
    host = hosts.host()
    scheduler = hosts.scheduler(host)
    arguments = command("scan", "--corpus", corpus, "--out", tmp_path, "--cluster", "scheduler", *SMALL)
    # Dask tries for 30 s to reach a scheduler that it has lost
    environment = {ADDRESS_VARIABLE: scheduler.address, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s"}
    driver = hosts.start(host, *arguments, environment=environment)
    scheduler.process.wait_for("Receive client connection")
    scheduler.process.end(signal.SIGKILL)
    assert driver.popen.wait(DEADLINE_S) == 1, driver.text()
    (line,) = warnings_and_errors(driver.text())
    assert f"the scheduler at {scheduler.address} is gone; start it again" in line
