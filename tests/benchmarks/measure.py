"""Measuring several contenders side by side: each in a process of its own, taking turns.

A contender is a context manager: entering it imports, sets up and warms, and gives the function that is one round.
Contenders take turns (A B C A B C …), so what else the machine does falls on all of them alike.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Contender:
    """`start(**arguments)` is the context manager; `rounds` is for one that takes long, fewer than the others."""

    name: str
    start: Callable[..., AbstractContextManager[Callable[[], float]]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    one_core: bool = False
    rounds: int | None = None


@dataclass(frozen=True)
class Measured:
    """A figure a round, the peak memory of the contender's process, and that of each process which it started."""

    values: tuple[float, ...]
    peak_bytes: int
    children_bytes: tuple[int, ...]


def turns(rounds: Sequence[int]) -> Iterator[int]:
    """Yield the number of the contender whose turn it is; `rounds` says how many turns each has."""
    for number in range(max(rounds, default=0)):
        yield from (i for i, count in enumerate(rounds) if number < count)


def alternate(contenders: Sequence[Contender], rounds: int) -> dict[str, Measured]:
    """Measure contenders in turns, {name: figures in the order of the rounds}."""
    with ExitStack() as stack:
        pools = [stack.enter_context(_process(contender)) for contender in contenders]
        values: list[list[float]] = [[] for _ in contenders]
        for i in turns([min(rounds, contender.rounds or rounds) for contender in contenders]):
            values[i].append(pools[i].submit(_run).result())
        peaks = [pool.submit(_peaks).result() for pool in pools]
    return {
        contender.name: Measured(tuple(figures), *peak)
        for contender, figures, peak in zip(contenders, values, peaks, strict=True)
    }


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds `work` takes."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that start within the context."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _process(contender: Contender) -> Iterator[ProcessPoolExecutor]:
    """Start the contender in a process that takes its calls one by one."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        with environment(contender.env):  # libraries read it when they load
            pool.submit(_start, contender).result()
        try:
            yield pool
        finally:
            pool.submit(_stop).result()


_stack = ExitStack()
_once: list[Callable[[], float]] = []


def _start(contender: Contender) -> None:
    if contender.one_core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _once.append(_stack.enter_context(contender.start(**contender.arguments)))


def _run() -> float:
    return _once[0]()


def _stop() -> None:
    _stack.close()


def _peaks() -> tuple[int, tuple[int, ...]]:
    children = psutil.Process().children(recursive=True)
    peaks = sorted(peak_bytes(child.pid) for child in children)
    return peak_bytes(), tuple(peaks)


def peak_bytes(pid: int | None = None) -> int:
    """Return the most memory a process had resident (VmHWM), 0 where the system does not say.

    Not ru_maxrss, which a new process inherits from the one that started it.
    """
    return _status(pid, "VmHWM")


def resident_bytes(pid: int | None = None) -> int:
    """Return the memory a process has resident now."""
    return _status(pid, "VmRSS")


def _status(pid: int | None, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid or 'self'}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0  # gone meanwhile, or no Linux
    found = dict(line.split(":", 1) for line in lines)
    return int(found.get(key, "0 kB").split()[0]) * 1024
