"""Counters: exact counts and speeds from events, in bounded size."""

import itertools
import json
import math
from collections import Counter
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.monitoring import counters, stage_counters
from pipeline.monitoring.counters import (
    MAX_POINTS,
    MAX_REASONS,
    MAX_SLOWEST,
    MAX_WORKERS,
    OTHER,
    ExtractionCounters,
)
from pipeline.monitoring.events import (
    BeginEvent,
    ClusterEvent,
    EndEvent,
    ShardEvent,
    SlowRecording,
    from_json,
    to_json,
)
from pipeline.monitoring.monitor import Monitor
from pipeline.monitoring.stage_counters import StageCounters

FAST = "tcp://10.0.0.1:1"
SLOW = "tcp://10.0.0.2:1"


def begun(shards: int = 100, done: int = 0, time_s: float = 1000.0) -> ExtractionCounters:
    return ExtractionCounters.begun(BeginEvent(stage="extract", shards=shards, done=done), time_s)


def shard(*, audio_s: float = 60.0, busy_s: float = 1.0, worker: str = FAST, **more: Any) -> ShardEvent:
    return ShardEvent(audio_s=audio_s, busy_s=busy_s, worker=worker, **more)


def test_events_are_the_same_after_json() -> None:
    slowest = (SlowRecording("de/a/1.flac", 0.5, 4.0),)
    events = [
        BeginEvent(stage="extract", shards=10, done=2),
        shard(failures=Counter({"bad": 2}), slowest=slowest, bytes_read=100, bytes_written=200),
        shard(),
        ClusterEvent(workers=2, memory_bytes=10**12),
        EndEvent(),
    ]
    assert from_json(json.loads(json.dumps(to_json(events)))) == events


@pytest.mark.parametrize("event", [{"kind": "start"}, {"kind": "end", "time_s": 0.0}, {"kind": "begin", "shards": 1}])
def test_unknown_events_are_refused(event: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        from_json([event])


def test_nothing_has_begun_at_first() -> None:
    seen = ExtractionCounters().snapshot(1e9)
    assert (seen["status"], seen["stage"], seen["elapsed_s"], seen["left_s"]) == ("idle", None, 0.0, None)
    assert seen["shards"] == {"total": 0, "done": 0, "left": 0}


def test_events_before_the_beginning_count_nothing() -> None:
    found = ExtractionCounters()
    found.add(shard(), 5.0)
    found.add(EndEvent(), 6.0)
    assert found == ExtractionCounters()


def test_counts_are_those_of_the_events() -> None:
    found = begun(shards=10, done=4)
    found.add(shard(audio_s=3600, busy_s=9.0, bytes_read=5, bytes_written=7, failures={"bad": 2}), 1010.0)
    found.add(shard(audio_s=1800, busy_s=3.0, bytes_read=1, bytes_written=1, worker=SLOW), 1020.0)
    seen = found.snapshot(1030.0)
    assert seen["status"] == "running"
    assert seen["shards"] == {"total": 10, "done": 6, "left": 4}
    assert (seen["shards_before"], seen["audio_s"], seen["failed"]) == (4, 5400.0, 2)
    assert (seen["bytes_read"], seen["bytes_written"]) == (6, 8)
    assert (seen["elapsed_s"], seen["since_shard_s"]) == (30.0, 10.0)
    assert seen["workers"] == {
        FAST: {"shards": 1, "audio_s": 3600.0, "busy_s": 9.0, "since_s": 20.0},
        SLOW: {"shards": 1, "audio_s": 1800.0, "busy_s": 3.0, "since_s": 10.0},
    }
    assert seen["work_s_per_audio_s"] == pytest.approx(12 / 5400)


def test_snapshot_is_json() -> None:
    found = begun()
    found.add(shard(failures={"bad": 1}, slowest=(("a", 1.0, 2.0),)), 1001.0)
    seen = found.snapshot(1002.0)
    assert json.loads(json.dumps(seen, allow_nan=False)) == json.loads(json.dumps(seen))


def test_speed_of_now_is_over_a_window_and_overall_is_not() -> None:
    found = begun()
    for second in range(1, 101):  # a minute of audio a second
        found.add(shard(audio_s=60), 1000.0 + second)
    for second in range(101, 201):  # then two
        found.add(shard(audio_s=120), 1000.0 + second)
    assert found.audio_h_per_h_now(1200.0) == pytest.approx(120)
    assert found.audio_h_per_h(1200.0) == pytest.approx(90)


def test_window_has_several_shards_of_each_worker() -> None:
    found = begun()
    for start in range(5):  # two workers in step, a shard of 50 s each: a window of 30 s would see 0 or 2 shards
        for worker in (FAST, SLOW):
            found.add(shard(audio_s=500, busy_s=50.0, worker=worker), 1050.0 + 50 * start)
    assert found.window(1250.0) == (250.0, 10, 5000.0)
    assert found.audio_h_per_h_now(1250.0) == pytest.approx(20)


def test_speed_of_now_falls_when_nothing_comes() -> None:
    found = begun()
    found.add(shard(audio_s=60), 1010.0)
    assert found.audio_h_per_h_now(1010.0) == pytest.approx(6)
    assert found.audio_h_per_h_now(1020.0) == pytest.approx(3)
    assert found.audio_h_per_h_now(1100.0) == 0
    assert found.audio_h_per_h(1100.0) == pytest.approx(0.6)


def test_time_left_is_at_the_speed_of_now() -> None:
    found = begun(shards=1000, done=100)
    assert found.left_s(1005.0) is None
    for second in range(1, 101):
        found.add(shard(), 1000.0 + second)
    assert found.left_s(1100.0) == pytest.approx(800)
    assert found.snapshot(1100.0)["left_s"] == pytest.approx(800)
    assert found.left_s(1200.0) is None  # nothing has come for 100 s: nothing can be said


def test_time_left_of_a_stage_without_audio_is_at_the_speed_of_now() -> None:
    found = StageCounters(total=100, started_s=50.0)
    for second in range(1, 21):
        found.advance(50.0 + second, 2, failed=second % 2)
    assert (found.done, found.left, found.failed) == (40, 60, 10)
    assert found.left_s(70.0) == pytest.approx(30)
    assert found.audio_h_per_h_now(70.0) == 0


def test_end_stops_the_time() -> None:
    found = begun(shards=1)
    found.add(shard(), 1010.0)
    found.add(EndEvent(), 1020.0)
    seen = found.snapshot(5000.0)
    assert (seen["status"], seen["elapsed_s"]) == ("finished", 20.0)
    assert (seen["left_s"], seen["audio_h_per_h_now"]) == (None, None)
    assert seen["audio_h_per_h"] == pytest.approx(3)
    before = len(found.points)
    found.add(ClusterEvent(workers=3, memory_bytes=1), 1030.0)
    found.add(shard(), 1040.0)
    assert (found.done, len(found.points), found.snapshot(1e5)["elapsed_s"]) == (1, before, 20.0)


def test_end_with_shards_left_is_a_stop() -> None:
    found = begun(shards=2)
    found.add(EndEvent(), 1001.0)
    assert found.status == "stopped"


def test_second_beginning_resets_all_but_the_cluster() -> None:
    monitor = Monitor()
    monitor.report(BeginEvent(stage="extract", shards=1, done=0), ClusterEvent(workers=3, memory_bytes=30))
    monitor.report(shard(failures={"bad": 1}), EndEvent(), BeginEvent(stage="verify", shards=5, done=1))
    found = monitor.counters
    seen = found.snapshot(found.started_s)
    assert (seen["stage"], seen["status"], seen["failures"], seen["workers"]) == ("verify", "running", [], {})
    assert seen["shards"] == {"total": 5, "done": 1, "left": 4}
    assert (found.points[0].workers, len(found.points)) == (3, 1)


def test_time_does_not_go_backwards() -> None:
    found = begun()
    found.add(shard(), 1010.0)
    found.add(shard(worker=SLOW), 1005.0)
    seen = found.snapshot(1000.0)
    assert (seen["elapsed_s"], seen["since_shard_s"]) == (10.0, 0.0)
    assert [point.time_s for point in found.points] == [0.0, 10.0]


def test_reasons_that_differ_in_numbers_are_one_kind() -> None:
    found = begun()
    found.add(shard(failures={"ends after 3.2 s": 1, "ends after 17 s": 2, "no audio": 4}), 1001.0)
    assert found.snapshot(1001.0)["failures"] == [("no audio", 4), ("ends after … s", 3)]


def test_most_kinds_of_reasons_are_counted_and_the_rest_together() -> None:
    found = begun()
    for number in range(MAX_REASONS + 5):
        found.add(shard(failures={"x" * (number + 1): number + 1}), 1001.0)
    found.add(shard(failures={"x": 1}), 1001.0)
    seen = found.snapshot(1001.0)["failures"]
    assert len(seen) == MAX_REASONS + 1
    assert seen[0] == ("x" * 20, 20)
    assert seen[-1] == (OTHER, 21 + 22 + 23 + 24 + 25)
    assert ("x", 2) in seen


def test_slowest_cost_most_beyond_their_length() -> None:
    found = begun()
    rows = [("long", 30.0, 36_000.0), ("short", 0.01, 0.1), ("slow", 5.0, 60.0), ("usual", 0.06, 60.0)]
    found.add(shard(audio_s=36_000.0, busy_s=36.0, slowest=tuple(rows)), 1001.0)
    assert [name for name, *_ in found.slowest] == ["slow", "short", "usual", "long"]


def test_slowest_are_ranked_among_all_shards_and_counted_once() -> None:
    found = begun()
    for number in range(40):
        found.add(shard(slowest=((f"r{number}", float(number), 1.0), ("same", 100.0 - number, 1.0))), 1001.0)
    names = [name for name, *_ in found.slowest]
    assert names == ["same", *(f"r{number}" for number in range(39, 39 - MAX_SLOWEST + 1, -1))]
    assert found.slowest[0] == ("same", 100.0, 1.0)


def test_series_has_a_point_an_interval_and_one_for_the_end() -> None:
    found = begun(shards=8)
    found.add(ClusterEvent(workers=2, memory_bytes=500), 1000.5)
    for tenth in range(1, 9):
        found.add(shard(audio_s=3600, failures={"bad": 1}), 1000.0 + 0.3 * tenth)
    found.add(EndEvent(), 1002.5)
    series = found.series()
    assert list(series.columns) == [
        "time_s", "shards_done", "audio_h", "audio_h_per_h", "recordings_failed", "workers", "memory_bytes",
    ]  # fmt: skip
    assert series["time_s"].tolist() == pytest.approx([0.0, 1.2, 2.4, 2.5])
    assert series["shards_done"].tolist() == [0, 4, 8, 8]
    assert series["audio_h"].tolist() == [0.0, 4.0, 8.0, 8.0]
    assert series["audio_h_per_h"].tolist() == pytest.approx([0, 12_000, 12_000, 8 / 2.5 * 3600])
    assert series["recordings_failed"].tolist() == [0, 4, 8, 8]
    assert series["workers"].isna().tolist() == [True, False, False, False]
    assert found.series_csv().decode().splitlines() == [
        "time_s,shards_done,audio_h,audio_h_per_h,recordings_failed,workers,memory_bytes",
        "0,0,0,0,0,,",
        "1.2,4,4,12000,4,2,500",
        "2.4,8,8,12000,8,2,500",
        "2.5,8,8,11520,8,2,500",
    ]


def test_series_is_thinned_evenly() -> None:
    found = begun(shards=10**6)
    for second in range(1, 5001):
        found.add(shard(), 1000.0 + second)
    times = [point.time_s for point in found.points]
    assert MAX_POINTS // 2 <= len(times) <= MAX_POINTS
    assert {later - sooner for sooner, later in itertools.pairwise(times)} == {8.0}
    assert times[0] == 0
    assert found.interval_s == 8.0
    assert all(point.shards_done == point.time_s for point in found.points)


def test_workers_beyond_the_most_are_counted_together() -> None:
    found = begun(shards=10**6)
    for number in range(MAX_WORKERS + 10):
        found.add(shard(worker=f"tcp://10.0.0.1:{number}"), 1000.0 + number)
    assert len(found.workers) == MAX_WORKERS
    assert "tcp://10.0.0.1:9" not in found.workers
    assert "tcp://10.0.0.1:10" in found.workers
    assert (found.other_workers.shards, found.other_workers.audio_s) == (10, 600.0)


def test_sizes_do_not_depend_on_the_number_of_shards() -> None:
    found = begun(shards=10**6)
    sizes = []
    for number in range(30_000):
        event = shard(
            worker=f"tcp://{number % 3000}",
            failures={chr(97 + number % 26) * (1 + number % 11): 1},
            slowest=((f"r{number}", 1.0, float(number % 17)),),
        )
        found.add(event, 1000.0 + number / 7)
        if number % 10_000 == 9_999:
            sizes.append(len(found._marks) + len(found.workers) + len(found.failures) + len(found.slowest))
    assert sizes[0] == sizes[1] == sizes[2]
    assert len(found._marks) <= stage_counters.WINDOW_S[1] / stage_counters.MARK_EVERY_S + 2


shards = st.builds(
    ShardEvent,
    audio_s=st.integers(0, 10**4).map(float),
    busy_s=st.integers(0, 10**3).map(float),
    worker=st.sampled_from([f"tcp://10.0.0.{i}:1" for i in range(9)]),
    failures=st.dictionaries(st.text(max_size=3), st.integers(1, 9), max_size=30),
    slowest=st.lists(st.tuples(st.text(max_size=2), st.floats(0, 99), st.floats(0, 99)), max_size=12).map(tuple),
    bytes_read=st.integers(0, 10**12),
    bytes_written=st.integers(0, 10**12),
)


@given(st.lists(st.tuples(shards, st.floats(0, 10**6)), max_size=60), st.floats(0, 10**6))
def test_sums_are_those_of_the_events_and_sizes_are_bounded(
    reports: list[tuple[ShardEvent, float]], now_s: float
) -> None:
    events = [event for event, _ in reports]
    found = begun(shards=50, done=3, time_s=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counters, "MAX_WORKERS", 4)
        patch.setattr(counters, "MAX_POINTS", 8)
        for event, time_s in reports:
            found.add(event, time_s)
    workers = [*found.workers.values(), found.other_workers]
    assert found.done == 3 + len(events) == 3 + sum(worker.shards for worker in workers)
    assert found.audio_s == sum(event.audio_s for event in events) == sum(worker.audio_s for worker in workers)
    assert found.busy_s == sum(event.busy_s for event in events) == sum(worker.busy_s for worker in workers)
    assert found.failed == sum(sum(event.failures.values()) for event in events)
    assert found.bytes_read == sum(event.bytes_read for event in events)
    assert len(found.failures) <= MAX_REASONS + 1
    assert len(found.workers) <= 4
    assert len(found.slowest) <= MAX_SLOWEST
    assert len(found.points) <= 8
    times = [point.time_s for point in found.points]
    assert times == sorted(times)
    seen = found.snapshot(now_s)
    assert seen["shards"]["left"] == max(0, 50 - found.done)
    for name in ("elapsed_s", "audio_h_per_h", "audio_h_per_h_now"):
        assert math.isfinite(seen[name])
        assert seen[name] >= 0
    json.dumps(seen, allow_nan=False)
