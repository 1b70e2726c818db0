"""The size of tasks: seconds of work each, and smaller towards the end."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from pipeline.extraction.task import ShardSummary
from pipeline.extraction.task_size import TaskSize


def taking(*busy_s: float) -> list[ShardSummary]:
    return [ShardSummary(0, 1, {}, (), 0, 0, seconds) for seconds in busy_s]


def sizes(size: TaskSize, left: int) -> Iterator[int]:
    """Yield the sizes of all tasks."""
    while left:
        taken = min(size.shards(left), left)
        yield taken
        left -= taken


def test_tasks_become_smaller_towards_the_end() -> None:
    assert list(sizes(TaskSize(lambda: 2), 40)) == [4, 4, 4, 3, 3, 2, 2, 2, 2] + [1] * 14
    assert list(sizes(TaskSize(lambda: 20), 40)) == [1] * 40


def test_task_takes_some_seconds() -> None:
    size = TaskSize(lambda: 2)
    assert size.shards(1000) == 4
    size.add(taking(1.0, 3.0))
    assert size.shards(1000) == 2
    size.add(taking(0.0, 0.0))  # were there already
    assert size.shards(1000) == 2
    size.add(taking(*[0.1] * 998))
    assert size.shards(1000) == 39
    size.add(taking(1e9))
    assert size.shards(1000) == 1


def test_tasks_of_many_threads_are_longer() -> None:
    for threads, task_s in ((1, 4.0), (160, 4.0), (1000, 25.0), (4000, 100.0)):
        size = TaskSize(lambda: threads)  # noqa: B023 called in this round
        size.add(taking(0.5))
        assert size.shards(10**9) == 2 * task_s


def test_small_tasks_at_the_end_are_not_more_than_the_scheduler_can_give_out() -> None:
    size = TaskSize(lambda: 4000)
    size.add(taking(0.5))
    assert size.shards(1) == 40  # 20 s


@given(st.integers(0, 100), st.integers(1, 10_000), st.lists(st.floats(1e-6, 1e6), max_size=3))
def test_no_task_is_more_than_a_fair_share(threads: int, left: int, busy_s: list[float]) -> None:
    size = TaskSize(lambda: threads)
    size.add(taking(*busy_s))
    assert 1 <= size.shards(left) <= max(1, left // max(1, threads))
