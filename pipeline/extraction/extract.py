"""The extract stage: manifest → store and ledger."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.sources import PART_COLUMNS, AudioSources
from pipeline.durable_files import write_atomically
from pipeline.errors import PipelineError, counted
from pipeline.extraction import lifecycle, poison, record_ranges
from pipeline.extraction.pending import Pending, find_pending
from pipeline.extraction.plan import Plan, projected_bytes
from pipeline.extraction.repair import find as find_damage
from pipeline.extraction.segments import PendingTask
from pipeline.extraction.task import ShardSummary, run_pending
from pipeline.extraction.task_size import TaskSize
from pipeline.features.audio_source import AudioSource
from pipeline.monitoring.counters import ExtractionCounters
from pipeline.monitoring.events import BeginEvent, EndEvent, ShardEvent, SlowRecording
from pipeline.monitoring.progress import show
from pipeline.outputs import OutputFolder
from pipeline.runtime import preflight
from pipeline.runtime.executor import Executor, Lost, lost_for_good, surviving
from pipeline.store import record_digests, records

MAX_FRUITLESS: Final = 2
"""Tasks that end their workers, though none of their recordings does alone, are tried again so many times."""
IDLE_WORKER_BYTES: Final = 400 * 2**20
"""A Dask worker with the libraries loaded and the kernel compiled; compiling takes 140 MiB of it."""

Work = Callable[[PendingTask], list[ShardSummary]]
"""Extracts the shards of a task."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractionSummary:
    """What the stage did and its cost.

    `busy_s` is the time of all workers, `wall_s` the time until the store is finished. `bytes_read` counts an audio
    file as often as it was decoded. `lost_workers` and `retries` are None where the scheduler does not count them.
    `dashboard` is the address of the page that showed the run.
    """

    shards: int
    shards_new: int
    audio_s_new: float
    busy_s: float
    wall_s: float
    workers: int
    bytes_read: int
    bytes_written: int
    lost_workers: int | None
    retries: int | None
    dashboard: str | None

    @property
    def audio_h_per_core_h(self) -> float | None:
        """Hours of audio per busy core-hour, None where nothing was done."""
        return self.audio_s_new / self.busy_s if self.busy_s else None

    def price_per_1000_audio_h(self, price_per_core_hour: float | None) -> float | None:
        """Return the price of 1,000 hours of audio, None without a price per core-hour or where nothing was done."""
        speed = self.audio_h_per_core_h
        return None if price_per_core_hour is None or not speed else 1000 * price_per_core_hour / speed


@dataclass(frozen=True)
class _Account:
    """What the executor counted during a run; the defaults are those of a run without tasks."""

    counters: ExtractionCounters = field(default_factory=ExtractionCounters)
    workers: int = 0
    lost_workers: int | None = None
    retries: int | None = None
    dashboard: str | None = None

    @classmethod
    def of(cls, executor: Executor) -> Self:
        monitor = executor.monitor
        lost_workers, retries = monitor.lost_workers_and_retries() or (None, None)
        return cls(monitor.counters, executor.workers, lost_workers, retries, monitor.dashboard)


@dataclass(frozen=True)
class _PendingTasks:
    """The pending shards of a plan; `replaced`, (shard,) bool, has those that earlier runs wrote (see `Task`)."""

    output: OutputFolder
    plan: Plan
    shards: NDArray[np.int64]
    replaced: NDArray[np.bool_]

    @classmethod
    def of(cls, output: OutputFolder, plan: Plan, shards: NDArray[np.int64]) -> Self:
        replaced = np.zeros(len(plan), np.bool_)
        replaced[shards] = record_ranges.recorded_shards(output, len(plan))[shards]
        return cls(output, plan, shards, replaced)

    def tasks(self, shards: NDArray[np.int64], size: TaskSize) -> Iterator[PendingTask]:
        """Yield the tasks that extract `shards`."""
        return self.plan.tasks(shards, size.shards, self.replaced)

    def unfinished(self, task: PendingTask) -> PendingTask:
        """Return a task without the shards that one of its tries has finished, as far as that can be seen."""
        found = ((shard, records.find_record(self.output, shard.index)) for shard in self.plan.task(task).shards)
        return replace(task, indices=tuple(
            shard.index for shard, record in found
            if record is None or shard.index in task.replaced or not shard.is_recorded_by(record)
        ))  # fmt: skip


def extract(
    output: OutputFolder,
    manifest: ManifestFile,
    config: PipelineConfig,
    executor: Executor,
    *,
    filter_silent: bool = False,
    repair: bool = False,
    pending: Pending | None = None,
) -> ExtractionSummary:
    """Write every shard of the plan that is not marked finished, then the statistics and the ledger.

    With `filter_silent`, recordings without sound are filtered. With `repair`, the objects of all finished shards are
    read first, and damaged shards are written again, too. A damaged shard whose recordings are gone is kept as it is.
    `pending` is what `find_pending` returns for the same arguments; by default it is found now.
    Raises UsageError for a store of another configuration or manifest, and PipelineError if the workers have too
    little memory, if the store cannot be written, and in the end for damaged shards that were kept.
    """
    started_s = time.perf_counter()
    plan = Plan.of(manifest, config)
    if records.read_attributes(output) is None:
        check_memory(executor, config)  # before a store is begun, which would bind the folder to these settings
        pending = None  # records of an earlier store go when another is begun
    lifecycle.open_store(output, manifest, plan)
    pending = pending or find_pending(output, plan, filter_silent=filter_silent, executor=lambda: executor)
    damage = find_damage(output, plan, pending.states, executor, reads_objects=repair)
    shards = damage.added_to(pending.shards)
    finished = len(plan) - len(shards)
    if finished:
        log.info("extract: %d of %s are finished already", finished, counted(len(plan), "shard"))
    account = _Account()
    with ExitStack() as stack:
        if len(shards):
            check_memory(executor, config)
            preflight.check(executor, output, _sources(manifest))
            stack.enter_context(executor.monitor.performance_report(output.performance))
            record_digests.release(output, shards)
            work = partial(run_pending, plan=plan.shared(output), out=str(output.root), filter_silent=filter_silent)
            _extract(work, _PendingTasks.of(output, plan, shards), executor)
            write_atomically(output.series, executor.monitor.series_csv())
            account = _Account.of(executor)
        if len(damage.missing):
            raise damage.error(output)
        lifecycle.finish(output, manifest, plan, lambda: executor)
        wall_s = time.perf_counter() - started_s  # before Dask's report, which leaving the context writes
    return ExtractionSummary(
        shards=len(plan),
        shards_new=len(shards),
        audio_s_new=account.counters.audio_s,
        busy_s=account.counters.busy_s,
        wall_s=wall_s,
        workers=account.workers,
        bytes_read=account.counters.bytes_read,
        bytes_written=account.counters.bytes_written,
        lost_workers=account.lost_workers,
        retries=account.retries,
        dashboard=account.dashboard,
    )


def _sources(manifest: ManifestFile) -> Iterator[AudioSource]:
    """Yield the audio sources of the recordings."""
    return chain.from_iterable(AudioSources(rows) for rows in manifest.tables(["uri", *PART_COLUMNS]))


def _extract(work: Work, pending: _PendingTasks, executor: Executor) -> None:
    """Extract the pending shards, and report each to the monitor and to the terminal."""
    monitor, plan = executor.monitor, pending.plan
    monitor.report(BeginEvent(stage="extract", shards=len(plan), done=len(plan) - len(pending.shards)))
    try:
        with show("extract", monitor.counters, "shards", monitor.dashboard) as refresh:
            for summaries, worker in _summaries(work, pending, executor):
                monitor.report(*(_event(summary, worker, plan) for summary in summaries))
                refresh()
    finally:
        monitor.report(EndEvent())


def _summaries(work: Work, pending: _PendingTasks, executor: Executor) -> Iterator[tuple[list[ShardSummary], str]]:
    """Extract the pending shards; yield their summaries, once each, and the worker of each task.

    Tasks that end their workers are tried again without the recordings that are the cause (see `poison`).
    """
    plan, limit_s = pending.plan, poison.limits(pending.plan)
    guilty: dict[int, str] = {}
    known = np.zeros(len(plan), np.bool_)  # shards whose summaries were yielded, and that are extracted again
    fruitless = 0
    size = TaskSize(lambda: executor.threads)
    tasks = pending.tasks(pending.shards, size)
    while True:
        lost: list[Lost[PendingTask]] = []
        for outcome in surviving(executor, work, tasks, limit_s):
            if isinstance(outcome, Lost):
                log.warning("extract: %s", poison.describe(outcome))
                lost.append(outcome)
            else:
                size.add(outcome.result)
                yield [summary for summary in outcome.result if not known[summary.index]], outcome.worker
        if not lost:
            return
        unfinished = [pending.unfinished(outcome.item) for outcome in lost]
        found = poison.find(unfinished, plan, plan.shared(pending.output), executor)
        fruitless = 0 if found else fruitless + 1
        if fruitless > MAX_FRUITLESS:
            raise lost_for_good(lost[0])
        guilty |= found
        unreported = np.zeros(len(plan), np.bool_)
        for outcome in lost:
            unreported[list(outcome.item.indices)] = True
        known |= plan.shards_with(np.array(sorted(found), np.int64)) & ~unreported
        again = np.flatnonzero(unreported | known)
        tasks = (replace(task, failures=guilty) for task in pending.tasks(again, size))


def _event(summary: ShardSummary, worker: str, plan: Plan) -> ShardEvent:
    return ShardEvent(
        worker=worker,
        audio_s=plan.duration_s(summary.sequences),
        busy_s=summary.busy_s,
        failures=dict(summary.failures),
        slowest=tuple(SlowRecording(*slow) for slow in summary.slowest),
        bytes_read=summary.bytes_read,
        bytes_written=summary.bytes_written,
    )


def check_memory(executor: Executor, config: PipelineConfig) -> None:
    """Raise PipelineError if a shard needs more memory than the workers have."""
    limit, needed = executor.worker_memory_bytes(), projected_bytes(config) + IDLE_WORKER_BYTES
    if limit is not None and needed > limit:
        raise PipelineError(
            f"a shard of {counted(config.store.sequences_per_shard, 'sequence')} needs up to {needed >> 20} MiB of "
            f"memory, but the workers have {limit >> 20} MiB; make store.chunks_per_shard or "
            "store.sequences_per_chunk smaller, or give the workers more memory"
        )
