"""Recordings that end the process that reads them: in processes of their own, and in this one by pretence."""

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pipeline.extraction.segments import PendingTask
from pipeline.runtime.executor import THIS_PROCESS, Done, Lost, SerialExecutor

T = TypeVar("T")
R = TypeVar("R")

MODULE = """
import os, time
import soundfile

def opened(self, file, *arguments, given=soundfile.SoundFile.__init__, **named):
    name = os.path.basename(os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else str(file))
    if name.startswith("crash"):
        os._exit(9)
    if name.startswith("hang"):
        time.sleep(10**6)
    if name.startswith("memory"):
        full = [bytes([1]) * 2**27 for _ in range(9)]
        time.sleep(10**6)
    given(self, file, *arguments, **named)

soundfile.SoundFile.__init__ = opened
"""


def install(folder: Path) -> str:
    """Write a module into the new folder `folder`; return the PYTHONPATH of processes that import it.

    In these processes, recordings whose names begin with `crash`, `hang` or `memory` do so when they are opened.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(MODULE)
    return str(folder)


class DeadlyExecutor(SerialExecutor):
    """Loses the tasks that `dies` is true of, given their segments, and all that run beside them, `workers` at a time.

    Tasks are done in the reverse order, if `backwards`.
    """

    def __init__(self, dies: Callable[[Any], bool], workers: int = 1, *, backwards: bool = False) -> None:
        super().__init__()
        self._dies, self.workers, self._backwards = dies, workers, backwards

    def run(
        self, function: Callable[[T], R], items: Iterable[T], limit_s: Callable[[T], float] | None = None
    ) -> Generator[Done[R] | Lost[T], None, None]:
        """Yield the outcomes in the order of the items; each must have a limit of a minute at least."""
        ordered = list(items)[:: -1 if self._backwards else 1]
        for start in range(0, len(ordered), self.workers):
            beside = ordered[start : start + self.workers]
            lost = any(self._dies(_with_segments(function, item)) for item in beside)
            for item in beside:
                assert limit_s is not None
                assert limit_s(item) > 60
                yield Lost(item, "crash", 2) if lost else Done(function(item), THIS_PROCESS)


def _with_segments(function: Any, item: Any) -> Any:
    """Return the item as a worker has it: a pending task with its segments."""
    return function.keywords["plan"].open().task(item) if isinstance(item, PendingTask) else item
