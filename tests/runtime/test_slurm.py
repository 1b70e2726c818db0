"""The profile slurm: a run on Slurm's own daemons on loopback, with two nodes, which end with the tests."""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.runtime.profiles import DEFAULT_FILE
from tests.support.clusters import HOST, Local, free_ports, run_watched, wait_until
from tests.support.deadline import DEADLINE_S
from tests.support.gate import Gate
from tests.support.whole_system import finished_shards, store_bytes

PATH = f"{os.environ['PATH']}:/usr/sbin"
DAEMONS = {name: shutil.which(name, path=PATH) for name in ("munged", "slurmctld", "slurmd")}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(None in DAEMONS.values(), reason="no Slurm here: apt-get install slurm-wlm munge"),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={hostname}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000,defer
ReturnToService=2
KillWait=5
SlurmdTimeout=300
MessageTimeout=60
SlurmdParameters=config_overrides
CommunicationParameters=NoAddrCache,NoCtldInAddrAny,NoInAddrAny
NodeName=n1 NodeHostname={hostname} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={hostname} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """Authentication, controller and two nodes; and the processes of jobs that were seen."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "slurm.conf"
        self.daemons: list[psutil.Popen] = []
        self.seen: set[psutil.Process] = set()
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (folder / "munge.key").chmod(0o600)
        self.file.write_text(
            CONFIGURATION.format(
                hostname=socket.gethostname().split(".")[0], ports=free_ports(3), user=getpass.getuser(), folder=folder
            )
        )

    def start(self) -> None:
        munge = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        self._start("munged", "-F", "-f", f"--socket={self.folder}/munge.sock", *munge)
        wait_until((self.folder / "munge.sock").exists, self.log)
        self._start("slurmctld", "-D", "-c", "-f", str(self.file))
        for node in ("n1", "n2"):
            self._start("slurmd", "-D", "-c", "-N", node, "-f", str(self.file))
        wait_until(lambda: self.ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N") == ["n1", "n2"], self.log)

    def _start(self, name: str, *arguments: str) -> None:
        program = DAEMONS[name]
        assert program is not None
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons.append(psutil.Popen([program, *arguments], stdout=log, stderr=log))

    def ask(self, *line: str) -> list[str]:
        """Return the words that one of Slurm's commands prints, sorted."""
        return sorted(subprocess.run(line, capture_output=True, text=True, check=False).stdout.split())

    def log(self) -> str:
        return "\n".join(file.read_text(errors="replace") for file in self.folder.glob("*.log"))

    def look(self) -> None:
        """Note the processes of jobs, and those that watch over them."""
        for node in self.daemons[2:]:
            self.seen.update(node.children(recursive=True))

    def left(self) -> list[psutil.Process]:
        """Wait until all that was seen has ended; return what has not."""
        alive: list[psutil.Process] = psutil.wait_procs(self.seen, timeout=DEADLINE_S)[1]
        return alive

    def close(self) -> None:
        self.look()
        for process in (*reversed(self.daemons), *self.seen):
            if process.is_running():
                process.kill()
        psutil.wait_procs([*self.daemons, *self.seen], timeout=DEADLINE_S)

    def profile(self) -> dict[str, Any]:
        """Return the profile slurm of this project, on loopback and with two workers."""
        profile: dict[str, Any] = yaml.safe_load(DEFAULT_FILE.read_text())["slurm"]
        profile["kwargs"] |= {
            "scheduler_options": {"host": HOST, "dashboard_address": f"{HOST}:0"},
            "worker_extra_args": ["--host", HOST, "--no-dashboard"],
            "local_directory": str(self.folder / "workers"),
            "log_directory": str(self.folder / "logs"),
        }
        return profile


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    started = Slurm(tmp_path)
    monkeypatch.setenv("SLURM_CONF", str(started.file))
    monkeypatch.setenv("DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT", "1s")  # a worker lost so long is replaced
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.mark.long
def test_cancelled_jobs_are_replaced_and_change_no_byte(
    slurm: Slurm, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    local = Local.at(tmp_path_factory.mktemp("local"))
    out, jobs, cancelled = tmp_path / "out", set[str](), set[str]()
    gate = Gate.at(tmp_path / "gate", out / "shards", 2)

    def cancel_all_when_shards_are_written() -> None:
        slurm.look()
        running = slurm.ask("squeue", "-h", "-t", "running", "-o", "%i")
        jobs.update(running)
        if finished_shards(out) and len(running) == 2 and not cancelled:
            cancelled.update(running)
            subprocess.run(["scancel", *running], check=True)
        if cancelled and jobs > cancelled:
            gate.open()

    profile = slurm.profile() | {"adaptive": {"minimum": 2, "maximum": 2}}
    profile["kwargs"]["worker_extra_args"] += ["--preload", str(gate.module)]
    result = run_watched(cancel_all_when_shards_are_written, *local.extract(tmp_path, profile))

    assert result.returncode == 0, result.stderr + slurm.log()
    assert "Traceback" not in result.stderr
    assert len(cancelled) == 2
    assert jobs > cancelled, "no job came in place of those cancelled"
    assert store_bytes(out) == local.store
    assert slurm.left() == []
    assert slurm.ask("squeue", "-h") == []
