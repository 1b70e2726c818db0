"""The records of many shards: what is found of them, by the driver or by workers, in bounded memory."""

import pickle
import tracemalloc
from collections.abc import Callable, Generator, Iterable
from functools import reduce
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError
from pipeline.extraction import record_ranges
from pipeline.extraction.outcomes import Outcomes
from pipeline.extraction.record_ranges import RecordRange
from pipeline.outputs import OutputFolder
from pipeline.runtime.executor import Done, Executor, Lost, SerialExecutor
from pipeline.store import record_digests, records
from pipeline.store.record_digests import RecordDigests
from pipeline.store.records import RecordingOutcome, ShardRecord
from pipeline.store.statistics import TrainSums
from tests.conftest import make_manifest, make_probe
from tests.support.manifests import ledger_of

T = TypeVar("T")
R = TypeVar("R")

CONFIG = PipelineConfig()
SHARDS = 11
KINDS = ("right", "changed", "missing", "unlisted", "unlisted and damaged", "never written")
DAMAGED = ("changed", "missing", "unlisted and damaged")


def record(index: int) -> ShardRecord:
    found = RecordingOutcome(
        recording=index // 2, status="ok", reason="", decoded_frames=10 * index, sequences_written=index
    )
    return ShardRecord(
        index=index,
        checksums={"valid": "0"},
        outcomes=(found,),
        train_count=index,
        train_sum=(2**70 * index, -index),
        train_sum_squares=(index, 1),
    )


def sees_nothing(part: RecordRange, *, out: str) -> RecordRange:
    """Stand in for a worker whose file system shows no record."""
    assert out
    return part


def made(folder: Path, kinds: list[str]) -> OutputFolder:
    """Return an output folder with a record of each of `kinds`."""
    output = OutputFolder.at(str(folder))
    output.shards.mkdir(parents=True, exist_ok=True)
    output.manifest.touch()
    listed = RecordDigests.none(len(kinds))
    for index, kind in enumerate(kinds):
        if kind != "never written":
            records.write_record(output, record(index))
            listed.listed[index] = not kind.startswith("unlisted")
    listed.digest[:] = record_ranges.digests(output, len(kinds)).digest
    record_digests.write(output, listed)
    for index, kind in enumerate(kinds):
        path = output.shard_record(index)
        if kind == "missing":
            path.unlink()
        if kind in ("changed", "unlisted and damaged"):
            path.write_bytes(path.read_bytes() + b"}")
    return output


class OtherProcess(SerialExecutor):
    """Runs tasks as another process does: items and results are pickled."""

    def run(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        limit_s: Callable[[T], float] | None = None,
    ) -> Generator[Done[R] | Lost[T], None, None]:
        def pickled(item: T) -> R:
            sent_function, sent = pickle.loads(pickle.dumps((function, item)))
            result: R = pickle.loads(pickle.dumps(sent_function(sent)))
            return result

        yield from super().run(pickled, items, limit_s)


def workers(monkeypatch: pytest.MonkeyPatch) -> Executor:
    """Return an executor that reads records in ranges of three shards, however few there are."""
    for name in ("ALONE", "ALONE_REMOTE"):
        monkeypatch.setattr(record_ranges, name, 0)
    monkeypatch.setattr(record_ranges, "RANGE_SHARDS", 3)
    return OtherProcess()


@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=SHARDS))
def test_states_are_those_of_what_was_done_to_the_records(
    kinds: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = made(tmp_path_factory.mktemp("out"), kinds)
    expected = record_digests.read(output, len(kinds))
    with pytest.MonkeyPatch.context() as patch:
        alone = record_ranges.states(output, expected)
        executor = workers(patch)
        by_workers = record_ranges.states(output, expected, lambda: executor)
    for found in (alone, by_workers):
        assert found.recorded.tolist() == [kind not in ("missing", "never written") for kind in kinds]
        assert found.damaged.tolist() == [kind in DAMAGED for kind in kinds]


def test_few_records_start_no_executor(tmp_path: Path) -> None:
    def start() -> Executor:
        raise AssertionError("started")

    output = made(tmp_path, ["right"] * SHARDS)
    expected = record_digests.read(output, SHARDS)
    assert not record_ranges.states(output, expected, start).damaged.any()
    assert len(list(record_ranges.summaries(output, SHARDS, 2, start))) == 1


def test_driver_decides_where_a_worker_sees_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = made(tmp_path, ["right"] * SHARDS)
    executor = workers(monkeypatch)
    monkeypatch.setattr(record_ranges, "_unless_whole", sees_nothing)
    assert not record_ranges.states(output, record_digests.read(output, SHARDS), lambda: executor).damaged.any()


def test_summaries_by_workers_are_those_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = made(tmp_path, ["right"] * SHARDS)
    (alone,) = record_ranges.summaries(output, SHARDS, 2)
    executor = workers(monkeypatch)
    parts = list(record_ranges.summaries(output, SHARDS, 2, lambda: executor))
    assert [part.start for part in parts] == [0, 3, 6, 9]
    total = sum(range(SHARDS))
    assert alone.sums == (total, (2**70 * total, -total), (total, SHARDS))
    assert reduce(TrainSums.plus, [part.sums for part in parts]) == alone.sums
    assert np.concatenate([part.digests for part in parts]).tolist() == alone.digests.tolist()
    for name in ("shard", "recording", "status", "decoded_frames", "sequences_written"):
        joined = np.concatenate([getattr(part.outcomes, name) for part in parts])
        assert joined.tolist() == getattr(alone.outcomes, name).tolist()


def test_summary_of_a_damaged_or_missing_record_is_an_error(tmp_path: Path) -> None:
    output = made(tmp_path, ["right", "changed"])
    with pytest.raises(PipelineError, match=r"00000001\.json is damaged"):
        list(record_ranges.summaries(output, 2, 2))
    output.shard_record(1).unlink()
    with pytest.raises(FileNotFoundError, match=r"00000001\.json"):
        list(record_ranges.summaries(output, 2, 2))


@settings(max_examples=10)
@given(
    drawn=st.lists(
        st.tuples(st.sampled_from(["ok", "short", "filtered", "failed"]), st.sampled_from(["", "a", "b"])),
        min_size=2,
        max_size=6,
    ),
    random=st.randoms(use_true_random=False),
)
def test_ledger_does_not_depend_on_the_order_of_shards(drawn: list[tuple[str, str]], random: object) -> None:
    table = make_manifest([make_probe("de/a/long.wav"), make_probe("en/b/long.wav")], CONFIG)
    written = [
        ShardRecord.model_validate(
            {
                **record(index).model_dump(),
                "outcomes": [
                    {
                        "recording": 0,
                        "status": status,
                        "reason": reason,
                        "decoded_frames": index,
                        "sequences_written": 1,
                    }
                ],
            }
        )
        for index, (status, reason) in enumerate(drawn)
    ]
    in_order = ledger_of(table, [Outcomes.of(written)], CONFIG)
    parts = [Outcomes.of([each]) for each in written]
    random.shuffle(parts)
    assert ledger_of(table, parts, CONFIG).equals(in_order)
    worst = max(["ok", "short", "filtered", "failed"].index(status) for status, _ in drawn)
    reasons = [reason for status, reason in drawn if ["ok", "short", "filtered", "failed"].index(status) == worst]
    # the first shard with the worst status gives the reason; of shards that are all right, the last that notes one
    expected = reasons[0] if worst else next((reason for reason in reversed(reasons) if reason), "")
    assert in_order["reason"][0] == expected
    assert in_order["sequences_written"][0] == len(drawn)


def test_memory_is_some_bytes_per_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = 50_000
    monkeypatch.setattr(record_digests, "BLOCK_BYTES", 2**14)
    monkeypatch.setattr(record_digests, "LINES_AT_ONCE", 2**9)
    output = OutputFolder.at(str(tmp_path))
    output.shards.mkdir()
    tracemalloc.start()
    try:
        written = RecordDigests.none(shards)
        written.listed[:] = True
        record_digests.write(output, written)
        found = record_digests.read(output, shards)
        record_digests.release(output, np.arange(0, shards, 2))
        left = record_digests.read(output, shards)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.listed.all()
    assert np.flatnonzero(left.listed).tolist() == list(range(1, shards, 2))
    # three times 17 bytes per shard, the shards to release, and blocks of the file; a digest as a str takes 81 alone
    assert peak_bytes < shards * (3 * 17 + 4) + 2**19
