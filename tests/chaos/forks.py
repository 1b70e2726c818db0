"""Commands as forks of one process that has imported everything, so that none of them takes seconds to start.

A command can be killed at the Nth change that it makes below its output folder: before a file is opened to be written,
moved or deleted, or a folder is made. So a seed decides where a kill falls, whatever the load of the machine.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


@dataclass(frozen=True)
class Ended:
    """The exit code of a command (negative: the signal that ended it), its log, and the changes that it made."""

    code: int
    log: str
    changes: int


class Forks:
    """Runs commands one after the other; a context manager that ends the process which they are forks of.

    With `trains` that process has imported TensorFlow, which takes seconds.
    """

    def __init__(self, folder: Path, *, trains: bool, **environment: str) -> None:
        self._log, self._count = folder / "forks.log", folder / "forks.count"
        self._server = subprocess.Popen(
            [sys.executable, "-B", "-m", "tests.chaos.forks", *(["keras"] if trains else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def run(self, out: Path, *arguments: str, kill_at: int = -1, **environment: str) -> Ended:
        """Run a command that writes below `out`; with `kill_at` it is killed at the change of that number."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = [str(out), arguments, environment, kill_at, str(self._log), str(self._count)]
        print(json.dumps(request), file=self._server.stdin, flush=True)
        code = json.loads(self._server.stdout.readline())
        return Ended(code, self._log.read_text(encoding="utf-8"), int(self._count.read_text()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()


class Changes:
    """An audit hook that counts the changes below a folder, and kills this process at the one of number `kill_at`."""

    def __init__(self, folder: str, kill_at: int, count: str) -> None:
        self._folder, self._kill_at, self._count = folder, kill_at, 0
        self._file = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def __call__(self, event: str, details: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and isinstance(details[2], int) and details[2] & os.O_ACCMODE):
            place = os.fsdecode(details[0]) if isinstance(details[0], str | bytes | os.PathLike) else ""
            if place.startswith(self._folder) or not place.startswith("/"):  # relative to an open folder
                self.save()
                if self._count == self._kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                self._count += 1

    def save(self) -> None:
        """Write the number of changes so far."""
        os.pwrite(self._file, str(self._count).encode(), 0)


def serve(*packages: str) -> None:
    """Fork a process for each request on standard input, and print its exit code."""
    for package in ("matplotlib.pyplot", *packages):
        importlib.import_module(package)
    import pipeline.report.page
    import pipeline.run  # noqa: F401
    from pipeline.extraction import compact, verify  # noqa: F401
    from pipeline.features.mfcc import Mfcc

    Mfcc().extract(iter([np.ones(1000, np.float32)]), 0, 1)  # loads compiled code

    for line in sys.stdin:
        process = os.fork()
        if not process:
            _command(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def _command(out: str, arguments: list[str], environment: dict[str, str], kill_at: int, log: str, count: str) -> None:
    """Run a command, and end this process with its exit code."""
    from pipeline.run import command_line

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(environment)
    changes = Changes(out, kill_at, count)
    sys.addaudithook(changes)
    sys.argv = ["pipeline.run", *arguments]
    code = 1
    try:
        command_line()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 nothing may leave this fork
        traceback.print_exc()
    finally:
        changes.save()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(*sys.argv[1:])
