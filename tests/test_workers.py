"""What is asked of workers: real answers of this process, and what is said of those that do not fit."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import shipping, workers
from pipeline.errors import UsageError
from pipeline.executors import SerialExecutor
from pipeline.schema import Layout

FAR = "tcp://10.77.0.3:40000"


class Far(SerialExecutor):
    """Asks one worker that is elsewhere: its answer is this process's, changed."""

    def __init__(self, change: Callable[[workers.Sight], workers.Sight | BaseException]) -> None:
        self._change = change

    def on_each_worker(self, function: Callable[[], Any]) -> dict[str, Any]:
        return {FAR: self._change(function())}


def refusal(executor: SerialExecutor, layout: Layout, recordings: list[str] | None = None) -> str:
    with pytest.raises(UsageError) as error:
        workers.check(executor, layout, recordings or [])
    assert "\n" not in str(error.value)
    assert list(layout.root.iterdir()) == []
    return str(error.value)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.at(str(tmp_path))


@pytest.fixture
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "b").write_bytes(b"sound")
    (folder / "c").write_bytes(b"sound")
    return [str(folder / name) for name in "abc"]


def test_this_process_fits_itself_and_leaves_no_file(layout: Layout, recordings: list[str]) -> None:
    workers.check(SerialExecutor(), layout, recordings)
    workers.check(Far(lambda sight: sight), layout, recordings)
    workers.check(SerialExecutor(), layout)
    assert list(layout.root.iterdir()) == []


def test_an_output_folder_by_url_is_asked_about_alike(memory_url: str) -> None:
    workers.check(SerialExecutor(), Layout.at(memory_url))


def test_other_code_is_told_with_both_digests(layout: Layout) -> None:
    message = refusal(Far(lambda sight: replace(sight, code="0123")), layout)
    assert message == (
        f"worker {FAR} runs other code of this project (digest 0123, the driver's is {shipping.code_digest()}); "
        "install the same"
    )


@pytest.mark.parametrize("name", ["python", "numpy", "zarr"])
def test_another_version_is_told_with_both(layout: Layout, name: str) -> None:
    message = refusal(Far(lambda sight: replace(sight, versions={**sight.versions, name: "0.1"})), layout)
    assert message == f"worker {FAR} has {name} 0.1, the driver {shipping.versions()[name]}; install the same"


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'pipeline'", name="pipeline"),
        Exception("ModuleNotFoundError(\"No module named 'pipeline'\")"),
    ],
)
def test_a_missing_package_is_told_with_both_remedies(layout: Layout, error: Exception) -> None:
    message = refusal(Far(lambda _: error), layout)
    assert message == (
        f"worker {FAR} has no package pipeline; install the project there, or have it sent: ship_code: true in the "
        "profile"
    )


def test_what_a_worker_raises_is_told(layout: Layout) -> None:
    message = refusal(Far(lambda _: ValueError("no such thing")), layout)
    assert message == f"worker {FAR} cannot be asked what it is: ValueError: no such thing"


def test_trouble_is_told_as_it_is(layout: Layout) -> None:
    message = refusal(Far(lambda sight: replace(sight, trouble="cannot write to there")), layout)
    assert message == f"worker {FAR} cannot write to there"


def test_the_first_recording_that_the_driver_can_read_is_asked_for(layout: Layout, recordings: list[str]) -> None:
    def loses(sight: workers.Sight) -> workers.Sight:
        asked.append(sight)
        return sight

    asked: list[workers.Sight] = []
    workers.check(Far(loses), layout, recordings)
    assert asked[0].trouble == ""
    # none can be read: then there is nothing that a worker could be asked
    workers.check(SerialExecutor(), layout, [recordings[0]] * 20)


def test_a_recording_that_is_not_there_is_trouble(layout: Layout, recordings: list[str]) -> None:
    sight = workers.look(str(layout.root), "none", recordings[0])
    assert sight.trouble.startswith(f"does not see the files in {layout.root}")
    (layout.root / ".access-here").write_bytes(b"")
    sight = workers.look(str(layout.root), "here", recordings[0])
    assert sight.trouble == f"cannot read {recordings[0]}: No such file or directory"
    assert workers.look(str(layout.root), "here", recordings[1]).trouble == ""


def test_a_file_in_the_place_of_the_folder_is_trouble(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises((UsageError, OSError)):
        workers.check(SerialExecutor(), Layout.at(str(tmp_path / "out")))


def test_this_process_is_named_without_an_address(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_trouble", lambda *_: "cannot write to there")
    assert re.fullmatch("this process cannot write to there", refusal(SerialExecutor(), layout))
