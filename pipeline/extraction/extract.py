"""The extract stage: manifest → store and ledger."""

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.corpus.sources import AudioSources
from pipeline.errors import PipelineError
from pipeline.extraction import lifecycle
from pipeline.extraction.plan import Plan, projected_bytes
from pipeline.extraction.task import ShardSummary, run_task
from pipeline.monitoring.counters import ExtractionCounters
from pipeline.monitoring.events import BeginEvent, EndEvent, ShardEvent, SlowRecording
from pipeline.monitoring.progress import show
from pipeline.outputs import OutputFolder
from pipeline.runtime import preflight
from pipeline.runtime.executor import Executor, completed
from pipeline.storage import write_atomically

IDLE_WORKER_BYTES = 400 * 2**20
"""A Dask worker with the libraries loaded and the kernel compiled, which takes 140 MiB of it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractionSummary:
    """What the stage did and what it cost: `busy_s` is the workers' time, `wall_s` the driver's to a finished store.

    `bytes_read` counts a recording as often as it was read. Lost workers and retries are None where the scheduler
    does not tell. `dashboard` is the address of the page that showed the work.
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
        """Hours of audio that a busy core does in an hour, or None where nothing was done."""
        return self.audio_s_new / self.busy_s if self.busy_s else None

    def price_per_1000_audio_h(self, price_per_core_hour: float | None) -> float | None:
        """Return what 1,000 hours of audio cost, if a core-hour has a price and something was done."""
        speed = self.audio_h_per_core_h
        return None if price_per_core_hour is None or not speed else 1000 * price_per_core_hour / speed


def extract(
    output: OutputFolder, table: pd.DataFrame, config: PipelineConfig, executor: Executor
) -> ExtractionSummary:
    """Write every shard of the plan that is not marked finished, then the statistics and the ledger."""
    started_s = time.perf_counter()
    plan = Plan(table, config)
    lifecycle.open_store(output, table, plan)
    pending = lifecycle.pending_shards(output, plan)
    if len(pending) < len(plan):
        log.info("extract: %d of %d shards are finished already", len(plan) - len(pending), len(plan))
    counters, workers = ExtractionCounters(), 0
    lost: int | None = None
    retries: int | None = None
    dashboard: str | None = None
    with ExitStack() as stack:
        if len(pending):
            check_memory(executor, config)
            preflight.check(executor, output, AudioSources(table))
            monitor = executor.monitor
            stack.enter_context(monitor.performance_report(output.performance))
            _extract(output, table, plan, pending, executor)
            write_atomically(output.series, monitor.series_csv())
            counters, workers, dashboard = monitor.counters, executor.workers, monitor.dashboard
            lost, retries = monitor.lost_workers_and_retries() or (None, None)
        lifecycle.finish(output, table, plan)
        # Dask's report is of the work, not part of it
        wall_s = time.perf_counter() - started_s
    return ExtractionSummary(
        shards=len(plan), shards_new=len(pending), audio_s_new=counters.audio_s, busy_s=counters.busy_s,
        wall_s=wall_s, workers=workers, bytes_read=counters.bytes_read, bytes_written=counters.bytes_written,
        lost_workers=lost, retries=retries, dashboard=dashboard,
    )  # fmt: skip


def _extract(
    output: OutputFolder, table: pd.DataFrame, plan: Plan, pending: NDArray[np.int64], executor: Executor
) -> None:
    """Extract the pending shards, and report each to the monitor and to the terminal."""
    monitor = executor.monitor
    work = partial(run_task, out=str(output.root), config=plan.config)
    monitor.report(BeginEvent(stage="extract", shards=len(plan), done=len(plan) - len(pending)))
    try:
        with show("extract", monitor.counters, "shards", monitor.dashboard) as refresh:
            tasks = plan.tasks(pending, lambda: executor.workers)
            for done in completed(executor.run(work, tasks)):
                monitor.report(*(_event(summary, done.worker, table, plan) for summary in done.result))
                refresh()
    finally:
        monitor.report(EndEvent())


def _event(summary: ShardSummary, worker: str, table: pd.DataFrame, plan: Plan) -> ShardEvent:
    names = table["recording_id"]
    return ShardEvent(
        worker=worker,
        audio_s=plan.duration_s(summary.sequences),
        busy_s=summary.busy_s,
        failures=dict(summary.failures),
        slowest=tuple(SlowRecording(names.iloc[row], work_s, audio_s) for row, work_s, audio_s in summary.slowest),
        bytes_read=summary.bytes_read,
        bytes_written=summary.bytes_written,
    )


def check_memory(executor: Executor, config: PipelineConfig) -> None:
    """Raise PipelineError if a shard needs more memory than the workers have."""
    limit, needed = executor.worker_memory_bytes(), projected_bytes(config) + IDLE_WORKER_BYTES
    if limit is not None and needed > limit:
        raise PipelineError(
            f"a shard of {config.store.sequences_per_shard} sequences needs up to {needed >> 20} MiB of memory, the "
            f"workers have {limit >> 20} MiB; make store.chunks_per_shard smaller or give workers more memory"
        )
