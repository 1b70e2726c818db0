"""run.json: what it says of stages, when a stage has to run again, and what is said when it is damaged."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.schema import Layout
from pipeline.state import RunState


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.at(str(tmp_path))


def recorded(layout: Layout) -> Path:
    """Record a stage with two files as its output; return one of them."""
    (layout.root / "models").mkdir()
    outputs = [layout.root / "manifest.parquet", layout.root / "models" / "ä.keras"]
    for path in outputs:
        path.write_bytes(b"content")
    RunState(layout).record("scan", "key", outputs, recordings=3)
    return Path(str(outputs[1]))


def test_empty_folder_has_no_stages_and_nothing_is_unchanged(layout: Layout) -> None:
    state = RunState(layout)
    assert state.stages == {}
    assert not state.unchanged("scan", "key")
    assert not layout.run.exists()


def test_recorded_stage_is_unchanged_for_its_key_alone(layout: Layout) -> None:
    recorded(layout)
    state = RunState(layout)
    assert state.unchanged("scan", "key")
    assert not state.unchanged("scan", "other key")
    assert not state.unchanged("extract", "key")


def test_record_holds_facts_and_paths_below_the_folder(layout: Layout) -> None:
    recorded(layout)
    stage = RunState(layout).stages["scan"]
    assert (stage["key"], stage["recordings"]) == ("key", 3)
    assert list(stage["outputs"]) == ["manifest.parquet", "models/ä.keras"]
    assert datetime.fromisoformat(stage["finished_at"]).tzinfo is not None


def test_moved_folder_is_unchanged(layout: Layout, tmp_path: Path) -> None:
    recorded(layout)
    there = tmp_path.rename(tmp_path.parent / "moved")
    assert RunState(Layout.at(str(there))).unchanged("scan", "key")


def test_changed_output_is_a_change(layout: Layout) -> None:
    recorded(layout).write_bytes(b"contenu")
    assert not RunState(layout).unchanged("scan", "key")


def test_missing_output_is_a_change(layout: Layout) -> None:
    recorded(layout).unlink()
    assert not RunState(layout).unchanged("scan", "key")


def test_stage_without_outputs_depends_on_its_key(layout: Layout) -> None:
    RunState(layout).record("verify", "key", [])
    assert RunState(layout).unchanged("verify", "key")


def test_output_that_was_never_written_stays_unwritten(layout: Layout) -> None:
    state = RunState(layout)
    state.record("report", "key", [layout.root / "none"])
    assert state.stages["report"]["outputs"] == {"none": None}
    assert state.unchanged("report", "key")
    (layout.root / "none").write_bytes(b"")
    assert not state.unchanged("report", "key")


def test_recording_again_replaces_a_stage_and_keeps_the_others(layout: Layout) -> None:
    state = RunState(layout)
    state.record("scan", "one", [], recordings=3)
    state.record("verify", "key", [])
    state.record("scan", "two", [])
    found = RunState(layout)
    assert found.unchanged("scan", "two")
    assert found.unchanged("verify", "key")
    assert "recordings" not in found.stages["scan"]


def test_description_names_versions_and_keeps_stages(layout: Layout) -> None:
    RunState(layout).record("scan", "key", [])
    RunState(layout).describe(corpus="Größe", config={"seed": 1})
    content = json.loads(layout.run.read_text(encoding="utf-8"))
    assert (content["corpus"], content["config"]) == ("Größe", {"seed": 1})
    assert {"python", "librosa", "numpy", "zarr", "tensorflow", "dask"} <= set(content["versions"])
    assert list(content["stages"]) == ["scan"]


def test_state_behind_a_url(memory_url: str) -> None:
    layout = Layout.at(memory_url)
    layout.manifest.write_bytes(b"content")
    RunState(layout).record("scan", "key", [layout.manifest])
    assert RunState(layout).unchanged("scan", "key")
    layout.manifest.write_bytes(b"contenu")
    assert not RunState(layout).unchanged("scan", "key")


@pytest.mark.parametrize("content", [b"", b'{"stages": {', b"\xff\xfe", b"{}", b"[]", b"null", b'{"stages": 1}'])
def test_damaged_file_is_named_with_the_remedy(layout: Layout, content: bytes) -> None:
    layout.run.write_bytes(content)
    with pytest.raises(UsageError) as error:
        RunState(layout)
    assert str(error.value) == f"{layout.run} is not the record of a run; delete it: every stage is then checked anew"
