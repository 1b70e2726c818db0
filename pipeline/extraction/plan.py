"""The plan: which frames of which recording land in which shard. A pure function of manifest and configuration."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.corpus.manifest import as_codes, label_names
from pipeline.corpus.sources import AudioSources
from pipeline.features.audio_source import AudioSource
from pipeline.schema import SEQUENCE_VARIABLES, SILENT, SPLITS
from pipeline.store.records import RecordingOutcome, ShardRecord

MIN_SHARDS_OF_A_LONG_FILE: Final = 3
"""A file that fills this many shards is one task. A file in two shards is decoded once for each of them: a long
recording has to be decoded twice anyway, for its peak and for its frames, and two workers share the work."""
DECODING_BYTES: Final = 72 * 2**20
"""Blocks that are being decoded and resampled, and 8 MiB of samples that a `SegmentReader` holds."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive sequences of one recording that land in one shard.

    `recording` is the row of the manifest, `source` the audio of the whole recording, `size_bytes` the size of its
    file, `label` and `split` are codes. `first` is the first sequence within the recording, `place` the first within
    the shard, `count` the number of sequences. `masked` is the reason why they must not be used, or empty. `failure`
    is the reason why the recording has failed, found before the segment is read, or empty.
    """

    recording: int
    source: AudioSource
    size_bytes: int
    label: int
    split: int
    first: int
    count: int
    place: int
    masked: str = ""
    failure: str = ""

    def has_outcome(self, outcome: RecordingOutcome) -> bool:
        """Return whether an outcome is that of this segment as it is planned."""
        silent = outcome.reason.startswith(SILENT)
        masked = outcome.reason if outcome.status == "filtered" and not silent else ""
        same = (outcome.recording, masked) == (self.recording, self.masked)
        return same and self.failure in ("", outcome.reason)


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of writing: sequences [start, stop) of the store, and the segments that fill them."""

    index: int
    start: int
    stop: int
    segments: tuple[Segment, ...]

    def __str__(self) -> str:
        return f"shard {self.index} (sequences {self.start} to {self.stop})"

    def is_recorded_by(self, record: ShardRecord) -> bool:
        """Return whether a record is that of this shard as it is planned, finished."""
        return (
            record.finished
            and len(record.outcomes) == len(self.segments)
            and all(map(Segment.has_outcome, self.segments, record.outcomes))
        )


@dataclass(frozen=True, slots=True)
class Task:
    """Consecutive shards that one task extracts, one after the other.

    A finished shard, which an earlier try of the task wrote, is not written again, unless it is one of `replaced`:
    these shards were written by earlier runs, and what is stored of them has to be replaced.
    """

    shards: tuple[Shard, ...]
    replaced: frozenset[int] = frozenset()

    def __str__(self) -> str:
        first, last = self.shards[0], self.shards[-1]
        return str(first) if first is last else f"shards {first.index} to {last.index}"


class Plan:
    """All shards of a manifest, each made when it is asked for.

    It holds a few arrays with one value per recording, so it takes little memory for any number of shards.
    """

    def __init__(self, manifest: pd.DataFrame, config: PipelineConfig) -> None:
        self.config = config
        self.sequences = int(manifest["sequences"].sum())
        used = np.flatnonzero(manifest["sequences"].to_numpy() > 0)
        used = used[np.argsort(manifest["first_sequence"].to_numpy()[used], kind="stable")]
        rows = manifest.iloc[used]
        self._row = used
        self._sources = AudioSources(rows)
        self._size_bytes = rows["size_bytes"].to_numpy(np.int64)
        self._label = as_codes(rows["label"], label_names(manifest))
        self._split = as_codes(rows["split"], SPLITS)
        self._masked = rows["masked"].to_numpy(object, na_value="")
        self._start = rows["first_sequence"].to_numpy(np.int64)
        self._stop = self._start + rows["sequences"].to_numpy(np.int64)
        begins_append = np.diff(rows["append_index"].to_numpy(), prepend=0) != 0
        self._changeable = np.flatnonzero(begins_append | rows["masked"].notna().to_numpy())

    def __len__(self) -> int:
        return math.ceil(self.sequences / self.config.store.sequences_per_shard)

    def __iter__(self) -> Iterator[Shard]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Shard:
        """Return shard `index`; raises IndexError past the last."""
        if not 0 <= index < len(self):
            raise IndexError(f"shard {index}: the plan has {len(self)}")
        size = self.config.store.sequences_per_shard
        start, stop = index * size, min((index + 1) * size, self.sequences)
        first = int(np.searchsorted(self._stop, start, side="right"))
        last = int(np.searchsorted(self._start, stop, side="left"))
        return Shard(index, start, stop, tuple(self._segment(i, start, stop) for i in range(first, last)))

    def changeable(self) -> set[int]:
        """Return the shards that may have been finished for an earlier manifest and be unfinished for this one.

        They hold a recording that is or was masked, or the end of one append and the beginning of the next, which may
        have been taken back.
        """
        return self._holding(self._changeable) | ({len(self) - 1} if len(self) else set())

    def shards_with(self, recordings: Collection[int]) -> set[int]:
        """Return the shards that hold a part of any of `recordings`, which are rows of the manifest."""
        return self._holding(np.flatnonzero(np.isin(self._row, list(recordings))))

    def _holding(self, used: NDArray[np.int64]) -> set[int]:
        first, last = self._shards_of(self._start[used], self._stop[used])
        return {i for begin, end in zip(first.tolist(), last.tolist(), strict=True) for i in range(begin, end + 1)}

    def tasks(
        self, pending: NDArray[np.int64], size: Callable[[int], int], replaced: Collection[int] = frozenset()
    ) -> Iterator[Task]:
        """Yield the tasks that extract the shards `pending`, (shard,) int64 in rising order; the longest come first.

        Shards that one long file fills, with one recording or with many segments, are one task, which decodes the
        file from beginning to end. All other full shards hold the same duration of audio. Of them, at most
        `size(left)` consecutive ones are a task, where `left` shards are in no task yet. See `Task` for `replaced`.
        """
        follows = self._follows_the_shard_before()
        long = (run for run in _runs(pending, follows) if len(run) > 1)
        for run in sorted(long, key=len, reverse=True):
            yield self._task(run, replaced)
        single = np.fromiter((run.start for run in _runs(pending, follows) if len(run) == 1), np.int64)
        left = len(single)
        for run in _runs(single, np.ones(len(self), np.bool_)):
            while run:
                taken = run[: size(left)]
                yield self._task(taken, replaced)
                run, left = run[len(taken) :], left - len(taken)  # noqa: PLW2901

    def _task(self, indices: range, replaced: Collection[int]) -> Task:
        return Task(tuple(self[index] for index in indices), frozenset(i for i in indices if i in replaced))

    def _follows_the_shard_before(self) -> NDArray[np.bool_]:
        """Return for each shard whether it belongs to the task of the shard before it, because of a long file.

        A shard where one long file ends and another begins belongs to the task of the first.
        """
        begins = np.flatnonzero(self._sources.begins_container())
        ends = np.append(begins[1:], len(self._start)) - 1
        first, last = self._shards_of(self._start[begins], self._stop[ends])
        follows = np.zeros(len(self), np.bool_)
        for i in np.flatnonzero(last - first + 1 >= MIN_SHARDS_OF_A_LONG_FILE):
            begin = first[i] + 1 if follows[first[i]] else first[i]
            follows[begin + 1 : last[i] + 1] = True
        return follows

    def _shards_of(
        self, start: NDArray[np.int64], stop: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and the last shard of each run [start, stop) of sequences: (run,) each."""
        size = self.config.store.sequences_per_shard
        return start // size, (stop - 1) // size

    def _segment(self, i: int, start: int, stop: int) -> Segment:
        begin, end = max(start, int(self._start[i])), min(stop, int(self._stop[i]))
        return Segment(
            recording=int(self._row[i]),
            source=self._sources[i],
            size_bytes=int(self._size_bytes[i]),
            label=int(self._label[i]),
            split=int(self._split[i]),
            first=begin - int(self._start[i]),
            count=end - begin,
            place=begin - start,
            masked=self._masked[i],
        )

    def duration_s(self, sequences: int) -> float:
        """Return the seconds of audio in a number of sequences."""
        return sequences * self.config.store.timesteps * self.config.features.hop_s


def _runs(indices: NDArray[np.int64], follows: NDArray[np.bool_]) -> Iterator[range]:
    """Yield `indices`, in rising order, as ranges; one goes on as long as indices are consecutive and `follows`."""
    run = range(0)
    for index, joins in zip(indices.tolist(), follows[indices].tolist(), strict=True):
        if run and index == run.stop and joins:
            run = range(run.start, index + 1)
        else:
            if run:
                yield run
            run = range(index, index + 1)
    if run:
        yield run


def projected_bytes(config: PipelineConfig) -> int:
    """Return the most memory that extracting a shard takes beyond an idle worker, whatever the recordings are.

    It holds the shard's features three times: as computed, as they are returned for a recording that fills the shard,
    and while they are compressed, joined for an object store, or read back for reuse. Besides, it holds what the front
    end needs for the frames of one recording, and the blocks that are being decoded. Rounding the features takes less
    than the front end needed before; compression makes a chunk at most 16 bytes longer.
    """
    frames = config.store.sequences_per_shard * config.store.timesteps
    frame_bytes = 4 * math.prod(config.features.dims.values())
    return frames * (3 * frame_bytes + config.features.bytes_per_frame()) + DECODING_BYTES


def bytes_per_sequence(config: PipelineConfig) -> int:
    """Return the bytes that a sequence takes in a store that is not compressed, without indices of chunks."""
    feature_bytes = 4 * config.store.timesteps * math.prod(config.features.dims.values())
    others = (variable.dtype for variable in SEQUENCE_VARIABLES if "timestep" not in variable.dims)
    return feature_bytes + sum(np.dtype(dtype).itemsize for dtype in others)


def frames_of(segment: Segment, timesteps: int) -> tuple[int, int]:
    """Return the frames [start, stop) of the recording that `segment` holds."""
    return segment.first * timesteps, (segment.first + segment.count) * timesteps
