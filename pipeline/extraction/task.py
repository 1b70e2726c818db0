"""The work of one task: decode, compute and write its shards, and mark each shard finished last."""

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from operator import attrgetter
from typing import Any, Final

from threadpoolctl import ThreadpoolController

from pipeline.config import PipelineConfig
from pipeline.durable_files import Unnamed
from pipeline.errors import PipelineError
from pipeline.extraction import shard as shards
from pipeline.extraction.plan import SharedPlan
from pipeline.extraction.recording_reader import RecordingReader
from pipeline.extraction.segments import PendingTask, Shard, Task
from pipeline.object_stores import cause_of, file_errors
from pipeline.outputs import OutputFolder
from pipeline.store import feature_store, records

MAX_SLOWEST: Final = 3


@dataclass(frozen=True)
class ShardSummary:
    """What the driver shows of a finished shard, and its cost.

    `sequences` counts the sequences that were extracted; sequences that the store held already do not count.
    `failures` counts failed recordings by their reason. `busy_s` is the worker's time, 0 for a shard that an earlier
    try of the task wrote. `slowest` holds the recordings that took most of it, as (id, seconds of work,
    seconds of audio). `bytes_read` counts an audio file as often as it was decoded.
    """

    index: int
    sequences: int
    failures: Mapping[str, int]
    slowest: tuple[tuple[str, float, float], ...]
    bytes_read: int
    bytes_written: int
    busy_s: float

    @property
    def failed(self) -> int:
        """Number of failed recordings."""
        return sum(self.failures.values())


def run_pending(
    pending: PendingTask, *, plan: SharedPlan, out: str, filter_silent: bool = False
) -> list[ShardSummary]:
    """Do `run_task` for a task whose segments have to be read from the manifest."""
    with _writing(pending, out):
        task = plan.open().task(pending)
    return run_task(task, out=out, config=plan.config, filter_silent=filter_silent)


def try_pending(pending: PendingTask, *, plan: SharedPlan) -> None:
    """Do `try_task` for a task whose segments have to be read from the manifest."""
    try_task(plan.open().task(pending), config=plan.config)


def run_task(task: Task, *, out: str, config: PipelineConfig, filter_silent: bool = False) -> list[ShardSummary]:
    """Extract the shards of a task, one after the other, into the store below the output folder `out`.

    The sequences of a recording that cannot be used stay invalid, and the shard's record holds the reason; with
    `filter_silent`, so do those of a recording without sound. What is stored of a shard from an earlier manifest is
    reused; a shard that an earlier try of the task finished is passed over. A shard is synced to the disk while the
    next one is extracted. Raises PipelineError if the store cannot be written or is damaged.
    """
    summaries = []
    with ThreadPoolExecutor(1, "disk") as disk:
        finishing = disk.submit(lambda: None)
        with one_thread(), RecordingReader(task, config) as reader:
            for shard in task.shards:
                written = None if shard.index in task.replaced else _find_written(shard, out)
                if written:
                    summaries.append(written)
                    continue
                summary, finish = _extract_shard(shard, out, config, reader, finishing, filter_silent=filter_silent)
                finishing = disk.submit(finish)
                summaries.append(summary)
        extracted_s = time.perf_counter()
        finishing.result()
    waited_s = time.perf_counter() - extracted_s
    *others, last = summaries
    return [*others, replace(last, busy_s=last.busy_s + waited_s) if last.busy_s else last]


def try_task(task: Task, *, config: PipelineConfig) -> None:
    """Do what `run_task` does, in as much memory, but write nothing: to see whether it ends the worker."""
    with one_thread(), RecordingReader(task, config) as reader:
        for shard in task.shards:
            arrays = shards.empty(shard, config)
            shards.clear_invalid(arrays)  # takes the memory of a shard that is almost full
            shards.fill(arrays, shard, config, reader, {})


def one_thread() -> AbstractContextManager[Any]:
    """Limit numerical libraries to one thread within the context: with more threads they round differently."""
    limit: AbstractContextManager[Any] = _numerical_libraries().limit(limits=1)
    return limit


@cache
def _numerical_libraries() -> ThreadpoolController:
    """Find the numerical libraries that the imports above have loaded; searching takes milliseconds."""
    return ThreadpoolController()


def _find_written(shard: Shard, out: str) -> ShardSummary | None:
    """Return the summary of a shard that is written as it is planned, None for any other."""
    with _writing(shard, out):
        record = records.find_record(OutputFolder.at(out), shard.index)
    if record is None or not shard.is_recorded_by(record):
        return None
    read = [
        (segment, outcome)
        for segment, outcome in zip(shard.segments, record.outcomes, strict=True)
        if not segment.masked
    ]
    return ShardSummary(
        index=shard.index,
        sequences=sum(segment.count for segment, _ in read),
        failures=Counter(outcome.reason for _, outcome in read if outcome.status == "failed"),
        slowest=(),
        bytes_read=0,
        bytes_written=0,
        busy_s=0.0,
    )


def _extract_shard(
    shard: Shard,
    out: str,
    config: PipelineConfig,
    reader: RecordingReader,
    previous: Future[None],
    *,
    filter_silent: bool,
) -> tuple[ShardSummary, Callable[[], None]]:
    """Extract one shard, and write it once the `previous` one is finished; return also the function that finishes it.

    Raises the error of the previous one.
    """
    started_s = time.perf_counter()
    output = OutputFolder.at(out)
    arrays = shards.empty(shard, config)
    with _writing(shard, out):
        kept = shards.invalidate(shard, output)
        shards.reuse(arrays, shard, output, kept)
        outcomes, works = shards.fill(arrays, shard, config, reader, kept, filter_silent=filter_silent)
        shards.clear_invalid(arrays)
        previous.result()
        files, checksums = feature_store.encode_shard(output, shard.index, arrays)
        record = shards.record_of(shard, arrays, outcomes, checksums)
        written = Unnamed.write({**files, output.shard_record(shard.index): [records.content(record)]})
    sequence_s = config.store.timesteps * config.features.hop_s
    slowest = heapq.nlargest(MAX_SLOWEST, works, key=attrgetter("busy_s"))
    summary = ShardSummary(
        index=shard.index,
        sequences=sum(work.sequences for work in works),
        failures=Counter(work.failure for work in works if work.failure),
        slowest=tuple((work.recording_id, work.busy_s, work.sequences * sequence_s) for work in slowest),
        bytes_read=sum(work.bytes_read for work in works),
        bytes_written=sum(len(part) for parts in files.values() for part in parts),
        busy_s=time.perf_counter() - started_s,
    )
    return summary, partial(_finish_shard, shard, out, written)


def _finish_shard(shard: Shard, out: str, written: Unnamed) -> None:
    """Wait until the objects of a shard are on the disk, and mark it finished by its record."""
    with _writing(shard, out):
        written.commit()


@contextmanager
def _writing(shard: Shard | PendingTask, out: str) -> Iterator[None]:
    """Raise an error of the file system as a PipelineError with the remedy."""
    try:
        yield
    except file_errors() as error:
        raise PipelineError(
            f"{shard} cannot be written to {out}: {cause_of(error)}; make room or repair the folder, then "
            "run the same command again: finished shards are kept"
        ) from error
