"""The records of all shards, read in ranges: by the driver alone if they are few, otherwise by the workers."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Self, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.extraction.outcomes import Outcomes
from pipeline.outputs import OutputFolder
from pipeline.runtime import preflight
from pipeline.runtime.executor import Executor, completed
from pipeline.storage import is_local
from pipeline.store import records
from pipeline.store.record_digests import DIGEST_BYTES, RecordDigests
from pipeline.store.records import ShardRecord
from pipeline.store.statistics import TrainSums

RANGE_SHARDS: Final = 2**12
"""Shards whose records are read by one task: what it takes and what it returns are some 100 KiB each."""
ALONE: Final = 2**16
"""The driver reads fewer records than this alone. It takes some 20 µs to compare a record with its digest, 1.3 s for
all, which is less than workers take to start; reading outcomes takes five times as long."""
ALONE_REMOTE: Final = 2**12
"""The same for records behind a URL, where a request takes some 20 ms and 16 are made at the same time."""

StartExecutor = Callable[[], Executor]
"""Returns the executor of a run, started if it was not."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class RecordRange:
    """The shards from `start` on; which of them have a record, and the digests that these must have."""

    start: int
    recorded: NDArray[np.bool_]
    expected: RecordDigests

    @classmethod
    def split(cls, recorded: NDArray[np.bool_], expected: RecordDigests, size: int) -> Iterator[Self]:
        """Yield all shards in ranges of `size`."""
        for start in range(0, len(recorded), size):
            part = slice(start, start + size)
            yield cls(start, recorded[part], RecordDigests(expected.listed[part], expected.digest[part]))

    @property
    def shards(self) -> range:
        """The shards of the range."""
        return range(self.start, self.start + len(self.recorded))

    def __str__(self) -> str:
        return f"reading shards {self.start} to {self.shards.stop - 1}"

    def states(self, out: str) -> "RecordStates":
        """Read the records; return their states."""
        output, recorded, damaged = OutputFolder.at(out), self.recorded.copy(), np.zeros(len(self.recorded), np.bool_)
        wanted = np.flatnonzero(self.recorded | self.expected.listed).tolist()
        contents = records.contents(output, [self.start + place for place in wanted])
        for place, content in zip(wanted, contents, strict=True):
            if content is None:
                damaged[place] = True
            elif self.expected.listed[place]:  # a digest tells as much as a record that is parsed, and sooner
                damaged[place] = self._differs(self.start + place, content)
            else:
                record = self.record(output, self.start + place, content)
                damaged[place] = record is None
                recorded[place] = record is None or record.finished
        return RecordStates(recorded, damaged)

    def _differs(self, index: int, content: bytes) -> bool:
        """Whether a record must have another digest."""
        place = index - self.start
        listed = self.expected.listed[place]
        return bool(listed) and xxhash.xxh3_128_digest(content) != self.expected.digest[place].tobytes()

    def record(self, output: OutputFolder, index: int, content: bytes) -> ShardRecord | None:
        """Return the record of shard `index` from its content, None if it is damaged."""
        if self._differs(index, content):
            return None
        try:
            return records.parsed(output, index, content)
        except PipelineError:
            return None


@dataclass(frozen=True)
class RecordStates:
    """For each shard, (shard,) bool: whether it has a record of a finished shard, and whether its record is damaged.

    It is damaged if it cannot be read, is not that of the finished store, or is missing from the finished store.
    """

    recorded: NDArray[np.bool_]
    damaged: NDArray[np.bool_]


class RangeSummary(NamedTuple):
    """What the records from shard `start` on hold: `digests` (shard, 16) uint8, and the sums and outcomes of all."""

    start: int
    digests: NDArray[np.uint8]
    sums: TrainSums
    outcomes: Outcomes


def recorded_shards(output: OutputFolder, shards: int) -> NDArray[np.bool_]:
    """Return which of the first `shards` shards have a record: (shard,) bool."""
    found, recorded = records.recorded_shards(output), np.zeros(shards, np.bool_)
    recorded[found[found < shards]] = True
    return recorded


def states(output: OutputFolder, expected: RecordDigests, executor: StartExecutor | None = None) -> RecordStates:
    """Read the records of all shards of a plan, and compare them with the digests `expected`.

    Without an `executor` the driver reads all of them. Where a worker finds damage or an unfinished shard, the driver
    reads the range again and decides: the file system of a worker may show less than its own.
    """
    out, recorded = str(output.root), recorded_shards(output, len(expected.listed))
    damaged, read = np.zeros(len(recorded), np.bool_), recorded | expected.listed
    parts = RecordRange.split(recorded, expected, RANGE_SHARDS)
    wanted = (part for part in parts if read[part.shards.start : part.shards.stop].any())
    workers = _workers(output, int(np.count_nonzero(read)), executor)
    if workers is not None:
        judged = (done.result for done in completed(workers.run(partial(_unless_whole, out=out), wanted)))
        wanted = (part for part in judged if part is not None)
    for part in wanted:
        found, shards = part.states(out), slice(part.shards.start, part.shards.stop)
        recorded[shards], damaged[shards] = found.recorded, found.damaged
    return RecordStates(recorded, damaged)


def _unless_whole(part: RecordRange, *, out: str) -> RecordRange | None:
    """Return a range that holds a damaged record, or one of an unfinished shard; None for all others."""
    found = part.states(out)
    return None if (found.recorded == part.recorded).all() and not found.damaged.any() else part


def digests(output: OutputFolder, shards: int, executor: StartExecutor | None = None) -> RecordDigests:
    """Return the digests of the records of the first `shards` shards as they are now; missing ones are not listed."""
    found = RecordDigests.none(shards)
    work = partial(_digests, out=str(output.root))
    for part, listed, digest in _over_ranges(work, output, shards, executor):
        found.listed[part.start : part.stop], found.digest[part.start : part.stop] = listed, digest
    return found


def _digests(shards: range, *, out: str) -> tuple[range, NDArray[np.bool_], NDArray[np.uint8]]:
    found = RecordDigests.none(len(shards))
    for place, content in enumerate(records.contents(OutputFolder.at(out), shards)):
        if content is not None:
            found.listed[place] = True
            found.digest[place] = np.frombuffer(xxhash.xxh3_128_digest(content), np.uint8)
    return shards, found.listed, found.digest


def summaries(
    output: OutputFolder, shards: int, size: int, executor: StartExecutor | None = None
) -> Iterator[RangeSummary]:
    """Read the records of all shards of a finished plan once; yield what they hold, in any order of the ranges.

    `size` is the number of features of a frame. Without an `executor` the driver reads all of them. Raises
    PipelineError for a record that cannot be read, and FileNotFoundError for one that is missing.
    """
    return _over_ranges(partial(summary, out=str(output.root), size=size), output, shards, executor)


def summary(shards: range, *, out: str, size: int) -> RangeSummary:
    """Return what the records of a range of shards hold."""
    output, digests, sums = OutputFolder.at(out), list[bytes](), TrainSums.zero(size)

    def found() -> Iterator[ShardRecord]:
        nonlocal sums
        for index, content in zip(shards, records.contents(output, shards), strict=True):
            if content is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(output.shard_record(index)))
            record = records.parsed(output, index, content)
            digests.append(xxhash.xxh3_128_digest(content))
            sums = sums.plus(record)
            yield record

    outcomes = Outcomes.of(found())
    digest = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    return RangeSummary(shards.start, digest, sums, outcomes)


def _over_ranges(
    work: Callable[[range], Result], output: OutputFolder, shards: int, executor: StartExecutor | None
) -> Iterator[Result]:
    """Yield the results of `work` for the first `shards` shards in ranges."""
    parts = (range(start, min(start + RANGE_SHARDS, shards)) for start in range(0, shards, RANGE_SHARDS))
    workers = _workers(output, shards, executor)
    return map(work, parts) if workers is None else (done.result for done in completed(workers.run(work, parts)))


def _workers(output: OutputFolder, shards: int, executor: StartExecutor | None) -> Executor | None:
    """Return the executor where so many records are worth it, None where the driver reads them alone."""
    if executor is None or shards < (ALONE if is_local(output.root) else ALONE_REMOTE):
        return None
    workers = executor()
    preflight.check(workers, output, writes=False)
    return workers
