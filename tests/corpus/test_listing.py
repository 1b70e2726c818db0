"""The corpus: which files are recordings, what their place says of them, and corpora that are refused."""

import errno
import functools
import os
import shutil
import threading
import zipfile
from collections.abc import Iterable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from upath import UPath

from pipeline.corpus.layouts.folders import EXTENSIONS, FolderLayout
from pipeline.corpus.listing import LISTED
from pipeline.errors import UsageError
from tests.support.scans import Listed, listed


def files(root: Path, names: Iterable[str], content: bytes = b"abc") -> Path:
    """Write files with any content: listing opens none."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def refusal(corpus: Path | str) -> str:
    with pytest.raises(UsageError) as error:
        listed(str(corpus))
    return str(error.value)


def found(listing: Listed) -> list[tuple[str, str, str | None]]:
    rows = listing.recordings[["recording_id", "label", "speaker"]].itertuples(index=False, name=None)
    return [(name, label, None if pd.isna(speaker) else speaker) for name, label, speaker in rows]


def test_place_of_a_file_names_language_and_speaker(tmp_path: Path) -> None:
    files(tmp_path, ["de/anna/1.wav", "de/anna/2.flac", "en/bob/x.ogg"])
    listing = listed(str(tmp_path))
    assert tuple(listing.recordings.columns) == tuple(LISTED.names)
    assert listing.recordings.iloc[0].dropna().to_dict() == {
        "recording_id": "de/anna/1.wav", "uri": str(tmp_path / "de/anna/1.wav"), "label": "de", "speaker": "anna",
        "size_bytes": 3, "modified_ns": (tmp_path / "de/anna/1.wav").stat().st_mtime_ns,
    }  # fmt: skip
    assert found(listing) == [
        ("de/anna/1.wav", "de", "anna"),
        ("de/anna/2.flac", "de", "anna"),
        ("en/bob/x.ogg", "en", "bob"),
    ]
    assert listing.ignored == ()


def test_first_folder_below_the_language_is_the_speaker_at_any_depth(tmp_path: Path) -> None:
    files(tmp_path, ["de/1.wav", "de/anna/2.wav", "de/anna/monday/3.wav", "de/anna/monday/noon/4.wav", "en/5.wav"])
    assert [speaker for _, _, speaker in found(listed(str(tmp_path)))] == [None, "anna", "anna", "anna", None]


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
    assert (f"{folder}/Jörg  Müller/ä ö.wav", label, "Jörg  Müller") in found(listed(str(tmp_path)))


def test_files_that_are_no_recordings_are_told_apart(tmp_path: Path) -> None:
    files(tmp_path, ["README.md", "stray.wav", "de/1.wav", "de/anna/notes.txt", "de/anna/2", "en/1.wav", "en/wav"])
    listing = listed(str(tmp_path))
    assert list(listing.recordings["recording_id"]) == ["de/1.wav", "en/1.wav"]
    assert listing.ignored == ("README.md", "de/anna/2", "de/anna/notes.txt", "en/wav", "stray.wav")


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_extensions_count_in_any_case(tmp_path: Path, extension: str) -> None:
    files(tmp_path, [f"de/1{extension}", f"de/2{extension.upper()}", "en/x.wav"])
    assert len(listed(str(tmp_path)).recordings) == 3


def test_recordings_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    names = ["en/b/1.wav", "de/a/10.wav", "de/a/2.wav", "de/a.wav", "de/Z.wav"]
    listing = listed(str(files(tmp_path, names)))
    assert list(listing.recordings["recording_id"]) == sorted(names)


def test_relative_folder_is_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, ["c/de/1.wav", "c/en/1.wav"])
    monkeypatch.chdir(tmp_path)
    expected = listed(str(tmp_path / "c")).recordings
    for corpus in ("c", f"{tmp_path}/c/"):
        pd.testing.assert_frame_equal(listed(corpus).recordings, expected)


def test_corpus_behind_a_url_has_the_same_ids(tmp_path: Path, memory_url: str) -> None:
    names = ["de/anna/1.wav", "en/ä b/2.flac", "en/notes.txt"]
    files(tmp_path, names)
    for name in names:
        with fsspec.open(f"{memory_url}/c/{name}", "wb") as file:
            file.write(b"abc")
    here, there = listed(str(tmp_path)), listed(f"{memory_url}/c")
    assert found(there) == found(here)
    assert (there.digest, there.ignored) == (here.digest, here.ignored)
    with fsspec.open(there.recordings.loc[0, "uri"], "rb") as file:
        assert file.read() == b"abc"


def test_corpus_on_a_web_server_is_listed_from_its_pages(tmp_path: Path) -> None:
    files(tmp_path, ["de/anna/1.wav", "en/bob/2.flac", "en/notes.txt", "en/._2.flac"])
    handler = functools.partial(SilentHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        there = listed(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()
    here = listed(tmp_path)
    assert found(there) == found(here)
    assert (there.digest, there[1:4]) == (here.digest, here[1:4])


def test_empty_folder_of_an_archive_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name in ("de/1.wav", "en/anna/._1.wav", "en/anna/1.wav"):
            archive.writestr(name, b"abc")
        archive.mkdir("fr")
    listing = listed(f"zip://::file://{tmp_path}/c.zip")
    assert list(listing.recordings["recording_id"]) == ["de/1.wav", "en/anna/1.wav"]
    assert listing.hidden == ("en/anna/._1.wav",)
    assert listing.left_out == (("fr", "is empty, so it is no language"),)


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Log no request."""


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"--corpus {tmp_path / 'none'}: there is no such folder"


def test_file_is_no_corpus(tmp_path: Path) -> None:
    files(tmp_path, ["x.wav"])
    assert refusal(tmp_path / "x.wav").endswith("x.wav: is a file, not a folder")


@pytest.mark.parametrize("names", [[], ["de/notes.txt"], ["1.wav", "2.wav"]])
def test_folder_without_recordings_is_refused(tmp_path: Path, names: list[str]) -> None:
    assert refusal(files(tmp_path, names)) == (
        f"--corpus {tmp_path}: no recording in it; expected LANGUAGE/[SPEAKER/]file with one of "
        ".aif .aifc .aiff .au .caf .flac .mp3 .nist .oga .ogg .opus .rf64 .snd .sph .voc .w64 .wav"
    )


def test_single_language_is_refused(tmp_path: Path) -> None:
    assert refusal(files(tmp_path, ["de/anna/1.wav", "de/bert/1.wav"])) == (
        f"--corpus {tmp_path}: only one language, 'de'; a classifier needs at least two"
    )


def test_folders_that_give_one_label_are_refused(tmp_path: Path) -> None:
    assert refusal(files(tmp_path, ["a b/1.wav", "a_b/1.wav", "en/1.wav"])) == (
        f"--corpus {tmp_path}: the folders 'a b' and 'a_b' both give the label 'a_b'; rename one"
    )


def unusable(listing: Listed) -> dict[str, str]:
    rows = listing.recordings[listing.recordings["unusable"].notna()]
    return dict(zip(rows["recording_id"], rows["unusable"], strict=True))


def test_recording_whose_name_is_not_utf_8_is_listed_with_the_reason(tmp_path: Path) -> None:
    files(tmp_path, ["de/1.wav", "en/1.wav"])
    for name in (b"de/\xe4.wav", b"fran\xe7ais/s/1.wav", b"de/\xe4.txt"):
        (tmp_path / os.fsdecode(name)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / os.fsdecode(name)).touch()
    listing = listed(str(tmp_path))
    assert set(listing.recordings["label"]) == {"de", "en", r"fran\xe7ais"}
    assert unusable(listing) == {
        r"de/\xe4.wav": r"its name is not UTF-8 (de/\xe4.wav); rename it",
        r"fran\xe7ais/s/1.wav": r"its name is not UTF-8 (fran\xe7ais/s/1.wav); rename it",
    }
    assert listing.ignored == (r"de/\xe4.txt",)


HIDDEN = [
    ".DS_Store", ".Trash-1000/de/1.wav", "$RECYCLE.BIN/1.wav", "__MACOSX/de/._1.wav", "de/._1.wav", "lost+found/1.wav",
    "de/.ipynb_checkpoints/1.wav", "de/anna/@eaDir/1.wav", "System Volume Information/x", "de/Thumbs.db",
]  # fmt: skip


def test_hidden_and_system_files_are_counted_and_left_out(tmp_path: Path, memory_url: str) -> None:
    names = ["de/1.wav", "de/anna/..two.wav", "en/1.wav"]
    files(tmp_path, [*names, *HIDDEN])
    listing = listed(str(tmp_path))
    assert sorted(listing.recordings["recording_id"]) == sorted(names)
    assert (len(listing.hidden), listing.ignored, listing.left_out) == (len(HIDDEN), (), ())
    for name in (*names, *HIDDEN):
        with fsspec.open(f"{memory_url}/c/{name}", "wb") as file:
            file.write(b"abc")
    there = listed(f"{memory_url}/c")
    assert sorted(there.recordings["recording_id"]) == sorted(names)
    assert (len(there.hidden), there.ignored) == (len(HIDDEN), ())
    assert not FolderLayout().claims(UPath(str(files(tmp_path / "none", HIDDEN))))


def left_out(root: Path) -> dict[str, str]:
    return dict(listed(str(root)).left_out)


def test_real_folders_win_over_links_to_them(tmp_path: Path) -> None:
    corpus = files(tmp_path / "corpus", ["en/anna/1.wav", "it/bert/1.wav"])
    files(tmp_path / "lake", ["cara/1.wav"])
    for link, target in {
        "aa": "en", "en/guest": "../it/bert", "en/loop": "..", "it/up": "../..", "it/cara": "../../lake/cara",
        "it/more": "../../lake/cara",
    }.items():  # fmt: skip
        (corpus / link).symlink_to(target)
    listing = listed(str(corpus))
    assert list(listing.recordings["recording_id"]) == ["en/anna/1.wav", "it/bert/1.wav", "it/cara/1.wav"]
    assert dict(listing.left_out) == {
        "aa": "leads to en, which is listed already",
        "en/guest": "leads to it/bert, which is listed already",
        "en/loop": "leads to the corpus itself, which is listed already",
        "it/more": "leads to it/cara, which is listed already",
        "it/up": f"leads to {tmp_path}, which holds the corpus",
    }


def test_links_that_lead_nowhere_cost_themselves_alone(tmp_path: Path) -> None:
    files(tmp_path, ["en/anna/1.wav", "it/bert/1.wav"])
    for link, target in {
        "en/self.wav": "self.wav",
        "en/a": "b",
        "en/b": "a",
        "en/2.wav": "none",
        "fr": "none",
    }.items():
        (tmp_path / link).symlink_to(target)
    listing = listed(str(tmp_path))
    assert unusable(listing) == {
        "en/2.wav": "is a link to none, which does not exist",
        "en/self.wav": "cannot be opened: Too many levels of symbolic links",
    }
    assert dict(listing.left_out) == {
        "en/a": "cannot be opened: Too many levels of symbolic links",
        "en/b": "cannot be opened: Too many levels of symbolic links",
        "fr": "is a link to none, which does not exist",
    }


def test_folder_that_cannot_be_read_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, ["en/anna/1.wav", "en/bert/1.wav", "it/cara/1.wav"])
    scandir = os.scandir

    def denied(path: str) -> object:  # root, as whom tests may run, is never denied
        if str(path).endswith("/anna"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    listing = listed(str(tmp_path))
    assert list(listing.recordings["recording_id"]) == ["en/bert/1.wav", "it/cara/1.wav"]
    assert dict(listing.left_out) == {"en/anna": "cannot be read: Permission denied"}


def test_empty_folder_is_named(tmp_path: Path) -> None:
    files(tmp_path, ["en/1.wav", "it/1.wav", "docs/x.txt"])
    (tmp_path / "fr").mkdir()
    assert left_out(tmp_path) == {"fr": "is empty, so it is no language"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["fr/a/1.m4a", "fr/a/2.M4A", "fr/x.txt"], "nothing is read of the language 'fr': 2 .m4a, 1 .txt; convert"),
        (["EN/a/1.wav"], "the languages 'EN' and 'en' differ only in case or Unicode form and would be two; rename"),
        (["fran\u00e7ais/1.wav", "franc\u0327ais/1.wav"], r"the languages 'franc\u0327ais' and 'fran\xe7ais' differ"),
        (["en/Jos\u00e9/1.wav", "it/Jose\u0301/1.wav"], r"the speakers 'Jose\u0301' and 'Jos\xe9' differ only"),
    ],
)
def test_languages_that_would_be_lost_or_doubled_are_refused(tmp_path: Path, names: list[str], expected: str) -> None:
    message = refusal(files(tmp_path, ["en/a/1.wav", "it/b/1.wav", *names]))
    assert message.startswith(f"--corpus {tmp_path}: {expected}")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["en/clips/1.mp3", "it/clips/1.mp3", "it/clips/2.mp3"],
            "en, it: all recordings lie in 'clips', but a folder",
        ),
        (["en/train/a/1.wav", "en/dev/b/1.wav", "it/c/1.wav"], "en: all recordings lie in 'dev', 'train', but a"),
        (["en/all/1.wav", "it/all/1.wav"], "en, it: all recordings of every language lie in a folder 'all', which"),
        (["train/en/1.wav", "test/en/1.wav", "dev/it/2.wav"], "the folders dev, test, train look like splits, but"),
        (["ann/en/1.wav", "ann/it/1.wav", "bob/en/1.wav", "bob/it/1.wav"], "below each of ann, bob lie en, it, which"),
    ],
)
def test_folders_in_another_order_are_refused(tmp_path: Path, names: list[str], expected: str) -> None:
    assert refusal(files(tmp_path, names)).startswith(f"--corpus {tmp_path}: {expected}")


@pytest.mark.parametrize(
    "names",
    [
        ["en/ann/1.wav", "en/bob/1.wav", "it/ann/1.wav", "it/bob/1.wav"],
        ["en/al/1.wav", "en/bo/1.wav", "it/al/1.wav", "it/bo/1.wav"],
        ["en/1.wav", "en/2.wav", "it/3.wav"],
        ["en/clips/1.wav", "en/2.wav", "it/ann/1.wav"],
        ["en/ann/1.wav", "it/bob/1.wav"],
        ["test/ann/1.wav", "en/bob/1.wav"],
    ],
)
def test_bilingual_speakers_and_unknown_ones_are_no_mistake(tmp_path: Path, names: list[str]) -> None:
    assert len(listed(str(files(tmp_path, names))).recordings) == len(names)


@pytest.mark.parametrize(("kind", "reason"), [("zip", "File is not a zip file"), ("tar", "truncated header")])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, kind: str, reason: str) -> None:
    (tmp_path / "x").write_bytes(b"no archive")
    assert f"x cannot be opened: {reason}" in refusal(f"{kind}://::file://{tmp_path}/x")


@pytest.mark.parametrize("name", ["\u0645\u06cc\u200c\u0634\u0648\u062f", "a\u00a0b", "a\u0308", "\U0001f3a4"])
def test_any_script_and_its_joiners_may_be_in_a_name(tmp_path: Path, name: str) -> None:
    files(tmp_path, [f"fa/{name}/{name}.wav", "en/1.wav"])
    assert (f"fa/{name}/{name}.wav", "fa", name) in found(listed(str(tmp_path)))


def test_digest_is_equal_for_a_copy_in_another_place(tmp_path: Path) -> None:
    files(tmp_path / "a", ["de/anna/1.wav", "en/ä/2.wav", "en/notes.txt"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    here, there = listed(str(tmp_path / "a")), listed(str(tmp_path / "b"))
    assert here.digest == there.digest
    assert not here.recordings.equals(there.recordings)


@pytest.mark.parametrize("change", ["size", "name", "more", "less"])
def test_digest_changes_with_names_and_sizes(tmp_path: Path, change: str) -> None:
    files(tmp_path, ["de/1.wav", "de/2.wav", "en/1.wav"])
    before = listed(str(tmp_path)).digest
    if change == "size":
        (tmp_path / "de/1.wav").write_bytes(b"abcd")
    elif change == "name":
        (tmp_path / "de/1.wav").rename(tmp_path / "de/3.wav")
    elif change == "more":
        files(tmp_path, ["de/3.wav"])
    else:
        (tmp_path / "de/1.wav").unlink()
    assert listed(str(tmp_path)).digest != before


def test_digest_leaves_out_files_that_are_no_recordings(tmp_path: Path) -> None:
    files(tmp_path, ["de/1.wav", "en/1.wav"])
    before = listed(str(tmp_path)).digest
    files(tmp_path, ["de/notes.txt"])
    assert listed(str(tmp_path)).digest == before
