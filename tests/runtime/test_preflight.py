"""Checks of workers: real reports of this process, and the messages about workers that do not fit."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.features.audio_source import AudioSource
from pipeline.outputs import OutputFolder
from pipeline.runtime import code_upload, preflight
from pipeline.runtime.executor import SerialExecutor

FAR = "tcp://10.77.0.3:40000"


class Far(SerialExecutor):
    """Has one worker, elsewhere. Its report is this process's with a change."""

    def __init__(self, change: Callable[[preflight.WorkerReport], preflight.WorkerReport | BaseException]) -> None:
        super().__init__()
        self._change = change

    def on_each_worker(self, function: Callable[[], Any]) -> dict[str, Any]:
        return {FAR: self._change(function())}


def refusal(executor: SerialExecutor, output: OutputFolder, recordings: list[AudioSource] | None = None) -> str:
    with pytest.raises(UsageError) as error:
        preflight.check(executor, output, recordings or [])
    assert "\n" not in str(error.value)
    assert list(output.root.iterdir()) == []
    return str(error.value)


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder.at(str(tmp_path))


@pytest.fixture
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[AudioSource]]:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "b").write_bytes(b"sound")
    (folder / "c").write_bytes(b"sound")
    return [AudioSource(str(folder / name)) for name in "abc"]


def test_this_process_passes_and_no_file_is_left(output: OutputFolder, recordings: list[AudioSource]) -> None:
    preflight.check(SerialExecutor(), output, recordings)
    preflight.check(Far(lambda report: report), output, recordings)
    preflight.check(SerialExecutor(), output)
    assert list(output.root.iterdir()) == []


def test_files_that_a_killed_check_left_are_deleted_by_the_next_command(
    output: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen("true") as dead, monkeypatch.context() as process:
        process.setattr("os.getpid", lambda: dead.pid)
        preflight._new_file(output).touch()
    assert len(list(output.root.iterdir())) == 1
    output.clear_partial_files()
    assert list(output.root.iterdir()) == []


def test_output_folder_may_be_a_url(memory_url: str) -> None:
    preflight.check(SerialExecutor(), OutputFolder.at(memory_url))


def test_other_code_is_named_by_both_digests(output: OutputFolder) -> None:
    message = refusal(Far(lambda report: replace(report, code_digest="0123")), output)
    assert message == (
        f"worker {FAR} runs other code of this project (digest 0123, the driver's is {code_upload.code_digest()}); "
        "install the same version"
    )


@pytest.mark.parametrize("name", ["python", "numpy", "zarr"])
def test_other_version_is_named_beside_the_drivers(output: OutputFolder, name: str) -> None:
    message = refusal(Far(lambda report: replace(report, versions={**report.versions, name: "0.1"})), output)
    assert (
        message == f"worker {FAR} has {name} 0.1, the driver {code_upload.versions()[name]}; install the same version"
    )


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'pipeline'", name="pipeline"),
        Exception("ModuleNotFoundError(\"No module named 'pipeline'\")"),
    ],
)
def test_missing_package_has_two_remedies(output: OutputFolder, error: Exception) -> None:
    message = refusal(Far(lambda _: error), output)
    assert message == (
        f"worker {FAR} has no package pipeline; install the project there, or have it sent: ship_code: true in the "
        "profile"
    )


def test_error_of_a_worker_is_in_the_message(output: OutputFolder) -> None:
    message = refusal(Far(lambda _: ValueError("no such thing")), output)
    assert message == f"worker {FAR} failed the check of its code and files: ValueError: no such thing"


def test_access_error_is_in_the_message(output: OutputFolder) -> None:
    message = refusal(Far(lambda report: replace(report, access_error="cannot write to there")), output)
    assert message == f"worker {FAR} cannot write to there"


def test_first_recording_that_the_driver_can_read_is_checked(
    output: OutputFolder, recordings: list[AudioSource]
) -> None:
    def loses(report: preflight.WorkerReport) -> preflight.WorkerReport:
        asked.append(report)
        return report

    asked: list[preflight.WorkerReport] = []
    preflight.check(Far(loses), output, recordings)
    assert asked[0].access_error == ""
    # the driver can read none, so that no worker has to
    preflight.check(SerialExecutor(), output, [recordings[0]] * 20)


def test_missing_recording_is_an_access_error(output: OutputFolder, recordings: list[AudioSource]) -> None:
    report = preflight.inspect_worker(str(output.root), "none", recordings[0])
    assert report.access_error.startswith(f"does not see the files in {output.root}")
    (output.root / "here").write_bytes(b"")
    report = preflight.inspect_worker(str(output.root), "here", recordings[0])
    assert report.access_error == f"cannot read {recordings[0].container}: No such file or directory"
    assert preflight.inspect_worker(str(output.root), "here", recordings[1]).access_error == ""


def test_work_that_only_reads_needs_a_manifest_and_writes_nothing(output: OutputFolder) -> None:
    with pytest.raises(UsageError, match=r"^this process does not see the files in .*; workers and driver must share"):
        preflight.check(SerialExecutor(), output, writes=False)
    output.manifest.touch()
    before = output.root.stat().st_mtime_ns
    preflight.check(SerialExecutor(), output, writes=False)
    assert output.root.stat().st_mtime_ns == before


def test_worker_with_another_encoding_is_named(output: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    assert refusal(SerialExecutor(), output) == (
        "this process has names of files in iso8859-1; start it with PYTHONUTF8=1, or in a locale with UTF-8"
    )


def test_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises((UsageError, OSError)):
        preflight.check(SerialExecutor(), OutputFolder.at(str(tmp_path / "out")))


def test_message_about_this_process_has_no_address(output: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_access_error", lambda *_: "cannot write to there")
    assert re.fullmatch("this process cannot write to there", refusal(SerialExecutor(), output))
