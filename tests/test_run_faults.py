"""Whole runs on bad input, bad disks and wrong usage: a clear line, the right exit code, nothing lost."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr

from tests.support.whole_system import SMALL, command, finished_shards, in_namespace, run, store_bytes, write_corpus

pytestmark = pytest.mark.slow

SERIAL = ("--executor", "serial", *SMALL, "--set=models.ann=null")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with the store of the corpus."""
    place = tmp_path_factory.mktemp("whole")
    result = extract(write_corpus(place / "corpus"), place / "out")
    assert result.returncode == 0, result.stderr
    return place / "out"


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def ledger_of(out: Path, recording: str) -> pd.Series:
    rows = pd.read_parquet(out / "ledger.parquet").set_index("recording_id")
    return rows.loc[recording]


def extract(corpus: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run scan and extract; return the last."""
    scanned = run("scan", "--corpus", corpus, "--out", out, *SERIAL)
    return run("extract", "--out", out, *SERIAL, *more) if scanned.returncode == 0 else scanned


def test_bad_files_are_named_in_the_ledger_and_cost_no_good_one(corpus: Path, tmp_path: Path) -> None:
    folder, out = corpus / "de" / "de_speaker_0", tmp_path / "out"
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("no audio at all")
    content = (folder / "0.flac").read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("not a recording")

    result = run("--corpus", corpus, "--out", out, *SERIAL)

    assert result.returncode == 3, result.stderr
    assert "2 of 27 recordings failed, more than --max-failed-fraction 0.01 allows" in result.stderr
    assert "ignored 1 file, not recordings: de/de_speaker_0/notes.txt" in result.stderr
    expected = {
        "empty.wav": ("failed", "the file is empty"),
        "text.wav": ("failed", "not readable as audio: text in a file named .wav"),
        "cut.flac": ("short", "damaged at "),
    }
    for name, (status, reason) in expected.items():
        row = ledger_of(out, f"de/de_speaker_0/{name}")
        assert row["status"] == status
        assert reason in row["reason"]
    assert (pd.read_parquet(out / "ledger.parquet")["status"] == "ok").sum() == 24
    assert (out / "report" / "index.html").is_file()
    allowed = run("--corpus", corpus, "--out", out, *SERIAL, "--max-failed-fraction", "0.2")
    assert allowed.returncode == 0, allowed.stderr


def test_a_recording_deleted_between_scan_and_extract_is_a_failed_one(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("scan", "--corpus", corpus, "--out", out, *SERIAL).returncode == 0
    (corpus / "en" / "en_speaker_1" / "2.flac").unlink()

    result = run("extract", "--out", out, *SERIAL)

    assert result.returncode == 3, result.stderr
    row = ledger_of(out, "en/en_speaker_1/2.flac")
    assert row["status"] == "failed"
    assert "No such file" in row["reason"]
    with xr.open_zarr(out / "features.zarr") as dataset:
        assert int((~dataset["valid"]).sum()) > 0
        assert bool(dataset["features"].isnull().all(("timestep", "mfcc")).equals(~dataset["valid"]))
    again = run("scan", "--corpus", corpus, "--out", out, *SERIAL)
    assert "1 recording gone: en/en_speaker_1/2.flac; kept in the store" in again.stderr


def test_labels_with_odd_names_go_through_the_whole_run_and_are_escaped(tmp_path: Path) -> None:
    names = ("süd west", "<script>alert(1)<|script>", "$x_y$")
    corpus, out = write_corpus(tmp_path / "corpus", names), tmp_path / "out"

    result = run("--corpus", corpus, "--out", out, *SERIAL)

    assert result.returncode == 0, result.stderr
    with xr.open_zarr(out / "features.zarr") as dataset:
        meanings = dataset["label"].attrs["flag_meanings"].split()
    assert sorted(meanings) == sorted(name.replace(" ", "_") for name in names)
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;|script&gt;" in page
    assert "süd_west" in page


def test_an_output_folder_of_another_configuration_is_refused_with_both_hashes(corpus: Path, out: Path) -> None:
    before = store_bytes(out)
    with xr.open_zarr(out / "features.zarr") as dataset:
        held = dataset.attrs["config_hash"]
    result = run("--corpus", corpus, "--out", out, *SERIAL, "--set", "features.n_mfcc=13")
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert "holds a store of another configuration" in line
    assert held in line
    assert (
        len(
            {word for word in line.replace(",", " ").replace(")", " ").split() if len(word) == 16 and word.isalnum()}
            - {"configuration"}
        )
        == 2
    )
    assert store_bytes(out) == before


def test_a_mistyped_key_in_a_configuration_file_is_named_before_any_work(corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("features:\n  n_mfc: 20\n")
    result = run("--corpus", corpus, "--out", tmp_path / "out", "--config", file)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "features.n_mfc = 20: there is no such key; allowed here: sample_rate_hz" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.long  # `test_damage` damages every file in one process
def test_damage_is_found_named_and_mended_by_the_remedy_told(out: Path) -> None:
    assert run("verify", "--out", out, *SERIAL).returncode == 0
    before = store_bytes(out)
    victim = out / "features.zarr" / "features" / "c" / "3" / "0" / "0"
    content = bytearray(victim.read_bytes())
    content[100] ^= 1
    victim.write_bytes(content)

    found = run("verify", "--out", out, *SERIAL)

    assert found.returncode == 1
    assert "1 file damaged or missing (features.zarr/features/c/3/0/0); run extract --repair" in found.stderr
    assert run("extract", "--repair", "--out", out, *SERIAL).returncode == 0
    assert run("verify", "--out", out, *SERIAL).returncode == 0
    assert store_bytes(out) == before


@pytest.mark.long
def test_a_store_that_was_deleted_is_extracted_again_whatever_its_records_say(out: Path) -> None:
    before = store_bytes(out)
    shutil.rmtree(out / "features.zarr")
    assert run("extract", "--out", out, *SERIAL).returncode == 0
    assert store_bytes(out) == before


def test_a_module_of_the_user_that_hides_a_package_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.touch()
    command = [sys.executable, "-m", "pipeline.run", "status", "--out", "out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert f"{file} hides the package `model` of this project: rename it, or run this command in" in result.stderr


def test_stages_out_of_order_name_the_stage_that_is_missing(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("extract", "--out", out, *SERIAL)
    assert result.returncode == 2
    assert f"--out {out}: there is no such folder; run scan first" in result.stderr
    assert not out.exists()
    assert run("scan", "--corpus", corpus, "--out", out, *SMALL).returncode == 0
    result = run("train", "--out", out, *SERIAL)
    assert result.returncode == 2
    assert "run extract first" in result.stderr
    status = run("status", "--out", tmp_path / "nowhere")
    assert status.returncode == 2
    assert "nothing has been run here yet" in status.stderr


def test_a_manifest_of_an_earlier_version_is_told_in_one_line(corpus: Path, out: Path) -> None:
    path = out / "manifest.parquet"
    pd.read_parquet(path).drop(columns=["append_index", "masked"]).to_parquet(path)
    result = run("scan", "--corpus", corpus, "--out", out, *SMALL)
    assert result.returncode == 2, result.stderr
    assert "it has no column append_index, masked; choose another --out" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("executor", ["serial", pytest.param("dask", marks=pytest.mark.long)])
def test_a_full_disk_loses_nothing(corpus: Path, whole: Path, tmp_path: Path, executor: str) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    copy.mkdir()
    stages = [
        command(stage, "--corpus", corpus, "--out", disk, "--executor", executor, *SMALL)
        for stage in ("scan", "extract")
    ]
    scan, first = (" ".join(f"'{word}'" for word in stage) for stage in stages)
    script = f"""
        mount -t tmpfs -o size=500k tmpfs {disk}
        {scan} || exit 90
        {first}
        [ $? = 1 ] || exit 91
        ls {disk}/shards | wc -l
        mount -o remount,size=100m {disk}
        {first} || exit 92
        cp -r {disk}/. {copy}
    """
    result = in_namespace(script)
    assert result.returncode == 0, result.stderr
    assert "No space left on device" in result.stderr
    assert "run the same command again: finished shards are kept" in result.stderr
    assert "Traceback" not in result.stderr
    assert 0 < int(result.stdout.split()[-1]) < finished_shards(copy)
    assert store_bytes(copy) == store_bytes(whole)


def test_an_output_folder_that_cannot_be_written_is_told_at_once(corpus: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    line = " ".join(f"'{word}'" for word in command("--corpus", corpus, "--out", disk / "out"))
    result = in_namespace(f"mount -t tmpfs -o ro tmpfs {disk} && {line}")
    assert result.returncode == 2
    assert f"--out {disk / 'out'} cannot be written: Read-only file system" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_store_of_another_version_is_one_line(out: Path) -> None:
    metadata, copy = out / "features.zarr" / "zarr.json", out / "shards" / "_metadata"
    metadata.write_text(metadata.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    copy.write_text(copy.read_text().replace('"schema_version":2', '"schema_version":1'))
    for stage in ("extract", "train", "status"):
        result = run(stage, "--out", out, *(SERIAL if stage != "status" else ()))
        assert (result.returncode, result.stderr.count("Traceback")) == (2, 0)
        assert "features.zarr has schema version 1, but this version of the pipeline needs 2" in result.stderr
