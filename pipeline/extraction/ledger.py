"""The ledger: the outcome of each recording."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow import parquet

from pipeline.config import PipelineConfig
from pipeline.corpus.manifest import ROWS_PER_GROUP, masked_rows
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.errors import PipelineError, few
from pipeline.extraction.outcomes import Outcomes
from pipeline.outputs import OutputFolder
from pipeline.schema import LEDGER_COLUMNS, SILENT, STATUSES
from pipeline.storage import reading_table
from pipeline.store.records import REPAIR

OK, SHORT, FILTERED, FAILED = range(len(STATUSES))
"""Positions in STATUSES; a larger one is worse."""


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
        for status, count in piece["status"].value_counts().items():
            found[str(status)] += int(count)
    return found


def failed_fraction(counted: Mapping[str, int]) -> float:
    """Return the fraction of recordings that failed, from the number of recordings by status."""
    return counted["failed"] / max(1, sum(counted.values()))


def matches(
    output: OutputFolder, manifest: ManifestFile, outcomes: Iterable[Outcomes], config: PipelineConfig
) -> bool:
    """Whether the ledger of an output folder has the rows that `build` gives."""
    try:
        return _are_equal(build(manifest, outcomes, config), read(output))
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


def build(manifest: ManifestFile, outcomes: Iterable[Outcomes], config: PipelineConfig) -> Iterator[pd.DataFrame]:
    """Return the ledger in the row groups of the manifest: one row per recording, with the columns LEDGER_COLUMNS.

    A recording in several shards has the worst of its statuses and the sum of its sequences. A masked recording is
    filtered, with the reason in the manifest.

    `outcomes` may come in any order; they are read before this returns. A recording takes 9 bytes meanwhile, and one
    with a reason in the records some hundred more.
    """
    total = _Outcomes(len(manifest))
    for part in outcomes:
        total.add(part)
    too_short = f"shorter than one sequence of {config.store.timesteps * config.features.hop_s:g} s"
    tables = manifest.tables(["recording_id", "sequences", "error", "masked"])
    return (total.ledger(rows["recording_id"], *_planned(rows, too_short)) for rows in tables)


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
        self._reasons: dict[int, tuple[int, str]] = {}

    def add(self, part: Outcomes) -> None:
        """Add the outcomes in some records: the reason of the worst one counts, and of the first of equal ones."""
        np.maximum.at(self._decoded, part.recording, part.decoded_frames.astype(np.uint32))
        np.add.at(self._written, part.recording, part.sequences_written.astype(np.uint32))
        noted = np.flatnonzero((part.status != OK) | (part.reason != 0))
        columns = (part.recording, part.status, part.reason, part.shard)
        for row, code, reason, shard in zip(*(column[noted].tolist() for column in columns), strict=True):
            place, _ = self._reasons.get(row, (-1, ""))
            earlier = shard < place if code != OK else shard >= place
            if code > self._status[row] or (code == self._status[row] and earlier):
                self._status[row], self._reasons[row] = code, (shard, part.reasons[reason])

    def ledger(self, ids: pd.Series, status: NDArray[np.uint8], reason: NDArray[np.object_]) -> pd.DataFrame:
        """Return the rows of the recordings `ids`, which have this status and reason before extraction."""
        rows = slice(ids.index[0], ids.index[-1] + 1)
        found = self._status[rows]
        for place in np.flatnonzero((found > status) | ((found == OK) & (status == OK))).tolist():
            _, reason[place] = self._reasons.get(rows.start + place, (-1, reason[place]))
        return pd.DataFrame({
            "recording_id": ids,
            "status": np.array(STATUSES)[np.maximum(status, found)],
            "reason": pd.array(reason, dtype="string"),
            "decoded_frames": self._decoded[rows].astype(np.int64),
            "sequences_written": self._written[rows].astype(np.int64),
        })[list(LEDGER_COLUMNS)]  # fmt: skip
