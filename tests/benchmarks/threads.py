"""Many worker threads: how busy one driver keeps them, with tasks that sleep in place of extracting."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import psutil

from tests.benchmarks.measure import SPAWN, peak_bytes
from tests.benchmarks.report import MIB, Row, Table, at_least

WORKERS = 4
SHARD_S = 0.5
"""How long a shard sleeps; a default shard of FLAC takes about as long to extract."""
RUNS = ((1000, 300.0, 98.0), (4000, 600.0, 95.0))
"""Threads, seconds of work for each of them, and how many percent of the time they should be busy."""


class Busy(NamedTuple):
    """Percent of the threads' time in which they had a task: of the whole run, and while there was work for all."""

    whole: float
    steady: float
    tasks: int
    cpu_percent: float
    peak_bytes: int


def table() -> Table:
    """Measure."""
    rows: list[Row] = []
    for threads, work_s, bar in RUNS:
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            found = pool.submit(run, threads, work_s).result()
        rows += [
            at_least(f"{threads:,} threads busy", "%", [found.whole], bar),
            Row(f"{threads:,} threads busy, without start and end", "%", (found.steady,)),
            Row(f"{threads:,} threads: tasks", "", (found.tasks,)),
            Row(f"{threads:,} threads: driver and scheduler", "% of a core", (found.cpu_percent,)),
            Row(f"{threads:,} threads: peak memory of both", "MiB", (found.peak_bytes / MIB,)),
        ]
    return Table(
        "Many threads",
        f"Tasks of the size that extraction gives them sleep {SHARD_S:g} s for each of their shards, on {WORKERS} "
        "Dask workers with many threads each. Each thread has work for "
        f"{' or '.join(f'{work_s:g}' for _, work_s, _ in RUNS)} s. Driver and scheduler are one process.",
        tuple(rows),
    )


def run(threads: int, work_s: float) -> Busy:
    """Put sleeping tasks through the executor and the task sizes of extraction."""
    from pipeline.extraction.task_size import TaskSize
    from pipeline.runtime.dask_executor import DaskExecutor
    from pipeline.runtime.executor import completed
    from pipeline.runtime.profiles import load_profile

    local = load_profile("local", None)
    kwargs = {**local.kwargs, "threads_per_worker": threads // WORKERS}
    with DaskExecutor(local.model_copy(update={"kwargs": kwargs}), WORKERS) as executor:
        size, process, spans = TaskSize(lambda: executor.threads), psutil.Process(), []
        _ = executor.threads  # starts the cluster
        before, began_s = sum(process.cpu_times()[:2]), time.perf_counter()
        for done in completed(executor.run(asleep, _tasks(round(threads * work_s / SHARD_S), size))):
            summaries, begin_s, end_s = done.result
            size.add(summaries)
            spans.append((begin_s, end_s))
        cpu_percent = 100 * (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - began_s)
    return Busy(*_busy(np.array(spans), threads), len(spans), cpu_percent, peak_bytes())


def _tasks(shards: int, size: Any) -> Iterator[Any]:
    from pipeline.extraction.segments import PendingTask

    first = 0
    while first < shards:
        stop = min(first + size.shards(shards - first), shards)
        yield PendingTask(tuple(range(first, stop)))
        first = stop


def asleep(pending: Any) -> tuple[Sequence[Any], float, float]:
    """Stand in for extraction."""
    from pipeline.extraction.task import ShardSummary

    begin_s = time.time()
    time.sleep(SHARD_S * len(pending.indices))
    summaries = [ShardSummary(index, 4096, {}, (), 0, 0, SHARD_S) for index in pending.indices]
    return summaries, begin_s, time.time()


def _busy(spans: Any, threads: int) -> tuple[float, float]:
    """Return how many percent of the time threads had a task: of all, and between their first and last beginnings."""
    begins = np.sort(spans[:, 0])
    whole = spans[:, 0].min(), spans[:, 1].max()
    steady = begins[threads], begins[-1]
    return tuple(
        100
        * float(np.clip(np.minimum(spans[:, 1], end) - np.maximum(spans[:, 0], begin), 0, None).sum())
        / (threads * (end - begin))
        for begin, end in (whole, steady)
    )  # type: ignore[return-value]
