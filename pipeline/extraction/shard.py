"""The arrays of one shard: filling them from recordings, reusing what is stored, and the shard's record."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError
from pipeline.extraction.plan import Segment, Shard, frames_of
from pipeline.extraction.recording_reader import Shared, SharedRecording
from pipeline.features.audio import AudioError, read_blocks
from pipeline.outputs import OutputFolder
from pipeline.schema import SPLITS
from pipeline.store import feature_store, records
from pipeline.store.records import RecordingOutcome, ShardRecord
from pipeline.store.statistics import add_frames

Arrays = dict[str, NDArray[Any]]


def empty(shard: Shard, config: PipelineConfig) -> Arrays:
    """Return the arrays of a shard in which nothing is valid yet, features with whatever was in memory."""
    count, timesteps = shard.stop - shard.start, config.store.timesteps
    arrays: Arrays = {name: np.zeros(count, dtype) for name, dtype in feature_store.SEQUENCE_ARRAYS.items()}
    arrays["features"] = np.empty((count, timesteps, *config.features.dims.values()), np.float32)
    return arrays


def describe(arrays: Arrays, segment: Segment, timesteps: int) -> None:
    """Write into the shard's arrays, in place, what the plan knows of a segment."""
    rows = slice(segment.place, segment.place + segment.count)
    arrays["label"][rows] = segment.label
    arrays["split"][rows] = segment.split
    arrays["recording"][rows] = segment.recording
    arrays["start_frame"][rows] = np.arange(*frames_of(segment, timesteps), timesteps)


def keep(arrays: Arrays, shard: Shard, output: OutputFolder) -> dict[int, RecordingOutcome]:
    """Copy what the store holds already of the shard into its arrays; return what became of it, by recording.

    Before features are overwritten, the shard's record and its valid sequences are reduced to what is kept: a task
    that is killed while it writes leaves an unfinished shard, and both readers and the next task know what is good.
    Raises PipelineError where the store is not as it was written.
    """
    record = records.find_record(output, shard.index)
    if record is None:
        return {}
    if record.finished and record.checksums != feature_store.checksums(output, shard.index):
        raise PipelineError(
            f"{shard} of {output.store} differs from its checksums, so what it holds cannot be kept; delete its "
            f"record {output.shard_record(shard.index)} and run the same command again: its recordings are read anew"
        )
    used = {segment.recording for segment in shard.segments if not segment.masked}
    kept = {o.recording: o for o in record.outcomes if o.recording in used and o.status != "filtered"}
    records.mark_finished(output, replace(record, checksums={}, outcomes=tuple(kept.values())))
    (stored,) = feature_store.read(output, [(shard.start, shard.stop)], ("features", "valid"))
    for segment in shard.segments:
        if segment.recording in kept:
            rows = slice(segment.place, segment.place + segment.count)
            for name, values in stored.items():
                arrays[name][rows] = values[rows]
    feature_store.write_valid(output, shard.index, arrays["valid"])
    return kept


def fill(
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
        outcomes.append(_fill_segment(arrays, segment, config, shared.get(segment.recording)))
        audio_s = segment.count * config.store.timesteps * config.features.hop_s
        works.append((segment.recording, time.perf_counter() - begun_s, audio_s))
    return tuple(outcomes), works


def _fill_segment(
    arrays: Arrays, segment: Segment, config: PipelineConfig, shared: SharedRecording | None
) -> RecordingOutcome:
    """Write the features of one segment into the shard's arrays, in place."""
    timesteps = config.store.timesteps
    start, stop = frames_of(segment, timesteps)
    try:
        if shared:
            extract = shared.take(start, stop)
        else:
            blocks = read_blocks(segment.uri, config.features.sample_rate_hz)
            extract = config.features.extract(blocks, start, stop)
    except AudioError as error:
        return RecordingOutcome(segment.recording, "failed", str(error), 0, 0)
    written = len(extract.values) // timesteps
    rows = slice(segment.place, segment.place + written)
    frames = feature_store.rounded(extract.values[: written * timesteps], config.store.mantissa_bits)
    arrays["features"][rows] = frames.reshape(written, timesteps, *frames.shape[1:])
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
