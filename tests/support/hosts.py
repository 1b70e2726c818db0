"""Several hosts on one machine: network namespaces behind a bridge, with Dask's own processes on them.

Where namespaces cannot be made, hosts are addresses of the loopback interface, which have no links to cut.
"""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import trustme

from pipeline.runtime.profiles import ADDRESS_VARIABLE
from tests.support.deadline import DEADLINE_S
from tests.support.whole_system import command

DASK = (sys.executable, "-m", "dask")
SMALL_WORKER = ("--nthreads", "1", "--memory-limit", "2GiB", "--no-dashboard", "--death-timeout", str(DEADLINE_S))
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_numbers = itertools.count()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds; fail with the name `what` after DEADLINE_S."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"never came: {what}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Host:
    """A host with an address of its own. `namespace` is empty where that is one of the loopback interface."""

    address: str
    namespace: str
    link: str
    switch: str

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs another one on this host."""
        return [*(("ip", "netns", "exec", self.namespace) if self.namespace else ()), *arguments]

    def cut(self) -> None:
        """Cut the link; packets on the way are lost."""
        ip("-n", self.switch, "link", "set", self.link, "down")

    def mend(self) -> None:
        """Restore the link."""
        ip("-n", self.switch, "link", "set", self.link, "up")


@dataclass(frozen=True)
class Process:
    """A process that was started here, and its log file."""

    popen: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str) -> None:
        """Wait until the log has `text`."""
        wait_until(lambda: text in self.text() or self.popen.poll() is not None, f"{text!r} in:\n{self.log}")
        assert text in self.text(), self.text()

    def address(self) -> str:
        """Return the address of a scheduler or a worker, from its log."""
        return re.split("Scheduler at:|Start worker at:", self.text())[1].split()[0]

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, to this process alone, and return the exit code."""
        self.popen.send_signal(how)
        return self.popen.wait(DEADLINE_S)


@dataclass(frozen=True)
class Certificates:
    """The certificate of an authority, and one with its key for all hosts of a cluster."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def write(cls, folder: Path, *names: str) -> "Certificates":
        """Make a new authority and a certificate for `names`, below `folder`."""
        folder.mkdir(parents=True)
        made = cls(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")
        authority = trustme.CA()
        issued = authority.issue_cert(*names)
        authority.cert_pem.write_to_path(made.authority)
        issued.cert_chain_pems[0].write_to_path(made.certificate)
        issued.private_key_pem.write_to_path(made.key)
        return made

    def options(self) -> tuple[str, ...]:
        """Return the options of `dask scheduler` and `dask worker`."""
        return (
            "--protocol", "tls", "--tls-ca-file", str(self.authority), "--tls-cert", str(self.certificate),
            "--tls-key", str(self.key),
        )  # fmt: skip

    def security(self) -> dict[str, object]:
        """Return the section `security` of a profile."""
        return {
            "require_encryption": True,
            "tls_ca_file": str(self.authority),
            "tls_client_cert": str(self.certificate),
            "tls_client_key": str(self.key),
        }


class Hosts:
    """Makes hosts and starts processes on them; all of them are gone at the end of the context."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._name = f"hosts{os.getpid()}-{next(_numbers)}"
        self._switch = f"{self._name}-switch"
        self.linked = self._has_switch()
        self._addresses = itertools.count(1)
        self._processes = itertools.count()

    def _has_switch(self) -> bool:
        """Make the bridge, in a namespace of its own; return False where this machine does not permit it."""
        try:
            ip("netns", "add", self._switch)
            self._stack.callback(ip, "netns", "del", self._switch)
            ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", self._switch, "link", "set", "bridge", "up")
        except (OSError, subprocess.CalledProcessError):
            self._stack.close()
            return False
        return True

    def host(self) -> Host:
        """Make one more host."""
        number = next(self._addresses)
        if not self.linked:
            return Host(f"127.0.0.{number + 1}", "", "", "")
        host = Host(f"10.77.0.{number}", f"{self._name}-{number}", f"to{number}", self._switch)
        ip("netns", "add", host.namespace)
        self._stack.callback(ip, "netns", "del", host.namespace)
        ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", host.link,
           "netns", self._switch)  # fmt: skip
        ip("-n", self._switch, "link", "set", host.link, "master", "bridge", "up")
        ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", host.namespace, "link", "set", device, "up")
        return host

    def start(self, host: Host, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> Process:
        """Start a process on a host, as the leader of a session that ends with the context."""
        log = self._folder / f"{next(self._processes)}.log"
        with log.open("wb") as file:
            popen = subprocess.Popen(
                host.command(*map(str, arguments)), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                cwd=self._folder, env={**os.environ, **ENVIRONMENT, **(environment or {})}, start_new_session=True,
            )  # fmt: skip
        self._stack.callback(_end_session, popen)
        return Process(popen, log)

    def scheduler(self, host: Host, *options: str, environment: Mapping[str, str] | None = None) -> "Scheduler":
        """Start a scheduler and wait until it can be reached."""
        process = self.start(
            host, *DASK, "scheduler", "--host", host.address, "--port", "0",
            *(options or ("--dashboard-address", f"{host.address}:0")), environment=environment,
        )  # fmt: skip
        process.wait_for("Scheduler at:")
        return Scheduler(process, process.address())

    def worker(
        self, host: Host, scheduler: str, *options: str, wrapper: tuple[str, ...] = (), wait: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> Process:  # fmt: skip
        """Start a worker, run by `wrapper`, and wait until the scheduler has it."""
        process = self.start(
            host, *wrapper, *DASK, "worker", scheduler, "--host", host.address, *SMALL_WORKER, "--local-directory",
            self._folder / "scratch", *(() if "--nanny" in options else ("--no-nanny",)), *options,
            environment=environment,
        )  # fmt: skip
        if wait:
            process.wait_for("Registered to:")
        return process

    def driver(self, host: Host, *arguments: str | Path, scheduler: str = "") -> Process:
        """Start `python -m pipeline.run`; `scheduler` is passed on in the environment."""
        return self.start(host, *command(*arguments), environment={ADDRESS_VARIABLE: scheduler})

    def run(self, host: Host, *arguments: str | Path, scheduler: str = "") -> tuple[int, str]:
        """Run `python -m pipeline.run` to its end; return the exit code and the log."""
        process = self.driver(host, *arguments, scheduler=scheduler)
        return process.popen.wait(DEADLINE_S), process.text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@dataclass(frozen=True)
class Scheduler:
    """A running scheduler and its address."""

    process: Process
    address: str


def _end_session(popen: subprocess.Popen[bytes]) -> None:
    """Kill all processes of the session of a process that was started here."""
    try:
        os.killpg(popen.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of it has ended
    finally:
        popen.wait(DEADLINE_S)
