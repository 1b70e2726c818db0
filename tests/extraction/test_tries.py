"""A task that is tried again: what an earlier try has finished is passed over, what has to be replaced is not."""

from pathlib import Path

import pytest

from pipeline.extraction.segments import PendingTask, Task
from pipeline.extraction.task import ShardSummary, run_task
from pipeline.store import feature_store
from tests.conftest import make_corpus
from tests.extraction.test_task import SPEAKERS, Work, prepared
from tests.support.segments import opened_files


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return prepared(make_corpus(tmp_path / "corpus", SPEAKERS), tmp_path / "out")


def run(work: Work, task: Task) -> list[ShardSummary]:
    return run_task(task, out=str(work.output.root), config=work.plan.config)


def test_second_try_reads_only_the_recordings_of_shards_that_are_not_finished(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(tmp_path / "corpus", tmp_path / "whole")
    broken = work.plan[0].segments[0]
    Path(broken.source.container).write_bytes(b"")
    whole.extract()
    first, second = work.extract(0, 1)
    opened = opened_files(monkeypatch)
    summaries = run(work, Task(tuple(work.plan)))
    rest = {segment.source.container for shard in list(work.plan)[2:] for segment in shard.segments}
    assert set(opened) == rest
    for before, after in zip((first, second), summaries, strict=False):
        assert (after.index, after.sequences, after.failures) == (before.index, before.sequences, before.failures)
        assert (after.busy_s, after.bytes_read, after.bytes_written) == (0.0, 0, 0)
    assert first.failed == 1
    assert [summary.index for summary in summaries] == list(range(len(work.plan)))
    assert work.records() == whole.records()


def test_shard_of_an_earlier_run_is_replaced(work: Work) -> None:
    work.extract()
    before = feature_store.checksums(work.output, 1)
    place = feature_store.objects(work.output, 1)["valid"]
    place.write_bytes(b"damaged")
    assert [summary.busy_s for summary in run(work, Task((work.plan[1],)))] == [0.0]
    work.output.shard_record(1).unlink()
    (summary,) = run(work, Task((work.plan[1],), frozenset({1})))
    assert summary.busy_s > 0
    assert feature_store.checksums(work.output, 1) == before
    (again,) = run(work, Task((work.plan[1],), frozenset({1})))
    assert again.busy_s > 0


def test_finished_shard_with_a_recording_that_must_fail_is_written_again(work: Work) -> None:
    work.extract()
    guilty = {work.plan[0].segments[0].recording: "crash: the process that reads it dies"}
    task = work.plan.task(PendingTask((0,), failures=guilty))
    (summary,) = run(work, task)
    assert summary.failures == {"crash: the process that reads it dies": 1}
    (again,) = run(work, task)
    assert (again.busy_s, again.failures) == (0.0, summary.failures)
    assert work.plan.task(PendingTask((0,), frozenset({0}), guilty)).replaced == {0}
