"""What the report counts in the ledger, which is read once; failures are grouped by their reasons in files."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.corpus.database import Database, create, database, fill, rows
from pipeline.durable_files import scratch_folder
from pipeline.extraction import ledger
from pipeline.outputs import OutputFolder
from pipeline.schema import STATUSES, reason_kind

MAX_REASONS: Final = 20
MAX_EXAMPLES: Final = 3

BAD: Final = pa.schema([
    ("row", pa.int64()), ("recording_id", pa.string()), ("status", pa.string()), ("reason", pa.string()),
    ("kind", pa.string()),
])  # fmt: skip
"""The recordings that are not ok; the reasons of a `kind` differ only in their numbers."""
REASONS: Final = """
    WITH kinds AS (
        SELECT status, kind, count(*) AS n, if(min(reason) = max(reason), min(reason), kind) AS text
        FROM bad GROUP BY status, kind
    ), shown AS (
        SELECT *, list_position(?, status) AS severity FROM kinds ORDER BY severity DESC, n DESC, status, kind LIMIT ?
    )
    SELECT status, text, n, min_by(recording_id, row, ?) FROM shown JOIN bad USING (status, kind)
    GROUP BY status, kind, text, n, severity ORDER BY severity DESC, n DESC, status, kind
"""
"""The worst reasons, and of these the most frequent ones, come first; a number is shown if it is equal in all."""
KINDS: Final = "SELECT count(*) FROM (SELECT DISTINCT status, kind FROM bad)"


@dataclass(frozen=True)
class Reason:
    """Why recordings were not fully used: `n` of them, with the ids of some."""

    status: str
    text: str
    n: int
    examples: Sequence[str]


@dataclass(frozen=True)
class LedgerCounts:
    """What is counted in the rows of a ledger.

    `statuses` counts recordings by status, `silent` those of them without sound. `sequences` are stored, by the
    recordings that are true in `stored`: (row,) bool. `reasons` has the first MAX_REASONS reasons of recordings that
    are not ok, the worst first; `more_reasons` counts the others.
    """

    statuses: Mapping[str, int]
    silent: Mapping[str, int]
    sequences: int
    stored: NDArray[np.bool_]
    reasons: Sequence[Reason]
    more_reasons: int

    @classmethod
    def of(cls, output: OutputFolder, recordings: int) -> "LedgerCounts":
        """Read the ledger of an output folder, whose manifest has so many recordings.

        Raises FileNotFoundError if there is none, and PipelineError for one that is damaged.
        """
        statuses, silent = Counter[str](dict.fromkeys(STATUSES, 0)), Counter[str](dict.fromkeys(STATUSES, 0))
        sequences, stored = 0, np.zeros(recordings, np.bool_)

        def bad() -> Iterator[pa.Table]:
            nonlocal sequences
            for piece in ledger.read(output, ["recording_id", "status", "reason", "sequences_written"]):
                statuses.update(piece["status"])
                silent.update(piece["status"][ledger.silent_rows(piece)])
                written = piece["sequences_written"].to_numpy()
                sequences += int(written.sum())
                held = stored[piece.index[0] : piece.index[-1] + 1]
                held[:] = written[: len(held)] > 0
                yield _bad_rows(piece)

        with scratch_folder(output.root) as folder, database(folder) as db:
            create(db, "bad", BAD)
            fill(db, "bad", bad())
            reasons, kinds = _reasons(db)
        return cls(dict(statuses), dict(silent), sequences, stored, reasons, max(0, kinds - MAX_REASONS))

    @property
    def more_recordings(self) -> int:
        """The number of recordings that have one of `more_reasons`."""
        bad = sum(self.statuses.values()) - self.statuses["ok"]
        return bad - sum(reason.n for reason in self.reasons)


def _bad_rows(piece: pd.DataFrame) -> pa.Table:
    found = piece[piece["status"] != "ok"]
    found = found.assign(row=found.index, kind=found["reason"].map(reason_kind).astype("string"))
    return pa.Table.from_pandas(found[BAD.names], BAD, preserve_index=False, nthreads=1)


def _reasons(db: Database) -> tuple[list[Reason], int]:
    """Return the reasons to show, and the number of all."""
    ((kinds,),) = rows(db, KINDS)
    return [Reason(*found) for found in rows(db, REASONS, list(STATUSES), MAX_REASONS, MAX_EXAMPLES)], int(kinds)
