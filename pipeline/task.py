"""The work on one shard: decode, compute MFCCs, write the whole shard, mark it finished last."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline import store
from pipeline.audio import AudioError, read_blocks
from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError
from pipeline.features import mfcc
from pipeline.plan import Segment, Shard, frames_of
from pipeline.schema import SPLITS, Layout
from pipeline.store import RecordingOutcome, ShardRecord

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ShardSummary:
    """What the driver shows of a finished shard. `failed` counts recordings, `busy_s` the worker's time."""

    index: int
    sequences: int
    failed: int
    busy_s: float


def extract_shard(shard: Shard, *, out: str, config: PipelineConfig) -> ShardSummary:
    """Extract and write one whole shard of the store below the output folder `out`.

    A recording that cannot be used leaves its sequences invalid and goes into the shard's record with the reason;
    only a store that cannot be written raises (PipelineError).
    """
    started_s = time.perf_counter()
    layout = Layout.at(out)
    # numerical libraries round differently with other thread counts
    with threadpool_limits(limits=1):
        arrays = _empty(shard, config)
        outcomes = tuple(_fill(arrays, segment, config) for segment in shard.segments)
        try:
            record = _record(shard, arrays, outcomes, store.write_shard(layout, shard.index, arrays))
            store.mark_finished(layout, record)
        except OSError as error:
            raise PipelineError(
                f"{shard} cannot be written to {out}: {error.strerror or error}; make room or mend the folder, then "
                "run the same command again: finished shards are kept"
            ) from error
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    return ShardSummary(shard.index, shard.stop - shard.start, failed, time.perf_counter() - started_s)


def _empty(shard: Shard, config: PipelineConfig) -> Arrays:
    """Return the arrays of a shard in which nothing is valid yet."""
    count, timesteps = shard.stop - shard.start, config.store.timesteps
    arrays: Arrays = {name: np.zeros(count, dtype) for name, dtype in store.SEQUENCE_ARRAYS.items()}
    arrays["features"] = np.full((count, timesteps, config.features.n_mfcc), np.nan, np.float32)
    return arrays


def _fill(arrays: Arrays, segment: Segment, config: PipelineConfig) -> RecordingOutcome:
    """Write one segment into the shard's arrays, in place."""
    timesteps = config.store.timesteps
    rows = slice(segment.place, segment.place + segment.count)
    start, stop = frames_of(segment, timesteps)
    arrays["label"][rows] = segment.label
    arrays["split"][rows] = segment.split
    arrays["recording"][rows] = segment.recording
    arrays["start_frame"][rows] = np.arange(start, stop, timesteps)
    try:
        extract = mfcc(read_blocks(segment.uri, config.features.sample_rate_hz), config.features, start, stop)
    except AudioError as error:
        return RecordingOutcome(segment.recording, "failed", str(error), 0, 0)
    written = len(extract.mfcc) // timesteps
    rows = slice(segment.place, segment.place + written)
    arrays["features"][rows] = extract.mfcc[: written * timesteps].reshape(written, timesteps, config.features.n_mfcc)
    arrays["valid"][rows] = True
    if written == segment.count:
        return RecordingOutcome(segment.recording, "ok", "", extract.recording_frames, written)
    reason = f"ends after {extract.recording_frames * config.features.hop_s:.2f} s, before the end its header names"
    return RecordingOutcome(segment.recording, "short", reason, extract.recording_frames, written)


def _record(
    shard: Shard, arrays: Arrays, outcomes: tuple[RecordingOutcome, ...], checksums: dict[str, str]
) -> ShardRecord:
    training = arrays["valid"] & (arrays["split"] == SPLITS.index("train"))
    coefficients = arrays["features"].shape[2]
    frames = arrays["features"][training].reshape(-1, coefficients)
    return ShardRecord(
        index=shard.index,
        checksums=checksums,
        outcomes=outcomes,
        train_count=len(frames),
        train_sum=_integers(frames.sum(axis=0, dtype=np.float64)),
        train_sum_squares=_integers(np.square(frames, dtype=np.float64).sum(axis=0)),
    )


def _integers(sums: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(round(value / store.SUM_UNIT) for value in sums.tolist())
