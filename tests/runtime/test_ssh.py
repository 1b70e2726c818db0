"""The profile ssh: whole runs over a real SSH server on loopback, which stops after the tests."""

import getpass
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.runtime.dask_executor import DaskExecutor
from pipeline.runtime.executor import completed
from pipeline.runtime.profiles import DEFAULT_FILE, ClusterProfile
from tests.support.clusters import HOST, Local, free_ports, run_watched, wait_until
from tests.support.deadline import DEADLINE_S
from tests.support.gate import Gate
from tests.support.whole_system import finished_shards, run, run_until, store_bytes

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SSHD is None, reason="no sshd here: apt-get install openssh-server"),
]

CONFIGURATION = """
ListenAddress {host}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
"""


class Server:
    """An SSH server with its own keys, and the Python processes that were seen in its sessions."""

    def __init__(self, folder: Path) -> None:
        assert SSHD is not None
        self.folder = folder
        (self.port,) = free_ports(1)
        for name in ("host_key", "user_key", "stranger_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        host_key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[{HOST}]:{self.port} {host_key}")
        (folder / "sshd_config").write_text(CONFIGURATION.format(host=HOST, port=self.port, folder=folder))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # it will not start as root without this folder
        with (folder / "sshd.log").open("wb") as log:
            self.process = psutil.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
        self.seen: set[psutil.Process] = set()
        wait_until(lambda: "Server listening" in self.log(), self.log)

    def log(self) -> str:
        return (self.folder / "sshd.log").read_text()

    def look(self) -> None:
        """Record the Python processes of all sessions: schedulers, nannies, workers."""
        for process in self.process.children(recursive=True):
            try:
                if "python" in process.name():
                    self.seen.add(process)
            except psutil.NoSuchProcess:
                continue

    def left(self) -> list[psutil.Process]:
        """Wait until all recorded processes have ended; return those that have not."""
        alive: list[psutil.Process] = psutil.wait_procs(self.seen, timeout=DEADLINE_S)[1]
        return alive

    def profile(self, **connect_options: Any) -> dict[str, Any]:
        """Return the profile ssh of this project with two workers behind this server."""
        profile: dict[str, Any] = yaml.safe_load(DEFAULT_FILE.read_text())["ssh"]
        profile["kwargs"]["hosts"] = [HOST, HOST, HOST]
        profile["kwargs"]["connect_options"] = {
            "port": self.port,
            "username": getpass.getuser(),
            "client_keys": [str(self.folder / "user_key")],
            "known_hosts": str(self.folder / "known_hosts"),
            **connect_options,
        }
        profile["kwargs"]["scheduler_options"]["dashboard_address"] = f"{HOST}:0"
        profile["kwargs"]["worker_options"]["local_directory"] = str(self.folder / "workers")
        return profile

    def close(self) -> None:
        self.look()
        self.process.terminate()
        self.process.wait()
        for process in self.seen:
            if process.is_running():
                process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("ssh"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Local:
    return Local.at(tmp_path_factory.mktemp("local"))


def in_the_middle(server: Server, out: Path) -> Callable[[str], bool]:
    """Return a condition: some shards are finished. It records the processes meanwhile."""

    def condition(log: str) -> bool:
        server.look()
        return finished_shards(out) >= 2

    return condition


def test_a_run_over_ssh_gives_the_same_store_and_leaves_nothing_running(
    server: Server, local: Local, tmp_path: Path
) -> None:
    before = len(server.seen)
    result = run_watched(server.look, *local.extract(tmp_path, server.profile()))
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert store_bytes(tmp_path / "out") == local.store
    assert len(server.seen) - before >= 3, "a scheduler and two workers"
    assert server.left() == []


@pytest.mark.long
def test_ctrl_c_leaves_nothing_running_and_the_same_command_continues(
    server: Server, local: Local, tmp_path: Path
) -> None:
    gate = Gate.at(tmp_path / "gate", tmp_path / "out" / "shards", 2)
    profile = server.profile()
    profile["kwargs"]["worker_options"]["preload"] = [str(gate.module)]
    arguments = local.extract(tmp_path, profile)
    result = run_until(in_the_middle(server, tmp_path / "out"), signal.SIGINT, *arguments)
    assert result.returncode == 130, result.stderr
    assert result.stderr.splitlines()[-1].endswith("interrupted; the same command continues")
    assert "Traceback" not in result.stderr
    assert server.left() == []
    gate.open()
    assert run_watched(server.look, *arguments).returncode == 0
    assert store_bytes(tmp_path / "out") == local.store


@pytest.mark.long
def test_a_killed_driver_leaves_nothing_running_beyond_the_idle_timeout(
    server: Server, local: Local, tmp_path: Path
) -> None:
    gate = Gate.at(tmp_path / "gate", tmp_path / "out" / "shards", 2)
    profile = server.profile()
    profile["kwargs"]["worker_options"]["preload"] = [str(gate.module)]
    # a busy machine takes half of it from the scheduler's start to the first task
    profile["kwargs"]["scheduler_options"]["idle_timeout"] = "60s"
    arguments = local.extract(tmp_path, profile)
    result = run_until(in_the_middle(server, tmp_path / "out"), signal.SIGKILL, *arguments)
    assert result.returncode == -signal.SIGKILL
    gate.open()
    assert server.left() == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("key", "Permission denied"),
        pytest.param("port", "Connect call failed", marks=pytest.mark.long),
        pytest.param("host", "not trusted", marks=pytest.mark.long),
    ],
)
def test_a_host_that_lets_nobody_in_is_one_line(
    server: Server, local: Local, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "nobody").touch()
    wrong = {
        "port": {"port": free_ports(1)[0], "known_hosts": None},
        "key": {"client_keys": [str(server.folder / "stranger_key")]},
        "host": {"known_hosts": str(tmp_path / "nobody")},
    }
    result = run(*local.extract(tmp_path, server.profile(**wrong[name])))
    assert result.returncode == 1
    begins, line = result.stderr.splitlines()
    assert begins.endswith("extract: begins")
    assert "--cluster: dask.distributed.SSHCluster did not start: " in line
    assert reason in line


@pytest.mark.long
def test_a_worker_that_writes_megabytes_to_its_log_is_not_blocked(server: Server, tmp_path: Path) -> None:
    def shout(byte: str) -> int:
        return sys.stderr.write(byte * 2**23)

    with DaskExecutor(ClusterProfile.model_validate(server.profile()), None) as executor:
        assert [done.result for done in completed(executor.run(shout, "ab"))] == [2**23, 2**23]
        server.look()
    assert server.left() == []
