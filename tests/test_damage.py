"""Files of a finished folder, damaged in every way: verify names them, and extract makes them again."""

import random
import shutil
from pathlib import Path

import pytest
import zarr

from pipeline import run
from pipeline.errors import PipelineError
from pipeline.extraction import extract
from pipeline.outputs import OutputFolder
from pipeline.run_record import RunRecord
from tests.conftest import Killed, make_corpus
from tests.support.damage import DAMAGES, damage, flipped
from tests.support.whole_system import store_bytes

SETTINGS = (
    "--executor=serial",
    "--set=features.n_mfcc=13",
    "--set=store.timesteps=10",
    "--set=store.sequences_per_chunk=4",
    "--set=store.chunks_per_shard=2",
)
RECORDS = ("shards/00000001.json", "shards/00000004.json")
OBJECTS = ("features.zarr/features/c/1/0/0", "features.zarr/valid/c/2", "features.zarr/label/c/0")
ARRAYS = ("features", "label", "train_mean", "timestep")
BESIDE = (
    *(f"features.zarr/{name}zarr.json" for name in ("", *(f"{array}/" for array in ARRAYS))),
    "features.zarr/timestep/c/0", "features.zarr/mfcc/c/0", "features.zarr/train_mean/c/0",
    "features.zarr/train_std/c/0", "features.zarr/train_count/c", "shards/_metadata", "shards/_digests",
    "ledger.parquet",
)  # fmt: skip
FILES = (*RECORDS, *OBJECTS, *BESIDE, "manifest.parquet")


def outcome(stage: str, out: Path, *arguments: str, corpus: Path | None = None) -> tuple[int, str]:
    """Return the exit code of a command, and the line of its error; any other error than that of a user is raised."""
    given = [stage, "--out", str(out), *SETTINGS, *arguments, *(["--corpus", str(corpus)] if corpus else [])]
    try:
        return int(run.main.main(given, standalone_mode=False) or 0), ""
    except PipelineError as error:
        return error.exit_code, str(error)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and the output of a scan and an extraction, to which recordings were appended."""
    place = tmp_path_factory.mktemp("finished")
    corpus, out = place / "corpus", place / "out"
    for languages in ({"de": {"a": 1, "b": 1, "c": 1}, "en": {"d": 2}}, {"de": {"e": 1}}):
        make_corpus(corpus, languages, seconds=0.75)
        for stage in ("scan", "extract"):
            assert outcome(stage, out, corpus=corpus) == (0, "")
    assert outcome("verify", out) == (0, "")
    return place


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "out", tmp_path / "out"))


def content_of(out: Path) -> dict[str, bytes]:
    beside = {
        name: (out / name).read_bytes() for name in ("manifest.parquet", "ledger.parquet") if (out / name).exists()
    }
    return store_bytes(out) | beside


IN_SHORT = (
    (RECORDS[0], "zeros"), (OBJECTS[0], "flipped"), (BESIDE[0], "half"), (BESIDE[1], "edited"),
    ("features.zarr/train_mean/c/0", "deleted"), ("shards/_metadata", "empty"), ("shards/_digests", "flipped"),
    ("ledger.parquet", "edited"), ("manifest.parquet", "flipped"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        pytest.param(file, kind, marks=[] if (file, kind) in IN_SHORT else pytest.mark.long)
        for file in FILES
        for kind in DAMAGES
    ],
)
def test_a_damaged_file_is_named_and_made_again(finished: Path, out: Path, file: str, kind: str) -> None:
    before = content_of(out)
    damage(out / file, kind)
    damaged = content_of(out)
    for stage in ("verify", "compact", "status"):
        code, message = outcome(stage, out)
        assert (code in (1, 2) and Path(file).name in message) or (stage == "status" and not message), stage
        assert "\n" not in message
    assert content_of(out) == damaged
    if file == "manifest.parquet":
        assert_named(outcome("extract", out), file)
        code, message = outcome("scan", out, corpus=finished / "corpus")
        assert content_of(out)[file] == before[file] if code == 0 else file in message
        return
    code, message = outcome("extract", out)
    if content_of(out) != before:
        assert file in OBJECTS or (code == 1 and file in message)
        assert outcome("extract", out, "--repair") == (0, "")
    assert content_of(out) == before
    assert outcome("verify", out) == (0, "")


def assert_named(found: tuple[int, str], file: str) -> None:
    assert found[0] in (1, 2)
    assert file in found[1]


def test_one_flipped_bit_in_any_file_is_found(out: Path) -> None:
    objects = {name for name in content_of(out) if name.startswith("features.zarr/") and "/c/" in name}
    lists = {"shards/_metadata", "shards/_digests"}  # with which others are compared
    others = content_of(out).keys() - objects - lists - {"manifest.parquet"}
    for seed, files in enumerate((objects, lists, others)):
        chance, there = random.Random(seed), out.with_name(f"flipped {seed}")
        shutil.copytree(out, there)
        for name in sorted(files):
            (there / name).write_bytes(flipped((there / name).read_bytes(), chance))
        code, message = outcome("verify", there)
        assert (code, f": {len(files)} files damaged" in message) == (1, True), message


def test_a_repair_that_was_killed_is_finished_without_its_flag(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_of(out)
    damage(out / "features.zarr/label/c/0", "flipped")
    with monkeypatch.context() as context:
        context.setattr(extract, "run_pending", killed)  # the record says already that its shard is unfinished
        with pytest.raises(Killed):
            outcome("extract", out, "--repair")
    assert outcome("verify", out)[0] == 1
    assert outcome("extract", out) == (0, "")
    assert content_of(out) == before
    assert outcome("verify", out) == (0, "")


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.mark.parametrize("file", ["features.zarr/features/c/1/0/0", "shards/00000001.json"])
def test_a_damaged_shard_is_kept_where_its_recordings_are_gone(finished: Path, out: Path, file: str) -> None:
    corpus = finished / "corpus"
    damage(out / file, "flipped")
    damage(out / "features.zarr" / "train_mean" / "c" / "0", "deleted")
    before = content_of(out)
    corpus.rename(corpus.with_name("away"))
    try:
        code, message = outcome("extract", out, "--repair")
    finally:
        corpus.with_name("away").rename(corpus)
    assert code == 1
    assert "1 damaged shard (00000001) kept unchanged, because recordings cannot be read" in message
    assert {name: content for name, content in content_of(out).items() if name in before} == before
    assert outcome("extract", out, "--repair") == (0, "")
    assert content_of(out) == content_of(finished / "out")


def test_what_follows_from_the_plan_is_made_again_without_recordings(
    finished: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.extraction.recording_reader.read_blocks", None)
    for name in ("label", "split", "recording", "start_frame"):
        damage(out / "features.zarr" / name / "c" / "1", "zeros")
    assert outcome("extract", out, "--repair") == (0, "")
    assert content_of(out) == content_of(finished / "out")


def test_a_store_without_its_metadata_and_recordings_loses_nothing(
    finished: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.extraction.recording_reader.read_blocks", None)
    for path in (*(out / "features.zarr").rglob("zarr.json"), out / "shards" / "_metadata", out / "ledger.parquet"):
        path.unlink()
    assert outcome("extract", out) == (0, "")
    assert content_of(out) == content_of(finished / "out")


def test_records_that_a_power_cut_left_empty_are_written_again(finished: Path, out: Path) -> None:
    for path in (out / "shards").iterdir():
        path.write_bytes(b"")
    code, message = outcome("extract", out)
    if code:
        assert "_metadata" in message
        assert outcome("extract", out, "--repair") == (0, "")
    assert content_of(out) == content_of(finished / "out")


def test_a_folder_of_an_earlier_version_is_completed_by_the_next_extraction(finished: Path, out: Path) -> None:
    record = RunRecord(OutputFolder.at(str(out)))
    (out / "shards" / "_digests").unlink()
    earlier = (out / "ledger.parquet", out / "shards" / "_metadata", out / "features.zarr" / "train_count" / "c")
    output = OutputFolder.at(str(out))
    record.confirm("extract", record.stages["extract"].key, [output.root / p.relative_to(out) for p in earlier])
    assert outcome("verify", out) == (0, "")
    facts = RunRecord(output).stages["extract"].wall_s
    assert outcome("extract", out) == (0, "")
    assert content_of(out) == content_of(finished / "out")
    assert RunRecord(output).file.accounted
    assert RunRecord(output).stages["extract"].wall_s == facts


@pytest.mark.parametrize("file", OBJECTS)
def test_compact_copies_no_damage_that_came_after_the_last_verification(out: Path, file: str) -> None:
    (out / file).unlink()
    damaged = content_of(out)
    code, message = outcome("compact", out)
    assert (code, f"1 file damaged or missing ({file})" in message) == (1, True), message
    assert content_of(out) == damaged


def test_metadata_that_is_nested_too_deeply_is_damaged(finished: Path, out: Path) -> None:
    (out / "features.zarr" / "zarr.json").write_bytes(b"[" * 100_000)
    assert_named(outcome("verify", out), "features.zarr/zarr.json")
    assert outcome("extract", out) == (0, "")
    assert content_of(out) == content_of(finished / "out")


def test_status_shows_when_verify_ran_and_on_what(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("status", out) == (0, "")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("verified"))
    shards = len(list((out / "shards").glob("0*.json")))
    assert f": {shards} shards, " in line
    assert line.endswith("nothing damaged")
    damage(out / "features.zarr" / "features" / "c" / "0" / "0" / "0", "flipped")
    assert outcome("verify", out)[0] == 1
    assert outcome("status", out) == (0, "")
    assert "1 file damaged" in capsys.readouterr().out


def test_added_attributes_and_variables_are_no_damage(out: Path) -> None:
    group = zarr.open_group(out / "features.zarr", mode="r+")
    group.attrs["title"] = "mine"
    assert outcome("verify", out) == (0, "")


@pytest.mark.parametrize("stage", ["verify", "report"])
def test_the_progress_of_an_extraction_may_be_missing_but_not_damaged(out: Path, stage: str) -> None:
    series = out / "report" / "extraction.csv"
    damage(series, "half")
    assert_named(outcome(stage, out), "report/extraction.csv")
    series.unlink()
    assert outcome("verify", out) == (0, "")


def test_an_edited_setting_in_the_attributes_is_restored_from_the_copy(finished: Path, out: Path) -> None:
    path = out / "features.zarr" / "zarr.json"
    for old, new in (('"config_hash": "', '"config_hash": "0'), ('"schema_version": 2', '"schema_version": 3')):
        path.write_text(path.read_text().replace(old, new, 1))
        assert_named(outcome("verify", out), "features.zarr/zarr.json")
        assert outcome("extract", out) == (0, "")
        assert content_of(out) == content_of(finished / "out")


def test_a_copy_of_the_metadata_that_is_not_recorded_is_made_again(finished: Path, out: Path) -> None:
    path = out / "shards" / "_metadata"
    path.write_text(path.read_text().replace('"attributes"', '"attribuues"'))
    (out / "run.json").unlink()
    assert outcome("extract", out) == (0, "")
    assert content_of(out) == content_of(finished / "out")


@pytest.mark.parametrize("file", ["shards/_digests", "shards/_metadata", "ledger.parquet"])
def test_scan_of_the_same_corpus_leaves_what_extract_left_unfinished_to_extract(
    finished: Path, out: Path, file: str
) -> None:
    (out / file).unlink()
    assert outcome("scan", out, "--unchanged-exit-code=99", corpus=finished / "corpus") == (0, "")
