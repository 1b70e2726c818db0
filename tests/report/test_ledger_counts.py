"""The counts of a ledger, in one pass over it, are those of the table in memory."""

import tempfile

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.durable_files import write_parquet_groups
from pipeline.outputs import OutputFolder
from pipeline.report.ledger_counts import MAX_EXAMPLES, MAX_REASONS, LedgerCounts, Reason
from pipeline.schema import SILENT, STATUSES, reason_kind

REASONS = (
    "ends after {} s",
    "ends after {} s of {} s",
    "ä is no {}",
    f"{SILENT}{{}}",
    *(f"{c * 2}" for c in "bcdefgh"),
)
entries = st.lists(
    st.tuples(st.sampled_from(STATUSES), st.sampled_from(REASONS), st.integers(1, 3), st.integers(0, 2)), min_size=1,
    max_size=60,
)  # fmt: skip


def expected_reasons(table: pd.DataFrame) -> list[Reason]:
    """All reasons, the worst and then the most frequent first."""
    bad = table[table["status"] != "ok"].assign(kind=lambda rows: rows["reason"].map(reason_kind))
    found = []
    for (status, kind), rows in bad.groupby(["status", "kind"]):
        text = str(rows["reason"].iloc[0]) if rows["reason"].nunique() == 1 else str(kind)
        found.append((str(kind), Reason(str(status), text, len(rows), rows["recording_id"][:MAX_EXAMPLES].tolist())))
    found.sort(key=lambda pair: (-STATUSES.index(pair[1].status), -pair[1].n, pair[0]))
    return [reason for _, reason in found]


@settings(max_examples=15, deadline=None)
@given(entries, st.integers(1, 30), st.integers(-2, 2))
def test_counts_are_those_of_the_whole_table(
    drawn: list[tuple[str, str, int, int]], rows_per_group: int, more_recordings: int
) -> None:
    table = pd.DataFrame(
        {
            "recording_id": [f"r{row}" for row in range(len(drawn))],
            "status": [status for status, *_ in drawn],
            "reason": pd.array([reason.format(number, 7) for _, reason, number, _ in drawn], "string"),
            "decoded_frames": 0,
            "sequences_written": [written for *_, written in drawn],
        }
    )
    recordings = max(0, len(table) + more_recordings)  # a manifest that was scanned since
    with tempfile.TemporaryDirectory() as folder:
        output = OutputFolder.at(folder)
        write_parquet_groups(output.ledger, (part for _, part in table.groupby(table.index // rows_per_group)))
        found = LedgerCounts.of(output, recordings)
    reasons = expected_reasons(table)
    assert found.reasons == reasons[:MAX_REASONS]
    assert found.more_reasons == len(reasons[MAX_REASONS:])
    assert found.more_recordings == sum(reason.n for reason in reasons[MAX_REASONS:])
    assert found.statuses == {status: int((table["status"] == status).sum()) for status in STATUSES}
    silent = table["status"][table["reason"].str.startswith(SILENT)]
    assert found.silent == {status: int((silent == status).sum()) for status in STATUSES}
    assert found.sequences == table["sequences_written"].sum()
    stored = (table["sequences_written"] > 0).to_numpy()[:recordings]
    assert found.stored.tolist() == np.pad(stored, (0, recordings - len(stored))).tolist()
