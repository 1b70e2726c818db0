"""What is asked of workers: real answers of this process, and what is said of those that do not fit."""

import re
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
    """Asks one worker that is elsewhere: its answer is this process's, changed."""

    def __init__(self, change: Callable[[preflight.WorkerReport], preflight.WorkerReport | BaseException]) -> None:
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


def test_this_process_fits_itself_and_leaves_no_file(output: OutputFolder, recordings: list[AudioSource]) -> None:
    preflight.check(SerialExecutor(), output, recordings)
    preflight.check(Far(lambda report: report), output, recordings)
    preflight.check(SerialExecutor(), output)
    assert list(output.root.iterdir()) == []


def test_an_output_folder_by_url_is_asked_about_alike(memory_url: str) -> None:
    preflight.check(SerialExecutor(), OutputFolder.at(memory_url))


def test_other_code_is_told_with_both_digests(output: OutputFolder) -> None:
    message = refusal(Far(lambda report: replace(report, code="0123")), output)
    assert message == (
        f"worker {FAR} runs other code of this project (digest 0123, the driver's is {code_upload.code_digest()}); "
        "install the same"
    )


@pytest.mark.parametrize("name", ["python", "numpy", "zarr"])
def test_another_version_is_told_with_both(output: OutputFolder, name: str) -> None:
    message = refusal(Far(lambda report: replace(report, versions={**report.versions, name: "0.1"})), output)
    assert message == f"worker {FAR} has {name} 0.1, the driver {code_upload.versions()[name]}; install the same"


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'pipeline'", name="pipeline"),
        Exception("ModuleNotFoundError(\"No module named 'pipeline'\")"),
    ],
)
def test_a_missing_package_is_told_with_both_remedies(output: OutputFolder, error: Exception) -> None:
    message = refusal(Far(lambda _: error), output)
    assert message == (
        f"worker {FAR} has no package pipeline; install the project there, or have it sent: ship_code: true in the "
        "profile"
    )


def test_what_a_worker_raises_is_told(output: OutputFolder) -> None:
    message = refusal(Far(lambda _: ValueError("no such thing")), output)
    assert message == f"worker {FAR} cannot be asked what it is: ValueError: no such thing"


def test_trouble_is_told_as_it_is(output: OutputFolder) -> None:
    message = refusal(Far(lambda report: replace(report, trouble="cannot write to there")), output)
    assert message == f"worker {FAR} cannot write to there"


def test_the_first_recording_that_the_driver_can_read_is_asked_for(
    output: OutputFolder, recordings: list[AudioSource]
) -> None:
    def loses(report: preflight.WorkerReport) -> preflight.WorkerReport:
        asked.append(report)
        return report

    asked: list[preflight.WorkerReport] = []
    preflight.check(Far(loses), output, recordings)
    assert asked[0].trouble == ""
    # none can be read: then there is nothing that a worker could be asked
    preflight.check(SerialExecutor(), output, [recordings[0]] * 20)


def test_a_recording_that_is_not_there_is_trouble(output: OutputFolder, recordings: list[AudioSource]) -> None:
    report = preflight.look(str(output.root), "none", recordings[0])
    assert report.trouble.startswith(f"does not see the files in {output.root}")
    (output.root / ".access-here").write_bytes(b"")
    report = preflight.look(str(output.root), "here", recordings[0])
    assert report.trouble == f"cannot read {recordings[0].container}: No such file or directory"
    assert preflight.look(str(output.root), "here", recordings[1]).trouble == ""


def test_a_file_in_the_place_of_the_folder_is_trouble(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises((UsageError, OSError)):
        preflight.check(SerialExecutor(), OutputFolder.at(str(tmp_path / "out")))


def test_this_process_is_named_without_an_address(output: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_trouble", lambda *_: "cannot write to there")
    assert re.fullmatch("this process cannot write to there", refusal(SerialExecutor(), output))
