"""The ledger: the outcome of each recording."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet
from upath import UPath

from pipeline.config import PipelineConfig
from pipeline.corpus.database import Database, count, create, database, fill, reserve, stream
from pipeline.corpus.manifest import ROWS_PER_GROUP, masked_rows
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.durable_files import scratch_folder
from pipeline.errors import PipelineError, few
from pipeline.extraction.outcomes import Outcomes
from pipeline.outputs import OutputFolder
from pipeline.schema import LEDGER_COLUMNS, SILENT, STATUSES
from pipeline.storage import reading_table
from pipeline.store.records import REPAIR

OK, SHORT, FILTERED, FAILED = range(len(STATUSES))
"""Positions in STATUSES; a larger one is worse."""
NOTED: Final = pa.schema([("row", pa.int64()), ("status", pa.int8()), ("shard", pa.int64()), ("reason", pa.string())])
"""Outcomes in the records of shards that are not ok, or have a reason all the same."""
WORST_FIRST: Final = "SELECT row, reason FROM noted ORDER BY row, status DESC, if(status = 0, -shard, shard)"
"""Of equally bad outcomes the first in the store counts, of good ones the last."""


def read(output: OutputFolder, columns: Sequence[str] = LEDGER_COLUMNS) -> Iterator[pd.DataFrame]:
    """Yield columns of the ledger in pieces; the index has the numbers of the rows.

    Raises FileNotFoundError if there is no ledger, and PipelineError for one that is damaged.
    """
    with output.ledger.open("rb") as source:
        with reading_table(output.ledger, REPAIR):
            file = parquet.ParquetFile(source, pre_buffer=False)
            names = set(file.schema_arrow.names)
        missing = [name for name in LEDGER_COLUMNS if name not in names]
        if missing:
            raise PipelineError(f"{output.ledger} is damaged (it has no column {few(missing)}); {REPAIR}")
        batches = file.iter_batches(ROWS_PER_GROUP, columns=list(columns), use_threads=False)
        first_row = 0
        while True:
            with reading_table(output.ledger, REPAIR):
                batch = next(batches, None)
                piece = None if batch is None else batch.to_pandas(use_threads=False)[list(columns)]
            if piece is None:
                return
            yield piece.set_index(pd.RangeIndex(first_row, first_row + len(piece)))
            first_row += len(piece)


def rows_where(
    output: OutputFolder, columns: Sequence[str], holds: Callable[[pd.DataFrame], NDArray[np.bool_]]
) -> NDArray[np.int64]:
    """Return the rows of the ledger for whose `columns` a condition holds: (row,) int64 in rising order.

    Returns none if there is no ledger that can be read.
    """
    try:
        found = [piece.index.to_numpy(np.int64)[holds(piece)] for piece in read(output, columns)]
    except (FileNotFoundError, PipelineError):
        found = []
    return np.concatenate([np.empty(0, np.int64), *found])


def failed_rows(output: OutputFolder) -> NDArray[np.int64]:
    """Return the recordings that failed (see `rows_where`)."""
    return rows_where(output, ["status"], lambda rows: (rows["status"] == "failed").to_numpy(np.bool_))


def silent_rows(ledger: pd.DataFrame) -> NDArray[np.bool_]:
    """Return for each recording whether it was read and holds no sound: (row,) bool."""
    return np.asarray(ledger["reason"].str.startswith(SILENT), np.bool_)


def counts(output: OutputFolder) -> dict[str, int]:
    """Return the number of recordings by status, in the order of STATUSES."""
    found = dict.fromkeys(STATUSES, 0)
    for piece in read(output, ["status"]):
        for status, number in piece["status"].value_counts().items():
            found[str(status)] += int(number)
    return found


def failed_fraction(counted: Mapping[str, int]) -> float:
    """Return the fraction of recordings that failed, from the number of recordings by status."""
    return counted["failed"] / max(1, sum(counted.values()))


def matches(
    output: OutputFolder, manifest: ManifestFile, outcomes: Iterable[Outcomes], config: PipelineConfig
) -> bool:
    """Whether the ledger of an output folder has the rows that `building` yields."""
    try:
        with building(manifest, outcomes, config, output.root) as rows:
            return _are_equal(rows, read(output))
    except (FileNotFoundError, PipelineError):
        return False


def _are_equal(pieces: Iterator[pd.DataFrame], others: Iterator[pd.DataFrame]) -> bool:
    """Whether two tables are equal, which come in pieces of different sizes."""
    one, other = next(pieces, None), next(others, None)
    while one is not None and other is not None:
        rows = min(len(one), len(other))
        if not one.iloc[:rows].equals(other.iloc[:rows]):
            return False
        one = one.iloc[rows:] if rows < len(one) else next(pieces, None)
        other = other.iloc[rows:] if rows < len(other) else next(others, None)
    return one is None and other is None


@contextmanager
def building(
    manifest: ManifestFile, outcomes: Iterable[Outcomes], config: PipelineConfig, folder: UPath
) -> Iterator[Iterator[pd.DataFrame]]:
    """Yield the ledger in the row groups of the manifest: one row per recording, with the columns LEDGER_COLUMNS.

    A recording in several shards has the worst of its statuses and the sum of its sequences. A masked recording is
    filtered, with the reason in the manifest.

    `outcomes` may come in any order; they are read first. A recording takes 9 bytes meanwhile. The reasons are in
    files below `folder`, that of `scratch_folder`.
    """
    total = _Outcomes(len(manifest))
    too_short = f"shorter than one sequence of {config.store.timesteps * config.features.hop_s:g} s"
    with scratch_folder(folder) as scratch, database(scratch) as db:
        create(db, "noted", NOTED)
        fill(db, "noted", map(total.add, outcomes))
        reserve(db, count(db, "noted"))
        reasons = _Reasons(_worst(db))
        tables = manifest.tables(["recording_id", "sequences", "error", "masked"])
        planned = ((rows, _planned(rows, too_short)) for rows in tables)
        yield (total.ledger(rows["recording_id"], *before, reasons) for rows, before in planned)


def _planned(rows: pd.DataFrame, too_short: str) -> tuple[NDArray[np.uint8], NDArray[np.object_]]:
    """Return status and reason of some rows of the manifest as they are before extraction."""
    unreadable, masked = rows["error"].notna().to_numpy(), masked_rows(rows)
    status, reason = np.full(len(rows), OK, np.uint8), np.full(len(rows), "", object)
    short = (rows["sequences"] == 0).to_numpy()
    status[short], reason[short] = FILTERED, too_short
    status[unreadable], reason[unreadable] = FAILED, rows["error"].to_numpy(object)[unreadable]
    status[masked], reason[masked] = FILTERED, rows["masked"].to_numpy(object)[masked]
    return status, reason


class _Outcomes:
    """The outcomes of `recordings` recordings in the records of shards; their numbers fit into 32 bits."""

    def __init__(self, recordings: int) -> None:
        self._status = np.full(recordings, OK, np.uint8)
        self._decoded, self._written = np.zeros(recordings, np.uint32), np.zeros(recordings, np.uint32)

    def add(self, part: Outcomes) -> pa.Table:
        """Add the outcomes in some records; return those that say why a recording is as it is."""
        np.maximum.at(self._status, part.recording, part.status.astype(np.uint8))
        np.maximum.at(self._decoded, part.recording, part.decoded_frames.astype(np.uint32))
        np.add.at(self._written, part.recording, part.sequences_written.astype(np.uint32))
        noted = np.flatnonzero((part.status != OK) | (part.reason != 0))
        reasons = pa.array(part.reasons, pa.string()).take(pa.array(part.reason[noted]))
        columns = (pa.array(values[noted]) for values in (part.recording, part.status, part.shard))
        return pa.Table.from_arrays([*columns, reasons], schema=NOTED)

    def ledger(
        self, ids: pd.Series, status: NDArray[np.uint8], reason: NDArray[np.object_], reasons: "_Reasons"
    ) -> pd.DataFrame:
        """Return the rows of the recordings `ids`, which have this status and reason before extraction."""
        rows = slice(ids.index[0], ids.index[-1] + 1)
        found = self._status[rows]
        for row, text in reasons.before(rows.stop):
            place = row - rows.start
            if found[place] > status[place] or found[place] == status[place] == OK:
                reason[place] = text
        return pd.DataFrame({
            "recording_id": ids,
            "status": np.array(STATUSES)[np.maximum(status, found)],
            "reason": pd.array(reason, dtype="string"),
            "decoded_frames": self._decoded[rows].astype(np.int64),
            "sequences_written": self._written[rows].astype(np.int64),
        })[list(LEDGER_COLUMNS)]  # fmt: skip


def _worst(db: Database) -> Iterator[tuple[int, str]]:
    """Yield each recording that has a reason, in rising order, and that of its worst outcome."""
    last = -1
    for part in stream(db, WORST_FIRST):
        for row, reason in zip(part["row"].to_pylist(), part["reason"].to_pylist(), strict=True):
            if row != last:
                yield row, reason
            last = row


class _Reasons:
    """The reasons of recordings, which are asked for in rising order."""

    def __init__(self, found: Iterator[tuple[int, str]]) -> None:
        self._found, self._next = found, next(found, None)

    def before(self, stop: int) -> Iterator[tuple[int, str]]:
        """Yield the next recordings before the row `stop`."""
        while self._next is not None and self._next[0] < stop:
            yield self._next
            self._next = next(self._found, None)
