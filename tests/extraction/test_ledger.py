"""The ledger: one row a recording, the worst that a shard said of it, and sums that close."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.durable_files import write_parquet_groups
from pipeline.errors import PipelineError
from pipeline.extraction import ledger
from pipeline.extraction.outcomes import Outcomes
from pipeline.outputs import OutputFolder
from pipeline.schema import LEDGER_COLUMNS, STATUSES
from pipeline.store.records import RecordingOutcome, ShardRecord
from tests.conftest import make_manifest, make_probe
from tests.support.manifests import ledger_of, plan_of

CONFIG = PipelineConfig(store=StoreConfig(sequences_per_chunk=2, chunks_per_shard=2))
LONG = 64_000  # samples: 20 sequences, five shards
TABLE = make_manifest(
    [
        make_probe("de/a/long.wav", LONG),
        make_probe("de/b/short.wav", 1600),
        make_probe("en/c/long.wav", LONG),
        make_probe("en/d/broken.wav", error="the file is empty"),
    ],
    CONFIG,
)
ROW = {name: row for row, name in enumerate(TABLE["recording_id"])}


def record(*outcomes: RecordingOutcome) -> ShardRecord:
    return ShardRecord(
        index=0, checksums={}, outcomes=outcomes, train_count=0, train_sum=(), train_sum_squares=()
    )  # fmt: skip


def outcome(recording: int, status: str, reason: str, decoded_frames: int, written: int) -> RecordingOutcome:
    return RecordingOutcome(
        recording=recording, status=status, reason=reason, decoded_frames=decoded_frames, sequences_written=written
    )  # fmt: skip


def build(table: pd.DataFrame, records: list[ShardRecord], config: PipelineConfig, size: int = 2) -> pd.DataFrame:
    return ledger_of(table, [Outcomes.of([each]) for each in records], config, size)


def row_of(rows: pd.DataFrame, name: str) -> dict[str, object]:
    (found,) = rows[rows["recording_id"] == name].to_dict("records")
    return {str(key): value for key, value in found.items() if key != "recording_id"}


def all_ok() -> list[ShardRecord]:
    return [
        record(*[outcome(s.recording, "ok", "", 401, s.count) for s in shard.segments])
        for shard in plan_of(TABLE, CONFIG)
    ]


def test_every_recording_has_one_row_in_the_order_of_the_manifest() -> None:
    rows = build(TABLE, all_ok(), CONFIG)
    assert tuple(rows.columns) == LEDGER_COLUMNS
    assert list(rows["recording_id"]) == list(TABLE["recording_id"])


def test_recording_in_several_shards_has_the_sum_of_what_they_wrote() -> None:
    assert row_of(build(TABLE, all_ok(), CONFIG), "de/a/long.wav") == {
        "status": "ok", "reason": "", "decoded_frames": 401, "sequences_written": 20,
    }  # fmt: skip


def test_recording_too_short_for_a_sequence_is_filtered() -> None:
    assert row_of(build(TABLE, all_ok(), CONFIG), "de/b/short.wav") == {
        "status": "filtered",
        "reason": "shorter than one sequence of 0.2 s",
        "decoded_frames": 0,
        "sequences_written": 0,
    }


def test_recording_without_a_header_failed_with_its_reason() -> None:
    assert row_of(build(TABLE, all_ok(), CONFIG), "en/d/broken.wav") == {
        "status": "failed",
        "reason": "the file is empty",
        "decoded_frames": 0,
        "sequences_written": 0,
    }


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_worst_status_and_its_reason_win(order: list[int]) -> None:
    row = ROW["en/c/long.wav"]
    records = [
        record(outcome(row, "ok", "", 401, 4)),
        record(outcome(row, "failed", "gone", 0, 0)),
        record(outcome(row, "short", "ends early", 300, 3)),
    ]
    rows = build(TABLE, [records[i] for i in order], CONFIG)
    assert row_of(rows, "en/c/long.wav") == {
        "status": "failed", "reason": "gone", "decoded_frames": 401, "sequences_written": 7,
    }  # fmt: skip


@settings(max_examples=8)
@given(
    st.lists(st.tuples(st.sampled_from(["ok", "short", "failed"]), st.integers(0, 4)), min_size=10, max_size=20),
    st.sampled_from([1, 3, 100]),
)
def test_ledger_closes(drawn: list[tuple[str, int]], size: int) -> None:
    segments = [segment for shard in plan_of(TABLE, CONFIG) for segment in shard.segments]
    records = [
        record(outcome(s.recording, status, "" if status == "ok" else "why", 401, written))
        for s, (status, written) in zip(segments, drawn, strict=False)
    ]
    rows = build(TABLE, records, CONFIG)
    assert len(rows) == len(TABLE)
    pd.testing.assert_frame_equal(build(TABLE, records, CONFIG, size), rows)
    written = sum(o.sequences_written for r in records for o in r.outcomes)
    assert rows["sequences_written"].sum() == written
    assert (rows["reason"] == "").to_list() == (rows["status"] == "ok").to_list()


def test_counts_and_rows_of_a_written_ledger(tmp_path: Path) -> None:
    output = OutputFolder.at(str(tmp_path))
    assert not len(ledger.failed_rows(output))
    expected, found = build(TABLE, all_ok(), CONFIG), [Outcomes.of(all_ok())]
    for size in (1, 3, 100):
        with ledger.building(ManifestFile.of(TABLE, size), found, CONFIG, output.root) as rows:
            write_parquet_groups(output.ledger, rows)
        counts = ledger.counts(output)
        assert counts == {"ok": 2, "short": 0, "filtered": 1, "failed": 1}
        assert tuple(counts) == STATUSES
        assert ledger.failed_fraction(counts) == 0.25
        assert ledger.failed_rows(output).tolist() == [ROW["en/d/broken.wav"]]
        assert ledger.matches(output, ManifestFile.of(TABLE, 2), found, CONFIG)
        assert not ledger.matches(output, ManifestFile.of(TABLE, 2), [Outcomes.of(all_ok()[1:])], CONFIG)
        assert not ledger.matches(output, ManifestFile.of(pd.concat([TABLE, TABLE]), 2), found, CONFIG)
        pd.testing.assert_frame_equal(pd.concat(ledger.read(output)), expected)
    whole = tmp_path / "whole.parquet"
    expected.to_parquet(whole, index=False)
    assert whole.read_bytes() == Path(str(output.ledger)).read_bytes()


def test_damaged_ledger_has_no_rows_and_does_not_match(tmp_path: Path) -> None:
    output = OutputFolder.at(str(tmp_path))
    found = [Outcomes.of(all_ok())]
    with ledger.building(ManifestFile.of(TABLE), found, CONFIG, output.root) as rows:
        write_parquet_groups(output.ledger, rows)
    content = Path(str(output.ledger)).read_bytes()
    for damaged in (content[:-20], content[:4] + bytes(400) + content[404:]):
        Path(str(output.ledger)).write_bytes(damaged)
        assert not len(ledger.failed_rows(output))
        assert not ledger.matches(output, ManifestFile.of(TABLE), found, CONFIG)
        with pytest.raises(PipelineError, match=r"ledger\.parquet is damaged \(.*\); run extract --repair"):
            ledger.counts(output)
