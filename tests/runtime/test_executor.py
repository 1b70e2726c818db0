"""Executors: the same results in this process and on a real Dask cluster, bounded submission, errors, dead workers."""

import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import dask
import psutil
import pytest
from dask.system import cpu_count
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.runtime import nanny, overdue
from pipeline.runtime.dask_executor import TASKS_PER_THREAD, DaskExecutor
from pipeline.runtime.executor import THIS_PROCESS, Done, Executor, Lost, SerialExecutor, completed, tried_alone
from pipeline.runtime.profiles import ClusterProfile
from tests.support.poison import DeadlyExecutor

pytestmark = pytest.mark.slow

WORKERS = 2

T = TypeVar("T")
R = TypeVar("R")


def profile(memory_limit: str | int = "1GiB") -> ClusterProfile:
    return ClusterProfile(
        kwargs={
            "threads_per_worker": 1,
            "memory_limit": memory_limit,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
        }
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[DaskExecutor]:
    """Two worker processes for all tests of this module."""
    with DaskExecutor(profile(), WORKERS) as executor:
        yield executor


@pytest.fixture
def serial() -> SerialExecutor:
    return SerialExecutor()


@pytest.fixture(params=["serial", "cluster"])
def executor(request: pytest.FixtureRequest) -> Executor:
    """Each executor."""
    found: Executor = request.getfixturevalue(request.param)
    return found


def results_of(executor: Executor, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    return [done.result for done in completed(executor.run(function, items))]


def squared(number: int) -> int:
    return number**2


def add(number: int, *, to: int) -> int:
    return number + to


def fails_at_seven(number: int) -> int:
    if number == 7:
        raise ValueError("seven is no number")
    return number


def refuses(number: int) -> int:
    raise PipelineError(f"shard {number} cannot be written; make room")


def process(_: int) -> int:
    return os.getpid()


def setting(name: str) -> str | None:
    return os.environ.get(name)


def interrupt_is_blocked(_: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def modules_after_loading(name: str) -> list[str]:
    importlib.import_module(name)
    return sorted(sys.modules)


def own_process() -> int:
    return os.getpid()


def always_fails() -> int:
    raise ValueError("no such thing")


def dies_at_two(number: int, *, seen: Path) -> int:
    if number == 2:
        with seen.open("a") as file:
            file.write("x")
        os._exit(1)
    return number


def hangs_at_two(number: int) -> int:
    while number == 2:
        time.sleep(1)
    return number


def fills_memory_at_two(number: int) -> int:
    if number == 2:
        full = [bytes([1]) * 2**27 for _ in range(9)]
        time.sleep(10**6 * len(full))
    return number


def test_results_are_those_of_the_function(executor: Executor) -> None:
    assert sorted(results_of(executor, squared, range(50))) == [n**2 for n in range(50)]


def test_partial_functions_run(executor: Executor) -> None:
    assert sorted(results_of(executor, partial(add, to=10), [1, 2, 3])) == [11, 12, 13]


def test_nothing_to_do_gives_nothing(executor: Executor) -> None:
    assert results_of(executor, squared, []) == []


def test_equal_items_are_run_each(executor: Executor) -> None:
    assert results_of(executor, squared, [3, 3, 3]) == [9, 9, 9]


def test_error_of_a_task_is_raised_and_the_executor_goes_on(executor: Executor) -> None:
    with pytest.raises(ValueError, match="seven is no number"):
        results_of(executor, fails_at_seven, range(20))
    assert sorted(results_of(executor, squared, range(3))) == [0, 1, 4]


def test_pipeline_error_of_a_task_keeps_its_message(executor: Executor) -> None:
    with pytest.raises(PipelineError) as error:
        results_of(executor, refuses, [3])
    assert str(error.value) == "shard 3 cannot be written; make room"


def test_error_of_the_items_is_raised(executor: Executor) -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise KeyError("no more shards")

    with pytest.raises(KeyError, match="no more shards"):
        results_of(executor, squared, items())


def test_run_that_is_left_early_leaves_the_executor_free(executor: Executor) -> None:
    results = executor.run(squared, range(100))
    assert isinstance(next(results), Done)
    results.close()
    assert sorted(results_of(executor, squared, range(3))) == [0, 1, 4]


def test_items_are_taken_only_as_they_are_needed(executor: Executor) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(60):
            taken += 1
            yield number

    results = executor.run(squared, items())
    assert taken == 0
    ahead = executor.workers * TASKS_PER_THREAD
    for received, _ in enumerate(results, start=1):
        assert taken <= received + ahead
    assert taken == received == 60


def test_serial_results_come_in_the_order_of_the_items(serial: SerialExecutor) -> None:
    assert results_of(serial, squared, [3, 1, 2]) == [9, 1, 4]


def test_serial_runs_in_this_process_with_its_memory_and_no_dashboard(serial: SerialExecutor) -> None:
    assert set(results_of(serial, process, range(3))) == {os.getpid()}
    assert (serial.workers, serial.monitor.dashboard) == (1, None)
    assert 2**20 < serial.worker_memory_bytes() <= psutil.virtual_memory().total


def test_tasks_run_in_the_workers(cluster: DaskExecutor) -> None:
    processes = set(results_of(cluster, process, range(40)))
    assert os.getpid() not in processes
    assert len(processes) <= WORKERS == cluster.workers


def test_results_come_with_the_worker_that_they_are_of(cluster: DaskExecutor, serial: SerialExecutor) -> None:
    asked = cluster.on_each_worker(own_process)
    for done in completed(cluster.run(process, range(20))):
        assert asked[done.worker] == done.result
    assert [done.worker for done in completed(serial.run(squared, range(2)))] == [THIS_PROCESS] * 2


def test_each_worker_is_asked_once_and_answers_with_its_errors(cluster: DaskExecutor, serial: SerialExecutor) -> None:
    processes = cluster.on_each_worker(own_process)
    assert len(set(processes.values())) == len(processes) == WORKERS
    assert all(address.startswith("tcp://127.0.0.1:") for address in processes)
    errors = cluster.on_each_worker(always_fails)
    assert errors.keys() == processes.keys()
    assert {repr(error) for error in errors.values()} == {"ValueError('no such thing')"}
    assert serial.on_each_worker(own_process) == {THIS_PROCESS: os.getpid()}


def test_memory_limit_is_that_of_the_profile(cluster: DaskExecutor) -> None:
    assert cluster.worker_memory_bytes() == 2**30


def test_dashboard_has_an_address_on_loopback(cluster: DaskExecutor) -> None:
    assert cluster.monitor.dashboard is not None
    assert cluster.monitor.dashboard.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"])
def test_numerical_libraries_have_one_thread_in_workers(cluster: DaskExecutor, name: str) -> None:
    assert set(results_of(cluster, setting, [name] * 10)) == {"1"}


def test_memory_is_not_given_back_at_once_in_workers(cluster: DaskExecutor) -> None:
    assert results_of(cluster, setting, ["MALLOC_TRIM_THRESHOLD_"]) == [str(2**28)]


def test_workers_leave_interrupts_to_the_driver(cluster: DaskExecutor) -> None:
    assert set(results_of(cluster, interrupt_is_blocked, range(10))) == {True}
    assert not interrupt_is_blocked(0)


def test_workers_never_load_tensorflow_or_the_models(cluster: DaskExecutor) -> None:
    for task in [
        "pipeline.extraction.task",
        "pipeline.corpus.scan",
        "pipeline.extraction.verify",
        "pipeline.demo.synthesise",
    ]:
        (loaded,) = results_of(cluster, modules_after_loading, [task])
        assert task in loaded
        assert {name.partition(".")[0] for name in loaded}.isdisjoint({"tensorflow", "keras", "model"})


def test_closed_executor_starts_again(tmp_path: Path) -> None:
    executor = DaskExecutor(profile(memory_limit=0), 1)
    first = set(results_of(executor, process, range(3)))
    executor.close()
    second = set(results_of(executor, process, range(3)))
    assert executor.worker_memory_bytes() is None
    executor.close()
    executor.close()
    assert len(first) == len(second) == 1
    assert first != second


def test_executor_that_never_ran_closes() -> None:
    with DaskExecutor(profile(), None) as executor:
        assert executor.workers == cpu_count()
    executor.close()


@pytest.fixture
def two_attempts() -> Iterator[DaskExecutor]:
    """A cluster that gives up a task when its second worker dies."""
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}), DaskExecutor(profile(), WORKERS) as executor:
        yield executor


def test_task_that_kills_its_workers_is_lost_and_the_others_are_done(
    two_attempts: DaskExecutor, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"

    def items() -> Iterator[int]:
        yield 2
        # Dask also blames the tasks that share a dying worker: these come after its last death
        while not seen.exists() or seen.read_text() != "xx":
            time.sleep(0.02)
        yield from range(3, 20)

    outcomes = list(two_attempts.run(partial(dies_at_two, seen=seen), items()))
    assert [outcome for outcome in outcomes if isinstance(outcome, Lost)] == [Lost(2, "crash", workers_lost=2)]
    done = [outcome.result for outcome in outcomes if isinstance(outcome, Done)]
    assert sorted(done) == list(range(3, 20))


def test_overdue_task_is_lost_and_tasks_that_waited_for_a_worker_are_done(
    cluster: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overdue, "LOOK_EVERY_S", 0.1)
    outcomes = list(cluster.run(hangs_at_two, range(30), lambda number: 1.0 if number == 2 else 600.0))
    assert [outcome for outcome in outcomes if isinstance(outcome, Lost)] == [Lost(2, "timeout", workers_lost=1)]
    assert sorted(o.result for o in outcomes if isinstance(o, Done)) == [n for n in range(30) if n != 2]
    assert Lost(2, "timeout", 1).failure(61.4) == "timeout: reading it takes longer than 61 s"


def test_task_whose_workers_run_out_of_memory_is_told_from_a_crash(cluster: DaskExecutor) -> None:
    (lost,) = cluster.run(fills_memory_at_two, [2], lambda _: 600.0)
    assert lost == Lost(2, "memory", workers_lost=2)
    assert re.fullmatch(
        r"a worker process used .* of its 1\.00 GiB of memory and was ended", nanny.RestartingNanny.last_death
    )


@given(guilty=st.sets(st.integers(0, 19), max_size=5), beside=st.integers(1, 30), backwards=st.booleans())
def test_what_is_lost_alone_is_what_is_guilty(guilty: set[int], beside: int, backwards: bool) -> None:
    executor = DeadlyExecutor(lambda item: item in guilty, beside, backwards=backwards)
    outcomes = list(tried_alone(executor, squared, range(20), lambda _: 100.0))
    assert {outcome.item for outcome in outcomes if isinstance(outcome, Lost)} == guilty
    done = sorted(outcome.result for outcome in outcomes if isinstance(outcome, Done))
    assert done == [number**2 for number in range(20) if number not in guilty]


def test_lost_task_is_an_error_with_a_remedy_where_its_result_is_needed() -> None:
    def outcomes() -> Generator[Done[int] | Lost[str], None, None]:
        nonlocal left
        try:
            yield Done(1, THIS_PROCESS)
            yield Lost("shards 2 and 3", "crash", workers_lost=4)
        finally:
            left = True

    left = False
    done = completed(outcomes())
    assert next(done) == Done(1, THIS_PROCESS)
    with pytest.raises(PipelineError) as error:
        next(done)
    assert str(error.value) == (
        "shards 2 and 3 killed 4 workers in a row, probably by running out of memory; give the workers more memory or "
        "make store.chunks_per_shard smaller, then run the same command again: finished shards are kept"
    )
    assert left, "the run of the other tasks goes on"


def refusal(profile: ClusterProfile, workers: int | None = None) -> PipelineError:
    with DaskExecutor(profile, workers) as executor, pytest.raises(PipelineError) as error:
        results_of(executor, squared, range(3))
    assert "\n" not in str(error.value)
    return error.value


def test_number_of_workers_of_a_cluster_that_runs_already_is_refused() -> None:
    error = refusal(ClusterProfile(address="tcp://127.0.0.1:1"), 2)
    assert str(error) == "--workers 2: the cluster runs already, with the workers that it has"
    assert error.exit_code == 2
