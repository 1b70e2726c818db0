"""The plan: which frames of which recording land in which shard. A pure function of manifest and configuration."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from pipeline.config import PipelineConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.errors import PipelineError
from pipeline.extraction.planned_rows import PlannedRows
from pipeline.extraction.segments import PendingTask, Shard, Task
from pipeline.outputs import OutputFolder
from pipeline.schema import SEQUENCE_VARIABLES

MIN_SHARDS_OF_A_LONG_FILE: Final = 3
"""A file that fills this many shards is one task. A file in two shards is decoded once for each of them: a long
recording has to be decoded twice anyway, for its peak and for its frames, and two workers share the work."""
GROUPS_HELD: Final = 2
"""Row groups of the manifest that a plan holds: shards are asked for in their order."""
GROUPS_BYTES: Final = 32 * 2**20
"""The row groups that a plan holds, if names and paths are some 100 characters long."""
INDICES_AT_ONCE: Final = 2**16
"""Indices of shards that are Python's integers at the same time, which take 36 bytes each."""
DECODING_BYTES: Final = 72 * 2**20
"""Blocks that are being decoded and resampled, and 8 MiB of samples that a `SegmentReader` holds."""


class Plan:
    """All shards of a manifest, each made when it is asked for.

    It holds a byte per shard and the row groups of the manifest that it read last. `labels` are in the order of their
    codes.
    """

    def __init__(self, manifest: ManifestFile, labels: Sequence[str], config: PipelineConfig) -> None:
        self.config, self.labels = config, tuple(labels)
        self.sequences = manifest.sequences
        self._manifest = manifest
        self._starts = np.array([group.start for group in manifest.groups], np.int64)
        self._stops = np.array([group.stop for group in manifest.groups], np.int64)
        self._rows = lru_cache(GROUPS_HELD)(lambda group: PlannedRows(manifest.read(group), labels))

    @classmethod
    def at(cls, output: OutputFolder, config: PipelineConfig) -> Self:
        """Return the plan of the manifest of an output folder."""
        return cls.of(ManifestFile.at(output.manifest), config)

    @classmethod
    def of(cls, manifest: ManifestFile, config: PipelineConfig) -> Self:
        """Return the plan of a manifest."""
        return cls(manifest, manifest.label_names(), config)

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
        groups = np.flatnonzero((self._starts < stop) & (self._stops > start)).tolist()
        segments = (segment for group in groups for segment in self._rows(group).segments(start, stop))
        return Shard(index, start, stop, tuple(sorted(segments, key=attrgetter("place"))))

    def task(self, pending: PendingTask) -> Task:
        """Return a task with its segments."""
        shards = (self[index] for index in pending.indices)
        return Task(tuple(
            replace(shard, segments=tuple(
                replace(segment, failure=reason) if (reason := pending.failures.get(segment.recording)) else segment
                for segment in shard.segments
                if pending.only in (None, segment.recording)
            ))
            for shard in shards
        ), pending.replaced)  # fmt: skip

    def changeable(self) -> NDArray[np.bool_]:
        """Return which shards may be finished for an earlier manifest and unfinished for this one: (shard,) bool.

        They hold a recording that is or was masked, or the end of one append and the beginning of the next, which may
        have been taken back.
        """
        found = np.zeros(len(self), np.bool_)
        found[-1:] = True
        begins: dict[int, tuple[int, int]] = {}
        for number, group in enumerate(self._manifest.groups):
            appends = range(max(1, group.first_append), group.last_append + 1)
            if not group.has_masked and all(each in begins and begins[each][0] <= group.start for each in appends):
                continue
            rows = self._rows(number)
            self._mark(found, rows.start[rows.was_masked], rows.stop[rows.was_masked])
            for append in set(rows.append_index.tolist()) - {0}:
                first = np.flatnonzero(rows.append_index == append)[0]
                span = int(rows.start[first]), int(rows.stop[first])
                begins[append] = min(begins.get(append, span), span)
        self._mark(found, *np.array(list(begins.values()), np.int64).reshape(-1, 2).T)
        return found

    def shards_with(self, recordings: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which shards hold a part of any of `recordings`, rows of the manifest that rise: (shard,) bool."""
        found = np.zeros(len(self), np.bool_)
        begins = [group.first_row for group in self._manifest.groups]
        edges = np.searchsorted(recordings, [*begins, len(self._manifest)])
        for number in np.flatnonzero(np.diff(edges)).tolist():
            rows = self._rows(number)
            held = np.isin(rows.row, recordings[edges[number] : edges[number + 1]])
            self._mark(found, rows.start[held], rows.stop[held])
        return found

    def _mark(self, shards: NDArray[np.bool_], start: NDArray[np.int64], stop: NDArray[np.int64]) -> None:
        """Mark those of `shards`, (shard,) bool, that hold any of the sequences of runs [start, stop)."""
        size = self.config.store.sequences_per_shard
        first, last = start // size, (stop - 1) // size
        shards[first] = shards[last] = True
        for run in np.flatnonzero(last - first > 1).tolist():
            shards[first[run] : last[run]] = True

    def tasks(
        self, pending: NDArray[np.int64], size: Callable[[int], int], replaced: NDArray[np.bool_] | None = None
    ) -> Iterator[PendingTask]:
        """Yield the tasks that extract the shards `pending`, (shard,) int64 in rising order; the longest come first.

        Shards that one long file fills, with one recording or with many segments, are one task, which decodes the
        file from beginning to end. All other full shards hold the same duration of audio. Of them, at most
        `size(left)` consecutive ones are a task, where `left` shards are in no task yet. `replaced`, (shard,) bool,
        has the shards of all tasks that are `replaced` in a `Task`.
        """
        replaced = np.zeros(len(self), np.bool_) if replaced is None else replaced
        follows = self._follows_the_shard_before()
        long = (run for run in _runs(pending, follows) if len(run) > 1)
        for run in sorted(long, key=len, reverse=True):
            yield _pending_task(run, replaced)
        single = np.fromiter((run.start for run in _runs(pending, follows) if len(run) == 1), np.int64)
        left = len(single)
        for run in _runs(single, np.ones(len(self), np.bool_)):
            while run:
                taken = run[: size(left)]
                yield _pending_task(taken, replaced)
                run, left = run[len(taken) :], left - len(taken)  # noqa: PLW2901

    def _follows_the_shard_before(self) -> NDArray[np.bool_]:
        """Return for each shard whether it belongs to the task of the shard before it, because of a long file.

        A shard where one long file ends and another begins belongs to the task of the first.
        """
        size = self.config.store.sequences_per_shard
        shards = ((start // size, (stop - 1) // size) for start, stop in self._long_files())
        follows = np.zeros(len(self), np.bool_)
        for first, last in sorted(span for span in shards if span[1] - span[0] + 1 >= MIN_SHARDS_OF_A_LONG_FILE):
            begin = first + 1 if follows[first] else first
            follows[begin + 1 : last + 1] = True
        return follows

    def _long_files(self) -> Iterator[tuple[int, int]]:
        """Yield the sequences [start, stop) of each file that may fill several shards, and of others."""
        size = self.config.store.sequences_per_shard
        name, begin, end = None, 0, 0
        for number, group in enumerate(self._manifest.groups):
            if not group.has_parts and group.most_sequences <= size:
                continue
            for container, start, stop in self._rows(number).files():
                if container is None or container != name or start != end:
                    yield begin, end
                    begin = start
                name, end = container, stop  # the segments of a file may lie in several row groups
        yield begin, end

    def shared(self, output: OutputFolder) -> "SharedPlan":
        """Return what a worker needs to make this plan from the manifest of `output`."""
        return SharedPlan(str(output.manifest), self._manifest.fingerprint, self.labels, self.config)

    def duration_s(self, sequences: int) -> float:
        """Return the seconds of audio in a number of sequences."""
        return sequences * self.config.store.timesteps * self.config.features.hop_s


@dataclass(frozen=True)
class SharedPlan:
    """A plan as it is sent to workers: they read the rows of the manifest that they need."""

    manifest: str
    fingerprint: str
    labels: tuple[str, ...]
    config: PipelineConfig

    def open(self) -> Plan:
        """Return the plan; raises PipelineError where this process finds another manifest than the driver."""
        return _opened(self)


@lru_cache(1)
def _opened(shared: SharedPlan) -> Plan:
    manifest = ManifestFile.at(UPath(shared.manifest))
    if manifest.fingerprint != shared.fingerprint:
        raise PipelineError(
            f"{shared.manifest} is not the same file on this worker as for the driver; see whether both have the same "
            "file system there, and run the same command again: finished shards are kept"
        )
    return Plan(manifest, shared.labels, shared.config)


def _pending_task(indices: range, replaced: NDArray[np.bool_]) -> PendingTask:
    return PendingTask(tuple(indices), frozenset(i for i in indices if replaced[i]))


def _runs(indices: NDArray[np.int64], follows: NDArray[np.bool_]) -> Iterator[range]:
    """Yield `indices`, in rising order, as ranges; one goes on as long as indices are consecutive and `follows`."""
    run = range(0)
    blocks = (indices[start : start + INDICES_AT_ONCE] for start in range(0, len(indices), INDICES_AT_ONCE))
    joined = (pair for block in blocks for pair in zip(block.tolist(), follows[block].tolist(), strict=True))
    for index, joins in joined:
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
    end needs for the frames of one recording, the blocks that are being decoded, and the plan. Rounding the features
    takes less than the front end needed before; compression makes a chunk at most 16 bytes longer.
    """
    frames = config.store.sequences_per_shard * config.store.timesteps
    frame_bytes = 4 * math.prod(config.features.dims.values())
    return frames * (3 * frame_bytes + config.features.bytes_per_frame()) + DECODING_BYTES + GROUPS_BYTES


def bytes_per_sequence(config: PipelineConfig) -> int:
    """Return the bytes that a sequence takes in a store that is not compressed, without indices of chunks."""
    feature_bytes = 4 * config.store.timesteps * math.prod(config.features.dims.values())
    others = (variable.dtype for variable in SEQUENCE_VARIABLES if "timestep" not in variable.dims)
    return feature_bytes + sum(np.dtype(dtype).itemsize for dtype in others)
