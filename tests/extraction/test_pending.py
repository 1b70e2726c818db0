"""What is pending: the shards and recordings that a pass over all shards, records and files finds."""

import tempfile
from unittest import mock

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.config import PipelineConfig, StoreConfig
from pipeline.durable_files import write_parquet
from pipeline.extraction.pending import find_pending
from pipeline.extraction.plan import Plan
from pipeline.outputs import OutputFolder
from pipeline.schema import LEDGER_COLUMNS
from pipeline.storage import FileState
from pipeline.store import records
from pipeline.store.records import RecordingOutcome, ShardRecord
from tests.conftest import make_manifest, make_probe
from tests.support.manifests import write_manifest

CONFIG = PipelineConfig(store=StoreConfig(sequences_per_chunk=2, chunks_per_shard=2))
LENGTHS = (64_000, 9_000, 3_200, 1_600, 20_000, 40_000, 3_200, 3_200)  # of no sequence to five shards
TABLE = make_manifest([make_probe(f"{'de' if i % 2 else 'en'}/s/{i}.wav", n) for i, n in enumerate(LENGTHS)], CONFIG)
ROWS = st.sets(st.integers(0, len(TABLE) - 1))


def write_record(output: OutputFolder, plan: Plan, index: int, failed: set[int], *, finished: bool) -> None:
    outcomes = (
        RecordingOutcome(
            recording=segment.recording, status="failed" if segment.recording in failed else "ok", reason="",
            decoded_frames=0, sequences_written=0,
        )
        for segment in plan[index].segments
    )  # fmt: skip
    checksums = {"features": "0"} if finished else {}
    record = ShardRecord(
        index=index, checksums=checksums, outcomes=tuple(outcomes), train_count=0, train_sum=(), train_sum_squares=()
    )
    records.write_record(output, record)


@settings(max_examples=40, deadline=None)
@given(ROWS, ROWS, ROWS, ROWS, ROWS, st.data())
def test_pending_is_what_a_pass_over_all_shards_finds(
    failed: set[int], of_ledger: set[int], silent: set[int], reachable: set[int], masked: set[int], data: st.DataObject
) -> None:
    """`failed` by the records, and `of_ledger`, which an interrupted run has left as it was."""
    table = TABLE.assign(masked=pd.array(["gone" if row in masked else None for row in range(len(TABLE))], "string"))
    status = ["failed" if row in of_ledger else "ok" for row in range(len(TABLE))]
    reason = pd.array(["silent: all" if row in silent - of_ledger else "" for row in range(len(TABLE))], "string")
    ledger = pd.DataFrame(
        dict(zip(LEDGER_COLUMNS, (table["recording_id"], status, reason, 0, 0), strict=True))
    )  # fmt: skip
    uris = {str(table["uri"].iloc[row]) for row in reachable}
    with tempfile.TemporaryDirectory() as folder:
        output = OutputFolder.at(folder)
        write_manifest(output, table)
        write_parquet(output.ledger, ledger.iloc[: data.draw(st.integers(len(TABLE) - 2, len(TABLE)))])
        plan = Plan.at(output, CONFIG)
        states = [data.draw(st.sampled_from(["finished", "unfinished", "missing"])) for _ in plan]
        for index, state in enumerate(states):
            if state != "missing":
                write_record(output, plan, index, failed, finished=state == "finished")
        known = set(range(len(storage_rows(output))))
        shards, again = set(), set()
        for index, state in enumerate(states):
            rows = {segment.recording for segment in plan[index].segments}
            retried = rows & of_ledger & known
            if state == "finished":
                retried = {row for row in rows & failed & reachable if retried}
            if state != "finished" or retried or rows & (masked | (silent - of_ledger) & known):
                shards.add(index)
            if state != "missing":
                again |= retried
        with mock.patch.object(storage, "file_state", lambda uri: FileState(1, 1) if uri in uris else None):
            found = find_pending(output, plan, filter_silent=True)
    assert set(found.shards.tolist()) == shards
    assert found.again.tolist() == sorted(again)
    assert (np.diff(found.shards) > 0).all()


def storage_rows(output: OutputFolder) -> pd.DataFrame:
    return pd.read_parquet(str(output.ledger))
