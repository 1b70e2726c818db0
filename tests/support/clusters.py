"""Shared by the tests of clusters: a store made by one process to compare with, and runs that are watched."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.deadline import DEADLINE_S
from tests.support.whole_system import SMALL, command, run, store_bytes, write_corpus

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Local:
    """A corpus, an output folder with its manifest, and the store as one process makes it."""

    corpus: Path
    scanned: Path
    store: dict[str, bytes]

    @classmethod
    def at(cls, folder: Path, recordings: int = 4) -> "Local":
        """Make them in `folder`, with so many recordings per speaker."""
        corpus, scanned, out = (
            write_corpus(folder / "corpus", recordings=recordings),
            folder / "scanned",
            folder / "out",
        )
        assert run("scan", "--corpus", corpus, "--out", scanned, "--executor", "serial", *SMALL).returncode == 0
        shutil.copytree(scanned, out)
        assert run("extract", "--out", out, "--executor", "serial", *SMALL).returncode == 0
        return cls(corpus, scanned, store_bytes(out))

    def extract(self, folder: Path, profile: dict[str, Any]) -> tuple[str | Path, ...]:
        """Return the arguments of an extraction with that profile into `folder`/out."""
        if not (folder / "out").exists():
            shutil.copytree(self.scanned, folder / "out")
        file = folder / "cluster.yaml"
        file.write_text(yaml.safe_dump({"mine": profile}))
        return ("extract", "--out", folder / "out", "--cluster", "mine", "--cluster-file", file, *SMALL)


def run_watched(look: Callable[[], None], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run to the end, and call `look` every 50 ms."""
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True) as process:
        deadline_s = time.monotonic() + DEADLINE_S
        while process.poll() is None:
            if time.monotonic() > deadline_s:
                process.kill()
            look()
            time.sleep(0.05)
        assert process.stderr is not None
        return subprocess.CompletedProcess(process.args, process.returncode, "", process.stderr.read())


def free_ports(count: int) -> list[int]:
    """Return free ports of the loopback interface."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def wait_until(condition: Callable[[], bool], trouble: Callable[[], str]) -> None:
    """Wait until `condition` holds; fail with the text of `trouble`."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, trouble()
        time.sleep(0.05)
