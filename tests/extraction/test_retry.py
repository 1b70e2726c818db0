"""Recordings that failed for a moment, and plans that no disk could hold."""

import io
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from model.registry.history import History
from pipeline import scan_stage
from pipeline.errors import UsageError
from pipeline.extraction import recording_reader
from pipeline.extraction.pending import find_pending
from pipeline.extraction.plan import bytes_per_sequence
from pipeline.features import audio
from pipeline.features.audio import AudioError
from pipeline.outputs import OutputFolder
from pipeline.report import status
from pipeline.run_record import RunRecord
from tests.conftest import Killed, make_corpus
from tests.support.appending import CONFIG, check_contract, extracted, features_by_place, ledger_of, manifest_of, run
from tests.support.manifests import plan_of
from tests.support.whole_system import store_bytes


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Recordings of 7 sequences each."""
    return make_corpus(tmp_path / "corpus", {"de": {"anna": 2, "bert": 2}, "en": {"dave": 2, "erin": 2}}, seconds=0.75)


@pytest.fixture
def expected(corpus: Path, tmp_path: Path) -> Path:
    """What a run without any fault leaves."""
    run(corpus, tmp_path / "expected")
    return tmp_path / "expected"


def shown(out: Path) -> str:
    text = io.StringIO()
    status.show(OutputFolder.at(str(out)), History(), Console(file=text, width=200))
    return text.getvalue()


def files_of(out: Path) -> list[bytes]:
    """The records of the shards and the ledger."""
    return [path.read_bytes() for path in (*sorted((out / "shards").iterdir()), out / "ledger.parquet")]


def same(out: Path, expected: Path) -> bool:
    """Whether the store, its records and the ledger are those of a run without any fault."""
    return store_bytes(out) == store_bytes(expected) and files_of(out) == files_of(expected)


def test_language_that_was_away_while_extracting_is_tried_again(corpus: Path, expected: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(corpus, out, "scan")
    shutil.move(corpus / "en", tmp_path / "away")
    run(corpus, out, "extract")
    check_contract(out)
    assert ledger_of(out)["status"].value_counts().to_dict() == {"ok": 4, "failed": 4}
    assert "try again" not in shown(out), "the files are not there"
    run(corpus, out, "extract")
    shutil.move(tmp_path / "away", corpus / "en")
    assert "try again   4 recordings" in shown(out)
    assert extracted(run(corpus, out)).audio_s_new == pytest.approx(4 * 0.7)
    check_contract(out)
    assert same(out, expected)
    assert "try again" not in shown(out)


@pytest.mark.parametrize("cause", ["permission", "content"])
def test_recording_that_failed_is_tried_again_when_it_may_succeed(
    corpus: Path, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    out, path = tmp_path / "out", corpus / "de/anna/0.flac"
    run(corpus, out, "scan")
    whole = path.read_bytes()
    if cause == "permission":  # root, as whom tests may run, has every permission
        read_blocks = recording_reader.read_blocks

        def denied(source: audio.AudioSource, *rest: int, **options: bool) -> object:
            if source.container == str(path):
                raise AudioError("cannot be opened: Permission denied", transient=True)
            return read_blocks(source, *rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr(recording_reader, "read_blocks", denied)
            run(corpus, out, "extract")
    else:
        path.write_bytes(bytes(len(whole)))
        run(corpus, out, "extract")
        path.write_bytes(whole)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    assert ledger_of(out)["status"].value_counts().to_dict() == {"ok": 7, "failed": 1}
    assert "try again   1 recording " in shown(out)
    assert extracted(run(corpus, out)).audio_s_new == pytest.approx(0.7)
    check_contract(out)
    assert same(out, expected)


def test_recording_that_cannot_succeed_is_not_tried_again(corpus: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out", corpus / "de/anna/0.flac"
    run(corpus, out, "scan")
    path.write_bytes(bytes(path.stat().st_size))
    first = run(corpus, out, "extract").stages["extract"].finished_at
    before = (out / "run.json").stat().st_mtime_ns
    output = OutputFolder.at(str(out))
    assert not len(find_pending(output, plan_of(manifest_of(out), CONFIG)).shards)
    assert run(corpus, out, "extract").stages["extract"].finished_at == first
    assert (out / "run.json").stat().st_mtime_ns == before


def absurd(change: Callable[[pd.DataFrame, int], None], out: Path, name: str) -> pd.DataFrame:
    """Give a row of the manifest of `out` an absurd length, as a header made it before lengths were checked."""
    table = manifest_of(out)
    change(table, int(table.index[table["recording_id"] == name][0]))
    table["first_sequence"] = table["sequences"].cumsum() - table["sequences"]
    table.to_parquet(out / "manifest.parquet", index=False)
    output = OutputFolder.at(str(out))
    RunRecord(output).confirm("scan", "of another version", [output.manifest])
    return table


def make_absurd(table: pd.DataFrame, row: int) -> None:
    table.loc[row, ["frames", "sequences", "duration_s"]] = [2**56, 2**56 // 10, 2.0**60]


def test_store_that_an_absurd_length_was_appended_to_is_usable_after_the_next_scan(
    corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(corpus, out)
    make_corpus(corpus, {"de": {"cara": 2}}, seconds=0.85)
    run(corpus, out, "scan")
    table = absurd(make_absurd, out, "de/cara/1.flac")
    with pytest.raises(UsageError) as error:
        run(corpus, out, "extract")
    assert "no disk could hold a store of" in str(error.value)
    assert "the longest recording is de/cara/1.flac, " in str(error.value)
    assert "no disk could hold" in shown(out)
    assert int(table["sequences"].max()) * bytes_per_sequence(CONFIG) > 2**50
    run(corpus, out)
    check_contract(out)
    assert set(ledger_of(out)["status"]) == {"ok"}
    assert len(ledger_of(out)) == 10


def test_header_that_could_not_be_read_at_first_gets_a_place_in_a_finished_store(corpus: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out", corpus / "de/anna/0.flac"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    run(corpus, out)
    held, before = features_by_place(out), manifest_of(out)
    assert ledger_of(out)["status"].value_counts().to_dict() == {"ok": 7, "failed": 1}
    assert "try again" not in shown(out)
    arrive(path, whole)
    assert "try again   1 recording " in shown(out)
    make_corpus(corpus, {"de": {"cara": 1}}, seconds=0.75)
    state = run(corpus, out)
    assert extracted(state).audio_s_new == pytest.approx(2 * 0.7)
    check_contract(out)
    table = manifest_of(out)
    assert table["recording_id"][:8].tolist() == before["recording_id"].tolist()
    assert set(ledger_of(out)["status"]) == {"ok"}
    assert held.items() <= features_by_place(out).items()
    assert run(corpus, out).stages["scan"].key == state.stages["scan"].key
    run(corpus, out, "verify")
    run(corpus, tmp_path / "whole")
    run(corpus, out, "compact")
    check_contract(out)
    assert features_by_place(out) == features_by_place(tmp_path / "whole")


def arrive(path: Path, content: bytes) -> None:
    """Write a file that has the same size as before, and another time."""
    path.write_bytes(content)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def test_header_that_fails_again_leaves_the_store_as_it_is(corpus: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out", corpus / "de/anna/0.flac"
    size = path.stat().st_size
    path.write_bytes(bytes(size))
    run(corpus, out)
    before = store_bytes(out)
    arrive(path, b"x" * size)
    run(corpus, out)
    assert store_bytes(out) == before
    assert "try again" not in shown(out)
    log_of = run(corpus, out, "scan")
    assert not log_of.changed


def test_header_is_read_again_before_there_is_a_store(corpus: Path, expected: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out", corpus / "de/anna/0.flac"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    run(corpus, out, "scan")
    arrive(path, whole)
    run(corpus, out)
    assert same(out, expected)


def test_scan_that_is_killed_while_it_gives_a_recording_its_place_continues(
    corpus: Path, tmp_path: Path, kill_at: list[int]
) -> None:
    out, path = tmp_path / "out", corpus / "de/anna/0.flac"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    run(corpus, out)
    arrive(path, whole)
    for number in range(5):
        there = tmp_path / f"killed {number}"
        shutil.copytree(out, there)
        kill_at[0] = number
        with suppress(Killed):
            run(corpus, there, "scan")
        kill_at[0] = 10**9
        run(corpus, there)
        check_contract(there)
        assert set(ledger_of(there)["status"]) == {"ok"}


def test_append_that_is_scanned_twice_before_it_is_extracted(corpus: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out", corpus / "de/anna/0.flac"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    run(corpus, out)
    arrive(path, whole)
    run(corpus, out, "scan")
    make_corpus(corpus, {"de": {"cara": 1}}, seconds=0.75)
    run(corpus, out, "scan")
    run(corpus, out, "extract")
    check_contract(out)
    assert set(ledger_of(out)["status"]) == {"ok"}
    assert len(ledger_of(out)) == 9


def test_absurd_recording_that_was_taken_away_is_no_longer_in_the_manifest(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(corpus, out)
    before = manifest_of(out)
    make_corpus(corpus, {"de": {"cara": 1}}, seconds=0.85)
    run(corpus, out, "scan")
    absurd(make_absurd, out, "de/cara/0.flac")
    shutil.rmtree(corpus / "de/cara")
    run(corpus, out)
    check_contract(out)
    pd.testing.assert_frame_equal(manifest_of(out), before)


def test_append_with_an_impossible_length_is_taken_out_of_a_finished_store(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(corpus, out)
    held = features_by_place(out)
    make_corpus(corpus, {"de": {"cara": 2}}, seconds=0.85)
    shutil.copytree(out, tmp_path / "expected")
    run(corpus, tmp_path / "expected")
    run(corpus, out, "scan")
    absurd(make_five_seconds_long, out, "de/cara/1.flac")
    run(corpus, out, "extract")
    assert manifest_of(out)["sequences"].max() == 50
    monkeypatch.setattr(scan_stage, "MAX_SAMPLES_PER_BYTE", 1)  # noise takes more bytes than samples
    monkeypatch.setattr(scan_stage, "MAX_SAMPLES_OF_NOTHING", 0)
    (out / "run.json").unlink()  # as if another version had scanned
    run(corpus, out)
    check_contract(out)
    assert held.items() <= features_by_place(out).items()
    assert same(out, tmp_path / "expected")


def make_five_seconds_long(table: pd.DataFrame, row: int) -> None:
    table.loc[row, ["frames", "sequences", "duration_s"]] = [501, 50, 5.0]


def test_extraction_that_is_killed_while_it_tries_again_continues(
    corpus: Path, expected: Path, tmp_path: Path, kill_at: list[int]
) -> None:
    out = tmp_path / "out"
    run(corpus, out, "scan")
    shutil.move(corpus / "en/dave", tmp_path / "away")
    run(corpus, out, "extract")
    shutil.move(tmp_path / "away", corpus / "en/dave")
    for number in (0, 1, 3, 7, 12):
        there = tmp_path / f"killed {number}"
        shutil.copytree(out, there)
        kill_at[0] = number
        with suppress(Killed):
            run(corpus, there, "extract")
        kill_at[0] = 10**9
        run(corpus, there, "extract")
        assert same(there, expected)
        shutil.rmtree(there)
