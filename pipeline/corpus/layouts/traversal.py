"""Work that leads to further work, in threads: a disk or a server is asked for many things at the same time."""

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from queue import SimpleQueue
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from pipeline.interrupts import ENDING

T = TypeVar("T")

THREADS: Final = 16
"""So many requests are under way at a time."""
AHEAD: Final = 2
"""Pieces of work per thread that are begun, or done and not yet asked for."""
PATIENCE_S: Final = 1.0
"""How long a traversal waits for its threads when it ends: a file system that is gone may never answer."""


class Found(NamedTuple, Generic[T]):
    """What a piece of work has found, the work that it leads to, and what is left of itself."""

    results: Sequence[T]
    further: "Sequence[Work[T]]" = ()
    rest: "Work[T] | None" = None


Work: TypeAlias = Callable[[], Found[T]]


def traverse(first: Iterable[Work[T]], max_threads: int = THREADS) -> Generator[T, None, None]:
    """Do the work `first` and all that it leads to, and yield the results in any order.

    The number of pieces that wait does not grow with the amount of work, if each leads to few others and leaves the
    rest of itself for later: that is begun when nothing to which it has led waits any more. An error of a piece of
    work is raised here. Threads are started while results are asked for faster than they come; they end with this
    generator.
    """
    waiting, crew = _Waiting(first), _Crew[T]()
    try:
        while waiting or crew.pending:
            if waiting and crew.is_late() and crew.size < max_threads:
                crew.grow()
            while waiting and crew.pending < AHEAD * crew.size:
                crew.begin(*waiting.take())
            depth, found = crew.next()
            waiting.add(depth + 1, found.further)
            waiting.add(depth, () if found.rest is None else (found.rest,))
            yield from found.results
    finally:
        crew.end()


class _Waiting(Generic[T]):
    """Work to be begun, by its depth: the number of pieces that have led to it."""

    def __init__(self, first: Iterable[Work[T]]) -> None:
        self._levels = [list(first)]

    def __bool__(self) -> bool:
        return any(self._levels)

    def add(self, depth: int, work: Iterable[Work[T]]) -> None:
        while len(self._levels) <= depth:
            self._levels.append([])
        self._levels[depth] += work

    def take(self) -> tuple[int, Work[T]]:
        """Return the depth of the deepest piece of work, and that; of several, the one that was added last."""
        while not self._levels[-1]:
            self._levels.pop()
        return len(self._levels) - 1, self._levels[-1].pop()


class _Crew(Generic[T]):
    """Threads that do work. They end with the process, which a request without an answer must not keep alive."""

    def __init__(self) -> None:
        self.pending = 0
        self._todo = SimpleQueue[tuple[int, Work[T]] | None]()
        self._done = SimpleQueue[tuple[int, Found[T] | BaseException]]()
        self._ended = False
        self._threads: list[threading.Thread] = []

    @property
    def size(self) -> int:
        return len(self._threads)

    def is_late(self) -> bool:
        """Whether `next` would have to wait."""
        return self._done.empty()

    def grow(self) -> None:
        thread = threading.Thread(target=self._serve, name="traversal", daemon=True)
        self._threads.append(thread)  # first: a signal may interrupt the start
        thread.start()

    def begin(self, depth: int, work: Work[T]) -> None:
        self._todo.put((depth, work))
        self.pending += 1

    def next(self) -> tuple[int, Found[T]]:
        """Return the depth of a piece of work and what it has found, or raise its error."""
        depth, found = self._done.get()
        self.pending -= 1
        if isinstance(found, BaseException):
            raise found
        return depth, found

    def end(self) -> None:
        """Begin no further work, and wait for what is under way."""
        self._ended = True
        for _ in self._threads:
            self._todo.put(None)
        until_s = time.monotonic() + PATIENCE_S
        for thread in filter(threading.Thread.is_alive, self._threads):
            thread.join(max(0.0, until_s - time.monotonic()))

    def _serve(self) -> None:
        # a signal that arrives here would not interrupt what the main thread waits for
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        while (begun := self._todo.get()) is not None and not self._ended:
            depth, work = begun
            try:
                self._done.put((depth, work()))
            except BaseException as error:  # noqa: BLE001 it is raised where results are asked for
                self._done.put((depth, error))
