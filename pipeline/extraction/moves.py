"""The moves of a compaction: the shards of the new store, and where the old one has their sequences."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.corpus.database import ROWS_AT_ONCE, Database, create, fill, stream
from pipeline.extraction import ledger
from pipeline.extraction.plan import Plan
from pipeline.extraction.segments import Shard
from pipeline.outputs import OutputFolder
from pipeline.store import records
from pipeline.store.records import Status

ENDS: Final = pa.schema([
    ("row", pa.int64()), ("status", pa.string()), ("reason", pa.string()), ("decoded_frames", pa.int64()),
])  # fmt: skip
"""What the old ledger has of a recording."""
STATES: Final = pa.schema([
    ("row", pa.int64()), ("shard", pa.int64()), ("size_bytes", pa.int64()), ("modified_ns", pa.int64()),
    ("transient", pa.bool_()),
])  # fmt: skip
"""What the record of a shard has of the file of a recording that failed."""
STATE: Final = ("size_bytes", "modified_ns", "transient")
ORIGINS: Final = """
    SELECT new_row, start, status, reason, decoded_frames, size_bytes, modified_ns, transient
    FROM moved JOIN ends USING (row)
    LEFT JOIN (
        SELECT
            row, max_by(size_bytes, shard) AS size_bytes, max_by(modified_ns, shard) AS modified_ns,
            max_by(transient, shard) AS transient
        FROM states GROUP BY row
    ) USING (row)
    ORDER BY new_row
"""


@dataclass(frozen=True)
class Origin:
    """The first sequence of a segment in the old store, and the outcome of its recording in the old ledger.

    `state` is that of the file, where the recording failed, and whether the file system was the cause.
    """

    start: int
    status: Status
    reason: str
    decoded_frames: int
    state: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Move:
    """A shard of the new store, and the origin of each of its segments."""

    shard: Shard
    origins: tuple[Origin, ...]

    def __str__(self) -> str:
        return str(self.shard)


def moves(db: Database, output: OutputFolder, old: Plan, new: Plan, pending: NDArray[np.int64]) -> Iterator[Move]:
    """Yield the moves of the shards `pending` of the plan `new`, in rising order; holds some rows of the manifest.

    The plan `old`, the ledger and the records are those of the store in `output`. The database has the table `moved`
    (see `write_compacted`).
    """
    create(db, "ends", ENDS)
    fill(db, "ends", _ends(output))
    create(db, "states", STATES)
    fill(db, "states", _states(output, old))
    origins, known = _origins(db), dict[int, Origin]()
    for index in map(int, pending):
        shard = new[index]
        rows = {segment.recording for segment in shard.segments}
        known = {row: origin for row, origin in known.items() if row in rows}
        while len(known) < len(rows):  # rows rise within a shard and from one to the next
            row, origin = next(origins)
            if row in rows:
                known[row] = origin
        yield Move(shard, tuple(
            replace(known[segment.recording], start=known[segment.recording].start + segment.first)
            for segment in shard.segments
        ))  # fmt: skip


def _origins(db: Database) -> Iterator[tuple[int, Origin]]:
    """Yield the row of each recording in the new manifest, in rising order, and the origin of its first sequence."""
    for part in stream(db, ORIGINS):
        for row, start, status, reason, decoded_frames, *state in zip(*part.to_pydict().values(), strict=True):
            found = {} if state[0] is None else dict(zip(STATE, state, strict=True))
            yield row, Origin(start, status, reason, decoded_frames, found)


def _ends(output: OutputFolder) -> Iterator[pa.Table]:
    for piece in ledger.read(output, ENDS.names[1:]):
        yield pa.Table.from_pandas(piece.assign(row=piece.index), ENDS, preserve_index=False, nthreads=1)


def _states(output: OutputFolder, plan: Plan) -> Iterator[pa.Table]:
    shards = np.flatnonzero(plan.shards_with(ledger.failed_rows(output)))
    found = (
        (outcome.recording, index, outcome.size_bytes, outcome.modified_ns, outcome.transient)
        for index in map(int, shards)
        for outcome in records.read_record(output, index).outcomes
        if outcome.status == "failed"
    )
    while some := list(islice(found, ROWS_AT_ONCE)):
        yield pa.Table.from_arrays(list(map(pa.array, zip(*some, strict=True), STATES.types)), schema=STATES)
