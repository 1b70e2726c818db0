"""run.json: what it says of stages, when a stage has to run again, and what is said when it is damaged."""

import json
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.outputs import OutputFolder
from pipeline.run_record import RunRecord, ScanRecord


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder.at(str(tmp_path))


def recorded(output: OutputFolder) -> Path:
    """Record a stage with two files as its output; return one of them."""
    (output.root / "models").mkdir()
    outputs = [output.root / "manifest.parquet", output.root / "models" / "ä.keras"]
    for path in outputs:
        path.write_bytes(b"content")
    RunRecord(output).finish("scan", "key", outputs, recordings=3)
    return Path(str(outputs[1]))


def test_empty_folder_has_no_stages_and_nothing_is_unchanged(output: OutputFolder) -> None:
    state = RunRecord(output)
    assert state.stages == {}
    assert not state.unchanged("scan", "key")
    assert not output.run.exists()


def test_recorded_stage_is_unchanged_for_its_key_alone(output: OutputFolder) -> None:
    recorded(output)
    state = RunRecord(output)
    assert state.unchanged("scan", "key")
    assert not state.unchanged("scan", "other key")
    assert not state.unchanged("extract", "key")


def test_record_holds_facts_and_paths_below_the_folder(output: OutputFolder) -> None:
    recorded(output)
    stage = RunRecord(output).stages["scan"]
    assert isinstance(stage, ScanRecord)
    assert (stage.key, stage.recordings) == ("key", 3)
    assert list(stage.outputs) == ["manifest.parquet", "models/ä.keras"]
    assert stage.finished_at.tzinfo is not None


def test_moved_folder_is_unchanged(output: OutputFolder, tmp_path: Path) -> None:
    recorded(output)
    there = tmp_path.rename(tmp_path.parent / "moved")
    assert RunRecord(OutputFolder.at(str(there))).unchanged("scan", "key")


def test_changed_output_is_a_change(output: OutputFolder) -> None:
    recorded(output).write_bytes(b"contenu")
    assert not RunRecord(output).unchanged("scan", "key")


def test_missing_output_is_a_change(output: OutputFolder) -> None:
    recorded(output).unlink()
    assert not RunRecord(output).unchanged("scan", "key")


def test_stage_without_outputs_depends_on_its_key(output: OutputFolder) -> None:
    RunRecord(output).finish("verify", "key", [])
    assert RunRecord(output).unchanged("verify", "key")


def test_output_that_was_never_written_stays_unwritten(output: OutputFolder) -> None:
    state = RunRecord(output)
    state.finish("report", "key", [output.root / "none"])
    assert state.stages["report"].outputs == {"none": None}
    assert state.unchanged("report", "key")
    (output.root / "none").write_bytes(b"")
    assert not state.unchanged("report", "key")


def test_recording_again_replaces_a_stage_and_keeps_the_others(output: OutputFolder) -> None:
    state = RunRecord(output)
    state.finish("scan", "one", [], recordings=3)
    state.finish("verify", "key", [])
    state.finish("scan", "two", [])
    found = RunRecord(output)
    assert found.unchanged("scan", "two")
    assert found.unchanged("verify", "key")
    assert found.stages["scan"] == ScanRecord(key="two", finished_at=found.stages["scan"].finished_at, outputs={})


def test_forgotten_stages_are_gone_and_the_others_are_kept(output: OutputFolder) -> None:
    state = RunRecord(output)
    for stage in ("scan", "train/lstm", "evaluate/lstm"):
        state.finish(stage, "key", [])
    state.forget("train/lstm", "evaluate/lstm", "train/none")
    assert list(RunRecord(output).stages) == list(state.stages) == ["scan"]


def test_description_names_versions_and_keeps_stages(output: OutputFolder) -> None:
    RunRecord(output).finish("scan", "key", [])
    RunRecord(output).describe(corpus="Größe", config={"seed": 1}, config_hash="c0ffee")
    content = json.loads(output.run.read_text(encoding="utf-8"))
    assert (content["corpus"], content["config"]) == ("Größe", {"seed": 1})
    assert {"python", "librosa", "numpy", "zarr", "tensorflow", "dask"} <= set(content["versions"])
    assert list(content["stages"]) == ["scan"]


def test_state_behind_a_url(memory_url: str) -> None:
    output = OutputFolder.at(memory_url)
    output.manifest.write_bytes(b"content")
    RunRecord(output).finish("scan", "key", [output.manifest])
    assert RunRecord(output).unchanged("scan", "key")
    output.manifest.write_bytes(b"contenu")
    assert not RunRecord(output).unchanged("scan", "key")


@pytest.mark.parametrize(
    "content", [b"", b'{"stages": {', b"\xff\xfe", b"{}", b"[]", b"null", b'{"stages": 1}', b'{"stages": {"fly": {}}}']
)
def test_damaged_file_is_named_with_the_remedy(output: OutputFolder, content: bytes) -> None:
    output.run.write_bytes(content)
    with pytest.raises(UsageError) as error:
        RunRecord(output)
    assert str(error.value) == f"{output.run} is not the record of a run; delete it: every stage is then checked anew"


def test_any_flipped_bit_is_found(output: OutputFolder) -> None:
    RunRecord(output).finish("train/lstm", "key", [output.root / "gone"], epochs=3, wall_s=0.25)
    content = output.run.read_bytes()
    assert not RunRecord(output).altered
    for place in range(8 * len(content)):
        byte, bit = divmod(place, 8)
        flipped = bytearray(content)
        flipped[byte] ^= 1 << bit
        output.run.write_bytes(flipped)
        try:
            assert RunRecord(output).altered, place
        except UsageError as error:
            assert str(output.run) in str(error)  # noqa: PT017 most flips are no JSON


def test_files_of_earlier_versions_have_no_digest(output: OutputFolder) -> None:
    RunRecord(output).finish("scan", "key", [])
    document = json.loads(output.run.read_bytes())
    del document["digest"]
    output.run.write_text(json.dumps(document))
    assert not RunRecord(output).altered
    RunRecord(output).finish("scan", "other", [])
    assert json.loads(output.run.read_bytes())["digest"]
