"""The arrays of one shard: filled from recordings, or copied from what is stored; and the shard's record."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import schema, storage
from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError
from pipeline.extraction import retry
from pipeline.extraction.recording_reader import Reading, RecordingReader
from pipeline.extraction.segments import Segment, Shard, frames_of
from pipeline.outputs import OutputFolder
from pipeline.schema import SPLITS
from pipeline.store import feature_store, records
from pipeline.store.records import RecordingOutcome, ShardRecord, Status
from pipeline.store.statistics import add_frames

Arrays = dict[str, NDArray[Any]]
"""The variables over `sequence` of one shard, by name."""

PLANNED: dict[str, Callable[[Segment, int], Any]] = {
    "label": lambda segment, _: segment.label,
    "split": lambda segment, _: segment.split,
    "recording": lambda segment, _: segment.recording,
    "start_frame": lambda segment, timesteps: np.arange(*frames_of(segment, timesteps), timesteps),
}
"""How each variable that is not computed follows from a segment, given the frames per sequence."""

COMPUTED: dict[str, Callable[[NDArray[np.float32]], Any]] = {
    "features": lambda features: features,
    "valid": lambda _: True,
}
"""How each computed variable follows from the features of sequences: (sequence, timestep, feature) float32."""


def empty(shard: Shard, config: PipelineConfig) -> Arrays:
    """Return the arrays of a shard without any valid sequence.

    Variables over frames are uninitialised: `clear_invalid` sets what was not written.
    """
    (size,) = config.features.dims.values()
    sizes = {"sequence": shard.stop - shard.start, "timestep": config.store.timesteps, schema.FEATURE: size}
    arrays: Arrays = {}
    for variable in schema.SEQUENCE_VARIABLES:
        arrays[variable.name] = np.empty([sizes[dim] for dim in variable.dims], variable.dtype)
        if "timestep" not in variable.dims:
            arrays[variable.name].fill(variable.fill)
    return arrays


def clear_invalid(arrays: Arrays) -> None:
    """Set the computed variables of all invalid sequences to their fill values, in place."""
    invalid = ~arrays["valid"]
    for variable in schema.SEQUENCE_VARIABLES:
        if variable.computed:
            arrays[variable.name][invalid] = variable.fill


def describe(arrays: Arrays, segment: Segment, timesteps: int) -> None:
    """Write the variables that follow from the plan into the rows of a segment, in place."""
    rows = slice(segment.place, segment.place + segment.count)
    for name, value in PLANNED.items():
        arrays[name][rows] = value(segment, timesteps)


def invalidate(shard: Shard, output: OutputFolder) -> dict[int, RecordingOutcome]:
    """Reduce what is stored of `shard` to what can be reused; return the reusable outcomes by recording.

    Reusable are recordings that the stored shard holds and that are in use now. Those that failed and may succeed now
    are not, nor those that are silent, which may be treated otherwise now. The shard's record loses all others
    and its checksums, then the others become invalid in the store. If the rewrite that follows is killed, the shard is
    unfinished, readers see no overwritten sequence, and the next task reuses the same recordings. Returns {} for a
    shard that was never written. Raises PipelineError where the store differs from its checksums.
    """
    record = records.find_record(output, shard.index)
    if record is None:
        return {}
    if record.finished and record.checksums != feature_store.checksums(output, shard.index):
        raise PipelineError(
            f"{shard} of {output.store} differs from its checksums and cannot be reused; run extract --repair, which "
            "makes again what is damaged"
        )
    used = {s.recording: s.source.container for s in shard.segments if not s.masked and not s.failure}
    kept = {
        outcome.recording: outcome
        for outcome in record.outcomes
        if outcome.recording in used
        and outcome.status != "filtered"
        and not outcome.reason.startswith(schema.SILENT)
        and not retry.may_succeed(outcome, used[outcome.recording])
    }
    records.write_record(output, record.model_copy(update={"checksums": {}, "outcomes": tuple(kept.values())}))
    (stored,) = feature_store.read(output, [(shard.start, shard.stop)], ("valid",))
    valid = np.zeros_like(stored["valid"])
    for rows in _rows(shard, kept):
        valid[rows] = stored["valid"][rows]
    feature_store.write_valid(output, shard.index, valid)
    return kept


def reuse(arrays: Arrays, shard: Shard, output: OutputFolder, kept: Mapping[int, RecordingOutcome]) -> None:
    """Copy the computed variables of the recordings in `kept` from the store into the shard's arrays, in place."""
    if not kept:
        return
    (stored,) = feature_store.read(output, [(shard.start, shard.stop)], schema.computed_names())
    for rows in _rows(shard, kept):
        for name, values in stored.items():
            arrays[name][rows] = values[rows]


def _rows(shard: Shard, kept: Mapping[int, RecordingOutcome]) -> list[slice]:
    """Return the rows of the shard that the recordings in `kept` fill."""
    return [slice(s.place, s.place + s.count) for s in shard.segments if s.recording in kept]


class SegmentWork(NamedTuple):
    """What reading a segment cost: its sequences, the worker's time, bytes of audio files; and why it failed."""

    recording_id: str
    sequences: int
    busy_s: float
    bytes_read: int
    failure: str


def fill(
    arrays: Arrays,
    shard: Shard,
    config: PipelineConfig,
    reader: RecordingReader,
    kept: Mapping[int, RecordingOutcome],
    *,
    filter_silent: bool = False,
) -> tuple[tuple[RecordingOutcome, ...], list[SegmentWork]]:
    """Write all segments that are not in `kept` into the shard's arrays, in place.

    With `filter_silent`, recordings without sound stay invalid. Returns the outcome of each segment, and the work for
    each segment that was read.
    """
    outcomes, works = [], []
    for segment in shard.segments:
        describe(arrays, segment, config.store.timesteps)
        if segment.masked:
            outcomes.append(_outcome(segment, "filtered", segment.masked))
        elif segment.recording in kept:
            outcomes.append(kept[segment.recording])
        else:
            begun_s = time.perf_counter()
            reading = Reading(None, segment.failure, 0) if segment.failure else reader.read(segment)
            if reading.silence and filter_silent:
                outcomes.append(_outcome(segment, "filtered", reading.silence))
            else:
                outcomes.append(_write_segment(arrays, segment, config, reading))
            busy_s = time.perf_counter() - begun_s
            works.append(SegmentWork(segment.recording_id, segment.count, busy_s, reading.bytes_read, reading.failure))
    return tuple(outcomes), works


def _write_segment(arrays: Arrays, segment: Segment, config: PipelineConfig, reading: Reading) -> RecordingOutcome:
    """Write the computed variables of one segment into the shard's arrays, in place."""
    if reading.features is None:
        state = storage.file_state(segment.source.container) or storage.FileState(0, 0)
        failed = _outcome(segment, "failed", reading.failure)
        return failed.model_copy(update={**state._asdict(), "transient": reading.transient})
    timesteps, decoded_frames = config.store.timesteps, reading.features.recording_frames
    written = len(reading.features.values) // timesteps
    rows = slice(segment.place, segment.place + written)
    frames = feature_store.rounded(reading.features.values[: written * timesteps], config.store.mantissa_bits)
    features = frames.reshape(written, timesteps, frames.shape[1])
    for name, compute in COMPUTED.items():
        arrays[name][rows] = compute(features)
    if written == segment.count and not reading.loss:
        return _outcome(segment, "ok", reading.silence, decoded_frames, written)
    ends_s = decoded_frames * config.features.hop_s
    reason = reading.loss or f"ends after {ends_s:.2f} s, {schema.ENDS_EARLY}"
    reason = f"{reading.silence}; {reason}" if reading.silence else reason
    return _outcome(segment, "short", reason, decoded_frames, written)


def _outcome(segment: Segment, status: Status, reason: str, frames: int = 0, written: int = 0) -> RecordingOutcome:
    return RecordingOutcome(
        recording=segment.recording, status=status, reason=reason, decoded_frames=frames, sequences_written=written
    )


def record_of(
    shard: Shard, arrays: Arrays, outcomes: tuple[RecordingOutcome, ...], checksums: Mapping[str, str]
) -> ShardRecord:
    """Return the record of a finished shard: its outcomes, checksums, and the sums over its training frames."""
    training = arrays["valid"] & (arrays["split"] == SPLITS.index("train"))
    timesteps, size = arrays["features"].shape[1:]
    total, squares = np.zeros(size), np.zeros(size)
    for start, stop in _runs(training):
        add_frames(arrays["features"][start:stop].reshape(-1, size), total, squares)
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
    """Return sums in units of SUM_UNIT."""
    return tuple(round(value / records.SUM_UNIT) for value in sums.tolist())
