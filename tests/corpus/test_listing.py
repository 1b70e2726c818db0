"""The corpus: which files are recordings, what their place says of them, and corpora that are refused."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from pipeline.corpus.layouts.folders import EXTENSIONS
from pipeline.corpus.listing import COLUMN_TYPES, Listing, list_recordings
from pipeline.errors import UsageError


def files(root: Path, names: Iterable[str], content: bytes = b"abc") -> Path:
    """Write files with any content: listing opens none."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def refusal(corpus: Path | str) -> str:
    with pytest.raises(UsageError) as error:
        list_recordings(str(corpus))
    return str(error.value)


def found(listing: Listing) -> list[tuple[str, str, str | None]]:
    rows = listing.recordings[["recording_id", "label", "speaker"]].itertuples(index=False, name=None)
    return [(name, label, None if pd.isna(speaker) else speaker) for name, label, speaker in rows]


def test_place_of_a_file_names_language_and_speaker(tmp_path: Path) -> None:
    files(tmp_path, ["de/anna/1.wav", "de/anna/2.flac", "en/bob/x.ogg"])
    listing = list_recordings(str(tmp_path))
    assert tuple(listing.recordings.columns) == tuple(COLUMN_TYPES)
    assert listing.recordings.iloc[0].dropna().to_dict() == {
        "recording_id": "de/anna/1.wav", "uri": str(tmp_path / "de/anna/1.wav"), "label": "de", "speaker": "anna",
        "size_bytes": 3,
    }  # fmt: skip
    assert found(listing) == [
        ("de/anna/1.wav", "de", "anna"),
        ("de/anna/2.flac", "de", "anna"),
        ("en/bob/x.ogg", "en", "bob"),
    ]
    assert listing.ignored == ()


def test_first_folder_below_the_language_is_the_speaker_at_any_depth(tmp_path: Path) -> None:
    files(tmp_path, ["de/1.wav", "de/anna/2.wav", "de/anna/monday/3.wav", "de/anna/monday/noon/4.wav", "en/5.wav"])
    assert [speaker for _, _, speaker in found(list_recordings(str(tmp_path)))] == [None, "anna", "anna", "anna", None]


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("Hoch deutsch", "Hoch_deutsch"),
        ("Österreichisch", "Österreichisch"),
        ("<script>alert(1)<", "<script>alert(1)<"),
    ],
)
def test_labels_are_folder_names_without_white_space(tmp_path: Path, folder: str, label: str) -> None:
    files(tmp_path, [f"{folder}/Jörg  Müller/ä ö.wav", "en/x.wav"])
    assert (f"{folder}/Jörg  Müller/ä ö.wav", label, "Jörg  Müller") in found(list_recordings(str(tmp_path)))


def test_files_that_are_no_recordings_are_told_apart(tmp_path: Path) -> None:
    files(tmp_path, ["README.md", "stray.wav", "de/1.wav", "de/anna/notes.txt", "de/anna/2", "en/1.wav", "en/wav"])
    listing = list_recordings(str(tmp_path))
    assert list(listing.recordings["recording_id"]) == ["de/1.wav", "en/1.wav"]
    assert listing.ignored == ("README.md", "de/anna/2", "de/anna/notes.txt", "en/wav", "stray.wav")


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_extensions_count_in_any_case(tmp_path: Path, extension: str) -> None:
    files(tmp_path, [f"de/1{extension}", f"de/2{extension.upper()}", "en/x.wav"])
    assert len(list_recordings(str(tmp_path)).recordings) == 3


def test_recordings_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    names = ["en/b/1.wav", "de/a/10.wav", "de/a/2.wav", "de/a.wav", "de/Z.wav"]
    listing = list_recordings(str(files(tmp_path, names)))
    assert list(listing.recordings["recording_id"]) == sorted(names)


def test_relative_folder_is_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, ["c/de/1.wav", "c/en/1.wav"])
    monkeypatch.chdir(tmp_path)
    expected = list_recordings(str(tmp_path / "c")).recordings
    for corpus in ("c", f"{tmp_path}/c/"):
        pd.testing.assert_frame_equal(list_recordings(corpus).recordings, expected)


def test_corpus_behind_a_url_has_the_same_ids(tmp_path: Path, memory_url: str) -> None:
    names = ["de/anna/1.wav", "en/ä b/2.flac", "en/notes.txt"]
    files(tmp_path, names)
    for name in names:
        with fsspec.open(f"{memory_url}/c/{name}", "wb") as file:
            file.write(b"abc")
    here, there = list_recordings(str(tmp_path)), list_recordings(f"{memory_url}/c")
    assert found(there) == found(here)
    assert (there.digest, there.ignored) == (here.digest, here.ignored)
    with fsspec.open(there.recordings.loc[0, "uri"], "rb") as file:
        assert file.read() == b"abc"


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"--corpus {tmp_path / 'none'}: there is no such folder"


def test_file_is_no_corpus(tmp_path: Path) -> None:
    files(tmp_path, ["x.wav"])
    assert refusal(tmp_path / "x.wav").endswith("there is no such folder")


@pytest.mark.parametrize("names", [[], ["de/notes.txt"], ["1.wav", "2.wav"]])
def test_folder_without_recordings_is_refused(tmp_path: Path, names: list[str]) -> None:
    assert refusal(files(tmp_path, names)) == (
        f"--corpus {tmp_path}: no recording in it; expected LANGUAGE/[SPEAKER/]file with one of "
        ".flac .mp3 .oga .ogg .opus .wav"
    )


def test_single_language_is_refused(tmp_path: Path) -> None:
    assert refusal(files(tmp_path, ["de/anna/1.wav", "de/bert/1.wav"])) == (
        f"--corpus {tmp_path}: only one language, 'de'; a classifier needs at least two"
    )


def test_folders_that_give_one_label_are_refused(tmp_path: Path) -> None:
    assert refusal(files(tmp_path, ["a b/1.wav", "a_b/1.wav", "en/1.wav"])) == (
        f"--corpus {tmp_path}: the folders 'a b' and 'a_b' both give the label 'a_b'; rename one"
    )


def test_names_in_another_encoding_are_told_apart(tmp_path: Path) -> None:
    files(tmp_path, ["de/1.wav", "en/1.wav"])
    (tmp_path / "de" / os.fsdecode(b"\xe4.wav")).touch()
    listing = list_recordings(str(tmp_path))
    assert list(listing.recordings["recording_id"]) == ["de/1.wav", "en/1.wav"]
    assert listing.ignored == (r"'de/\udce4.wav'",)


@pytest.mark.parametrize("name", ["\u0645\u06cc\u200c\u0634\u0648\u062f", "a\u00a0b", "a\u0308", "\U0001f3a4"])
def test_any_script_and_its_joiners_may_be_in_a_name(tmp_path: Path, name: str) -> None:
    files(tmp_path, [f"fa/{name}/{name}.wav", "en/1.wav"])
    assert (f"fa/{name}/{name}.wav", "fa", name) in found(list_recordings(str(tmp_path)))


def test_digest_is_equal_for_a_copy_in_another_place(tmp_path: Path) -> None:
    files(tmp_path / "a", ["de/anna/1.wav", "en/ä/2.wav", "en/notes.txt"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    here, there = list_recordings(str(tmp_path / "a")), list_recordings(str(tmp_path / "b"))
    assert here.digest == there.digest
    assert not here.recordings.equals(there.recordings)


@pytest.mark.parametrize("change", ["size", "name", "more", "less"])
def test_digest_changes_with_names_and_sizes(tmp_path: Path, change: str) -> None:
    files(tmp_path, ["de/1.wav", "de/2.wav", "en/1.wav"])
    before = list_recordings(str(tmp_path)).digest
    if change == "size":
        (tmp_path / "de/1.wav").write_bytes(b"abcd")
    elif change == "name":
        (tmp_path / "de/1.wav").rename(tmp_path / "de/3.wav")
    elif change == "more":
        files(tmp_path, ["de/3.wav"])
    else:
        (tmp_path / "de/1.wav").unlink()
    assert list_recordings(str(tmp_path)).digest != before


def test_digest_leaves_out_files_that_are_no_recordings(tmp_path: Path) -> None:
    files(tmp_path, ["de/1.wav", "en/1.wav"])
    before = list_recordings(str(tmp_path)).digest
    files(tmp_path, ["de/notes.txt"])
    assert list_recordings(str(tmp_path)).digest == before
