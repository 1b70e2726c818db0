"""The work of one task: decode, compute and write each of its shards, and mark a shard finished last."""

import heapq
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, Final

from threadpoolctl import ThreadpoolController

from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError
from pipeline.extraction import shard as shards
from pipeline.extraction.plan import Shard, Task
from pipeline.extraction.recording_reader import Shared, SharedRecording
from pipeline.outputs import OutputFolder
from pipeline.store import feature_store, records

MAX_SLOWEST: Final = 3


@dataclass(frozen=True)
class ShardSummary:
    """What the driver shows of a finished shard, and what it cost.

    `sequences` counts those that were extracted, not those that the store held already. `failures` counts recordings
    by the reason, `busy_s` is the worker's time; `slowest` holds the recordings that took most of it, as (row of the
    manifest, seconds of work, seconds of audio).
    """

    index: int
    sequences: int
    failures: Mapping[str, int]
    slowest: tuple[tuple[int, float, float], ...]
    bytes_read: int
    bytes_written: int
    busy_s: float

    @property
    def failed(self) -> int:
        """How many recordings failed."""
        return sum(self.failures.values())


def run_task(task: Task, *, out: str, config: PipelineConfig) -> list[ShardSummary]:
    """RecordingFeatures and write the shards of a task below the output folder `out`, one after the other.

    A recording that cannot be used leaves its sequences invalid and goes into the shard's record with the reason;
    only a store that cannot be written or is damaged raises (PipelineError). What an earlier manifest had written to
    a shard is kept as it is.
    """
    segments = (segment for shard in task.shards for segment in shard.segments)
    parts = ((recording, list(group)) for recording, group in groupby(segments, attrgetter("recording")))
    shared = {recording: SharedRecording(group, config) for recording, group in parts if len(group) > 1}
    with one_thread():
        return [_extract_shard(shard, out, config, shared) for shard in task.shards]


def one_thread() -> AbstractContextManager[Any]:
    """Have numerical libraries take one thread within the context: with more they round differently."""
    limit: AbstractContextManager[Any] = _numerical_libraries().limit(limits=1)
    return limit


@cache
def _numerical_libraries() -> ThreadpoolController:
    """Find those that the imports above have loaded: it takes milliseconds."""
    return ThreadpoolController()


def _extract_shard(shard: Shard, out: str, config: PipelineConfig, shared: Shared) -> ShardSummary:
    """RecordingFeatures and write one whole shard, and mark it finished."""
    started_s = time.perf_counter()
    output = OutputFolder.at(out)
    already_read = sum(recording.bytes_read for recording in shared.values())
    arrays = shards.empty(shard, config)
    try:
        kept = shards.invalidate(shard, output)
        shards.reuse(arrays, shard, output, kept)
        outcomes, works = shards.fill(arrays, shard, config, shared, kept)
        shards.clear_invalid(arrays)
        record = shards.record_of(shard, arrays, outcomes, feature_store.write_shard(output, shard.index, arrays))
        records.write_record(output, record)
    except OSError as error:
        raise PipelineError(
            f"{shard} cannot be written to {out}: {error.strerror or error}; make room or mend the folder, then "
            "run the same command again: finished shards are kept"
        ) from error
    read = [segment for segment in shard.segments if segment.recording not in kept and not segment.masked]
    alone = sum(segment.size_bytes for segment in read if segment.recording not in shared)
    new = {segment.recording for segment in read}
    return ShardSummary(
        index=shard.index,
        sequences=sum(segment.count for segment in read),
        failures=Counter(o.reason for o in outcomes if o.status == "failed" and o.recording in new),
        slowest=tuple(heapq.nlargest(MAX_SLOWEST, works, key=itemgetter(1))),
        bytes_read=alone + sum(recording.bytes_read for recording in shared.values()) - already_read,
        bytes_written=feature_store.stored_bytes(output, shard.index),
        busy_s=time.perf_counter() - started_s,
    )
