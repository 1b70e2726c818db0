"""The lock at a URL: one run at a time, and none is kept out for long by a dead one."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from pipeline import lease, run_lock
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from tests.support.deadline import DEADLINE_S


@pytest.fixture
def output(memory_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[OutputFolder]:
    """An output folder in memory, whose file system creates files as atomically as an object store."""
    pipe_file, lock = MemoryFileSystem.pipe_file, threading.Lock()

    def atomic(*arguments: Any, **options: Any) -> None:
        with lock:
            pipe_file(*arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", atomic)
    yield OutputFolder.at(memory_url)
    assert not fsspec.filesystem("memory").glob("/pipeline-tests/run.lock*")


def leave(path: UPath, process: int, machine: str = "elsewhere", age_s: float = 0) -> lease.Holder:
    """Write the lock of a process."""
    then = datetime.now(UTC) - timedelta(seconds=age_s)
    holder = lease.Holder(token="t", machine=machine, host="node7", process=process, started=then, renewed=then)
    path.write_bytes(holder.model_dump_json().encode())
    return holder


def dead_process() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def wait_for(condition: Any) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_second_run_is_refused_with_the_first_one(output: OutputFolder) -> None:
    with run_lock.held(output), pytest.raises(run_lock.BusyError) as error, run_lock.held(output):
        pass
    assert str(error.value).startswith(f"--out {output.root}: another run is at work here (process ")
    assert "if it was killed, it keeps others out for 5 minutes" in str(error.value)
    assert "\n" not in str(error.value)
    with run_lock.held(output):
        assert output.lock.exists()


def test_lock_of_a_process_that_ended_here_is_taken_over_at_once(output: OutputFolder) -> None:
    leave(output.lock, dead_process(), lease.this_machine())
    with run_lock.held(output), pytest.raises(run_lock.BusyError), run_lock.held(output):
        pass


def test_lock_of_another_machine_is_taken_over_when_it_has_expired(output: OutputFolder) -> None:
    leave(output.lock, dead_process(), age_s=lease.EXPIRY_S - 30)
    with pytest.raises(run_lock.BusyError, match=r"\(process \d+ on node7, since 20"), run_lock.held(output):
        pass
    leave(output.lock, dead_process(), age_s=lease.EXPIRY_S + 1)
    with run_lock.held(output):
        assert output.lock.exists()


def test_claim_of_a_killed_process_is_taken_over_too(output: OutputFolder) -> None:
    leave(output.lock, 1, age_s=lease.EXPIRY_S + 1)
    leave(output.lock.with_name("run.lock.t"), dead_process(), lease.this_machine())
    with run_lock.held(output):
        assert output.lock.exists()


def test_of_many_that_find_a_dead_lock_one_is_at_work_at_a_time(output: OutputFolder) -> None:
    inside, finished = [0], []

    def work() -> None:
        while len(finished) < 50:
            with suppress(run_lock.BusyError), run_lock.held(output):
                inside[0] += 1
                finished.append(inside[0])
                inside[0] -= 1
                leave(output.lock, 1, age_s=lease.EXPIRY_S + 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output.lock.unlink()
    assert set(finished) == {1}


def test_lock_is_renewed_while_a_run_is_at_work(output: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    with run_lock.held(output):
        first = output.lock.read_bytes()
        wait_for(lambda: output.lock.read_bytes() not in (first, b""))
        holder = lease.Holder.model_validate_json(output.lock.read_bytes())
        assert holder.renewed > holder.started


def test_run_whose_lock_was_taken_over_ends(
    output: OutputFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    monkeypatch.setattr(lease, "process_runs", lambda _: True)
    monkeypatch.setattr(lease.os, "kill", lambda *arguments: killed.append(arguments))
    with run_lock.held(output):
        other = leave(output.lock, 1)
        wait_for(lambda: killed)
    assert killed == [(lease.os.getpid(), lease.signal.SIGTERM)]
    assert f"another run took over: {other}" in caplog.text
    assert output.lock.read_bytes() == other.model_dump_json().encode()
    output.lock.unlink()


def test_answer_that_is_lost_leaves_the_lock_to_this_run(
    output: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe_file = MemoryFileSystem.pipe_file

    def unheard(*arguments: Any, **options: Any) -> None:
        pipe_file(*arguments, **options)
        raise FileExistsError("a second attempt found the object of the first")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", unheard)
    with run_lock.held(output), pytest.raises(run_lock.BusyError), run_lock.held(output):
        pass


def test_there_is_no_lock_where_nothing_can_be_created(output: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with run_lock.held(output), run_lock.held(output):
        assert not output.lock.exists()


def test_damaged_lock_is_named_with_the_remedy(output: OutputFolder) -> None:
    output.lock.write_bytes(b"")
    with pytest.raises(PipelineError, match=r"run\.lock is damaged .*; delete it if no run is"), run_lock.held(output):
        pass
    output.lock.unlink()
