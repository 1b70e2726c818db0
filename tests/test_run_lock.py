"""One run at a time in an output folder, and none that is kept out by one that was killed."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline import run_lock
from pipeline.errors import PipelineError, UsageError
from pipeline.outputs import OutputFolder
from pipeline.run import main

HOLD = """
import sys
from pipeline import run_lock
from pipeline.outputs import OutputFolder

with run_lock.held(OutputFolder.at(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder.at(str(tmp_path / "out"))


def test_second_run_is_refused_with_the_first_one_and_leaves_everything(output: OutputFolder) -> None:
    with run_lock.held(output):
        with pytest.raises(run_lock.BusyError) as error:
            main(["scan", "--corpus", "none", "--out", str(output.root)], standalone_mode=False)
        assert [path.name for path in output.root.iterdir()] == ["run.lock"]
    assert str(error.value).startswith(
        f"--out {output.root}: another run is at work here (process {os.getpid()} on {os.uname().nodename}, since 20"
    )
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 1
    assert list(output.root.iterdir()) == []


def test_commands_that_only_look_or_restore_a_model_are_not_kept_waiting(output: OutputFolder) -> None:
    with run_lock.held(output):
        with pytest.raises(UsageError, match="nothing has been run here yet"):
            main(["status", "--out", str(output.root)], standalone_mode=False)
        with pytest.raises(UsageError, match="registry: "):
            main(["rollback", "--out", str(output.root)], standalone_mode=False)


def test_killed_run_keeps_nobody_out(output: OutputFolder) -> None:
    command = [sys.executable, "-c", HOLD, str(output.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        with pytest.raises(run_lock.BusyError, match=rf"\(process {process.pid} on "), run_lock.held(output):
            pass
        process.kill()
    assert output.lock.exists()
    with run_lock.held(output):
        assert output.lock.read_text().startswith(f"process {os.getpid()} on ")
    assert not output.lock.exists()


def test_of_many_at_once_one_is_at_work_at_a_time(output: OutputFolder) -> None:
    inside, finished = [0], []

    def work() -> None:
        while len(finished) < 50:
            with suppress(run_lock.BusyError), run_lock.held(output):
                inside[0] += 1
                finished.append(inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(finished) == {1}
    assert not output.lock.exists()


def test_error_of_a_folder_that_cannot_be_made_is_left_to_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with run_lock.held(OutputFolder.at(str(tmp_path / "file" / "out"))):
        pass


@pytest.mark.parametrize("put", [lambda path: path.mkdir(), lambda path: path.symlink_to(path)])
def test_what_is_no_file_in_the_place_of_the_lock_is_named(output: OutputFolder, put: Callable[[Path], None]) -> None:
    path = Path(str(output.lock))
    path.parent.mkdir()
    put(path)
    with pytest.raises(PipelineError, match=r"run\.lock is not a file .*; remove it"), run_lock.held(output):
        pass
