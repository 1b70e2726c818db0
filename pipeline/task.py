"""The work on a shard: decode, compute MFCCs, write the whole shard, mark it finished last."""

import heapq
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from pipeline import records, store
from pipeline.audio import AudioError, Samples, read_blocks
from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError
from pipeline.features import Extract, Frames, mfcc, mfcc_blocks, peak
from pipeline.plan import Batch, Segment, Shard, frames_of
from pipeline.records import RecordingOutcome, ShardRecord
from pipeline.schema import SPLITS, Layout
from pipeline.statistics import add_frames

Arrays = dict[str, NDArray[Any]]

MOST_SLOWEST: Final = 3


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


class SharedRecording:
    """A recording that lies in several shards of a task, read from beginning to end for all of them.

    Frames that a shard has room for are read at once, and held. Of more, no more than a block is held at a time; but
    as the floor of the features depends on the recording's peak, which may lie anywhere, it is then read twice, once
    for the peak and once for the frames, however many shards it fills.
    """

    def __init__(self, segments: Sequence[Segment], config: PipelineConfig) -> None:
        self._first, self._config = segments[0], config.features
        self._most_held = config.store.sequences_per_shard * config.store.timesteps
        self._stop = frames_of(segments[-1], config.store.timesteps)[1]
        self._failure: str | None = None
        self._frames = self.bytes_read = 0
        self._blocks: Iterator[Frames] | None = None
        self._rest = np.empty((0, self._config.n_mfcc), np.float32)

    def take(self, start: int, stop: int) -> Extract:
        """Return frames [start, stop) as `features.mfcc` does; `start` is where the call before stopped."""
        if self._failure:
            raise AudioError(self._failure)
        try:
            if self._blocks is None:
                self._blocks = self._from(start)
            parts, taken = [self._rest], len(self._rest)
            while taken < stop - start and (block := next(self._blocks, None)) is not None:
                parts.append(block)
                taken += len(block)
        except AudioError as error:
            self._failure = str(error)
            raise
        frames = np.concatenate(parts)
        self._rest = frames[stop - start :].copy()
        return Extract(frames[: stop - start], self._frames)

    def _from(self, start: int) -> Iterator[Frames]:
        if self._stop - start <= self._most_held:
            extract = mfcc(self._samples(), self._config, start, self._stop)
            self._frames = extract.recording_frames
            return iter((extract.mfcc,))
        peak_db, self._frames = peak(self._samples(), self._config)
        return mfcc_blocks(self._samples(), self._config, peak_db, start)

    def _samples(self) -> Iterator[Samples]:
        self.bytes_read += self._first.size_bytes
        return read_blocks(self._first.uri, self._config.sample_rate_hz)


Shared = Mapping[int, SharedRecording]
"""By the recordings' rows in the manifest."""


def extract_batch(batch: Batch, *, out: str, config: PipelineConfig) -> list[ShardSummary]:
    """Extract and write the shards of a task below the output folder `out`, one after the other.

    A recording that cannot be used leaves its sequences invalid and goes into the shard's record with the reason;
    only a store that cannot be written or is damaged raises (PipelineError). What an earlier manifest had written to
    a shard is kept as it is.
    """
    segments = (segment for shard in batch.shards for segment in shard.segments)
    parts = ((recording, list(group)) for recording, group in groupby(segments, attrgetter("recording")))
    shared = {recording: SharedRecording(group, config) for recording, group in parts if len(group) > 1}
    with one_thread():
        return [_extract_shard(shard, out, config, shared) for shard in batch.shards]


def one_thread() -> AbstractContextManager[Any]:
    """Have numerical libraries take one thread within the context: with more they round differently."""
    limit: AbstractContextManager[Any] = _numerical_libraries().limit(limits=1)
    return limit


@cache
def _numerical_libraries() -> ThreadpoolController:
    """Find those that the imports above have loaded: it takes milliseconds."""
    return ThreadpoolController()


def _extract_shard(shard: Shard, out: str, config: PipelineConfig, shared: Shared) -> ShardSummary:
    """Extract and write one whole shard, and mark it finished."""
    started_s = time.perf_counter()
    layout = Layout.at(out)
    already_read = sum(recording.bytes_read for recording in shared.values())
    arrays = empty(shard, config)
    try:
        kept = _keep(arrays, shard, layout)
        outcomes, works = _fill_all(arrays, shard, config, shared, kept)
        arrays["features"][~arrays["valid"]] = np.nan
        record = record_of(shard, arrays, outcomes, store.write_shard(layout, shard.index, arrays))
        records.mark_finished(layout, record)
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
        slowest=tuple(heapq.nlargest(MOST_SLOWEST, works, key=itemgetter(1))),
        bytes_read=alone + sum(recording.bytes_read for recording in shared.values()) - already_read,
        bytes_written=store.stored_bytes(layout, shard.index),
        busy_s=time.perf_counter() - started_s,
    )


def _keep(arrays: Arrays, shard: Shard, layout: Layout) -> dict[int, RecordingOutcome]:
    """Copy what the store holds already of the shard into its arrays; return what became of it, by recording.

    Before features are overwritten, the shard's record and its valid sequences are reduced to what is kept: a task
    that is killed while it writes leaves an unfinished shard, and both readers and the next task know what is good.
    Raises PipelineError where the store is not as it was written.
    """
    record = records.find_record(layout, shard.index)
    if record is None:
        return {}
    if record.finished and record.checksums != store.checksums(layout, shard.index):
        raise PipelineError(
            f"{shard} of {layout.store} differs from its checksums, so what it holds cannot be kept; delete its "
            f"record {layout.shard_record(shard.index)} and run the same command again: its recordings are read anew"
        )
    used = {segment.recording for segment in shard.segments if not segment.masked}
    kept = {o.recording: o for o in record.outcomes if o.recording in used and o.status != "filtered"}
    records.mark_finished(layout, replace(record, checksums={}, outcomes=tuple(kept.values())))
    (stored,) = store.read(layout, [(shard.start, shard.stop)], ("features", "valid"))
    for segment in shard.segments:
        if segment.recording in kept:
            rows = slice(segment.place, segment.place + segment.count)
            for name, values in stored.items():
                arrays[name][rows] = values[rows]
    store.write_valid(layout, shard.index, arrays["valid"])
    return kept


def _fill_all(
    arrays: Arrays,
    shard: Shard,
    config: PipelineConfig,
    shared: Shared,
    kept: Mapping[int, RecordingOutcome],
) -> tuple[tuple[RecordingOutcome, ...], list[tuple[int, float, float]]]:
    """Write all segments into the shard's arrays; return what became of each, and the work that it took."""
    outcomes, works = [], []
    for segment in shard.segments:
        describe(arrays, segment, config.store.timesteps)
        if segment.masked:
            outcomes.append(RecordingOutcome(segment.recording, "filtered", segment.masked, 0, 0))
            continue
        if segment.recording in kept:
            outcomes.append(kept[segment.recording])
            continue
        begun_s = time.perf_counter()
        outcomes.append(_fill(arrays, segment, config, shared.get(segment.recording)))
        audio_s = segment.count * config.store.timesteps * config.features.hop_s
        works.append((segment.recording, time.perf_counter() - begun_s, audio_s))
    return tuple(outcomes), works


def empty(shard: Shard, config: PipelineConfig) -> Arrays:
    """Return the arrays of a shard in which nothing is valid yet, features with whatever was in memory."""
    count, timesteps = shard.stop - shard.start, config.store.timesteps
    arrays: Arrays = {name: np.zeros(count, dtype) for name, dtype in store.SEQUENCE_ARRAYS.items()}
    arrays["features"] = np.empty((count, timesteps, config.features.n_mfcc), np.float32)
    return arrays


def describe(arrays: Arrays, segment: Segment, timesteps: int) -> None:
    """Write into the shard's arrays, in place, what the plan knows of a segment."""
    rows = slice(segment.place, segment.place + segment.count)
    arrays["label"][rows] = segment.label
    arrays["split"][rows] = segment.split
    arrays["recording"][rows] = segment.recording
    arrays["start_frame"][rows] = np.arange(*frames_of(segment, timesteps), timesteps)


def _fill(
    arrays: Arrays, segment: Segment, config: PipelineConfig, shared: SharedRecording | None
) -> RecordingOutcome:
    """Write the features of one segment into the shard's arrays, in place."""
    timesteps = config.store.timesteps
    start, stop = frames_of(segment, timesteps)
    try:
        if shared:
            extract = shared.take(start, stop)
        else:
            extract = mfcc(read_blocks(segment.uri, config.features.sample_rate_hz), config.features, start, stop)
    except AudioError as error:
        return RecordingOutcome(segment.recording, "failed", str(error), 0, 0)
    written = len(extract.mfcc) // timesteps
    rows = slice(segment.place, segment.place + written)
    frames = store.rounded(extract.mfcc[: written * timesteps], config.store.mantissa_bits)
    arrays["features"][rows] = frames.reshape(written, timesteps, config.features.n_mfcc)
    arrays["valid"][rows] = True
    if written == segment.count:
        return RecordingOutcome(segment.recording, "ok", "", extract.recording_frames, written)
    reason = f"ends after {extract.recording_frames * config.features.hop_s:.2f} s, before the end its header names"
    return RecordingOutcome(segment.recording, "short", reason, extract.recording_frames, written)


def record_of(
    shard: Shard, arrays: Arrays, outcomes: tuple[RecordingOutcome, ...], checksums: dict[str, str]
) -> ShardRecord:
    """Return the record of a finished shard: what became of its recordings, checksums, and sums for statistics."""
    training = arrays["valid"] & (arrays["split"] == SPLITS.index("train"))
    timesteps, coefficients = arrays["features"].shape[1:]
    total, squares = np.zeros(coefficients), np.zeros(coefficients)
    for start, stop in _runs(training):
        add_frames(arrays["features"][start:stop].reshape(-1, coefficients), total, squares)
    return ShardRecord(
        index=shard.index,
        checksums=checksums,
        outcomes=outcomes,
        train_count=int(training.sum()) * timesteps,
        train_sum=_integers(total),
        train_sum_squares=_integers(squares),
    )


def _runs(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return [start, stop) of each run of true values: (run, 2)."""
    return np.flatnonzero(np.diff(chosen, prepend=False, append=False)).reshape(-1, 2)


def _integers(sums: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(round(value / records.SUM_UNIT) for value in sums.tolist())
