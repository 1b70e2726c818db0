"""The plan: which frames of which recording land in which shard. Pure arithmetic on the manifest."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.corpus.manifest import as_codes, label_names
from pipeline.corpus.sources import AudioSources
from pipeline.features.audio_source import AudioSource
from pipeline.schema import SPLITS

MIN_SHARDS_OF_A_LONG_RECORDING = 3
"""One that lies in two shards is read once for each, which costs no more than to read it for its peak and then again
for its frames, and leaves its shards to two workers."""

MAX_SHARDS_OF_A_TASK = 4
"""Unless a long recording makes them one: what a task costs beside its work is spread over so many."""
TASKS_A_WORKER = 4
"""As many tasks as this has each worker still to do, at least, as long as there are enough shards."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive sequences of one recording that land in one shard.

    `recording` is the row of the manifest, `first` the first sequence within the recording, `place` the first
    within the shard. `masked` is the reason why the sequences are not to be used, or empty.
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


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work: sequences [start, stop) of the store, and the segments that fill them."""

    index: int
    start: int
    stop: int
    segments: tuple[Segment, ...]

    def __str__(self) -> str:
        return f"shard {self.index} (sequences {self.start} to {self.stop})"


@dataclass(frozen=True, slots=True)
class Task:
    """Consecutive shards that one task extracts, one after the other."""

    shards: tuple[Shard, ...]

    def __str__(self) -> str:
        first, last = self.shards[0], self.shards[-1]
        return str(first) if first is last else f"shards {first.index} to {last.index}"


class Plan:
    """All shards of a manifest, made one at a time when asked for; holds a few arrays of one value a recording."""

    def __init__(self, manifest: pd.DataFrame, config: PipelineConfig) -> None:
        self.config = config
        self.sequences = int(manifest["sequences"].sum())
        used = np.flatnonzero(manifest["sequences"].to_numpy() > 0)
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
        """Return the shards that may have been finished for an earlier manifest, and not be for this one.

        They hold a recording that is masked or was, or the end of one append and the beginning of the next.
        """
        size = self.config.store.sequences_per_shard
        first, last = self._start[self._changeable] // size, (self._stop[self._changeable] - 1) // size
        return {index for begin, end in zip(first, last, strict=True) for index in range(int(begin), int(end) + 1)}

    def tasks(self, pending: NDArray[np.int64], workers: Callable[[], int]) -> Iterator[Task]:
        """Yield the tasks that extract the shards of `pending` (rising numbers), the longest first.

        Shards that hold parts of one long recording are one task, which can read it from beginning to end instead of
        anew for each shard. All other full shards hold the same seconds of audio; a few consecutive ones are a task,
        and one towards the end, so that all of `workers()` end together (guided self-scheduling: Polychronopoulos
        and Kuck, IEEE Transactions on Computers C-36, 1987).
        """
        begins = ~self._goes_with_the_one_before()[pending] | (np.diff(pending, prepend=-2) != 1)
        starts = np.flatnonzero(begins)
        sizes = np.diff(starts, append=len(pending))
        long = np.flatnonzero(sizes > 1)
        for i in long[np.argsort(-sizes[long], kind="stable")]:
            yield self._task(pending[starts[i] : starts[i] + sizes[i]])
        rest = pending[starts[sizes == 1]]
        ends = np.append(np.flatnonzero(np.diff(rest) != 1) + 1, len(rest))  # of consecutive shards
        start = 0
        while start < len(rest):
            fair = (len(rest) - start) // (TASKS_A_WORKER * max(1, workers()))
            end = ends[np.searchsorted(ends, start, side="right")]
            stop = min(start + min(max(fair, 1), MAX_SHARDS_OF_A_TASK), int(end))
            yield self._task(rest[start:stop])
            start = stop

    def _task(self, indices: NDArray[np.int64]) -> Task:
        return Task(tuple(self[int(index)] for index in indices))

    def _goes_with_the_one_before(self) -> NDArray[np.bool_]:
        """Return for each shard whether it belongs to the task of the shard before it.

        A shard where one long recording ends and another begins belongs to the first one's task.
        """
        size = self.config.store.sequences_per_shard
        first, last = self._start // size, (self._stop - 1) // size
        joined = np.zeros(len(self), np.bool_)
        for i in np.flatnonzero(last - first >= MIN_SHARDS_OF_A_LONG_RECORDING - 1):
            begin = first[i] + 1 if joined[first[i]] else first[i]
            joined[begin + 1 : last[i] + 1] = True
        return joined

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
        """Return the seconds of audio that sequences store."""
        return sequences * self.config.store.timesteps * self.config.features.hop_s


def projected_bytes(config: PipelineConfig) -> int:
    """Return the most memory that extracting one shard takes beyond an idle worker, whatever the recordings.

    The shard's features twice (once more while they are compressed, joined for an object store, or kept from what was
    stored), the log-mel spectrogram of the one recording in hand as far as it lands in the shard, and the blocks being
    decoded. Rounding its features takes
    less than the spectrogram did, which is gone by then, and compressing them makes none larger than 16 bytes a chunk.
    """
    frames = config.store.sequences_per_shard * config.store.timesteps
    stored = 4 * math.prod(config.features.dims.values())
    return frames * (3 * stored + config.features.bytes_per_frame()) + BLOCKS_BYTES


BLOCKS_BYTES = 64 * 2**20


def frames_of(segment: Segment, timesteps: int) -> tuple[int, int]:
    """Return the [start, stop) frames of the recording that `segment` needs."""
    return segment.first * timesteps, (segment.first + segment.count) * timesteps
