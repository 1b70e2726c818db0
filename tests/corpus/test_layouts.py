"""Layouts: which one a folder has, and the listing of one that names segments."""

import pickle
from pathlib import Path

import pandas as pd
import pytest
from upath import UPath

from pipeline.config import PipelineConfig
from pipeline.corpus.layouts import registry
from pipeline.corpus.layouts.folders import FolderLayout
from pipeline.corpus.layouts.registry import find_layout
from pipeline.corpus.listing import LISTED
from pipeline.corpus.sources import AudioSources
from pipeline.errors import UsageError
from pipeline.features.audio_source import AudioSource
from tests.conftest import make_corpus
from tests.support.scans import Listed, build_manifest, compared, listed
from tests.support.segments import Row, SegmentLayout, use_segments, write_table


def test_folder_layout_claims_folders_of_recordings_alone(tmp_path: Path, memory_url: str) -> None:
    layout = FolderLayout()
    for name in ("de/notes.txt", "1.wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert not layout.claims(UPath(str(tmp_path)))
    (tmp_path / "de/anna").mkdir()
    (tmp_path / "de/anna/1.WAV").touch()
    assert layout.claims(UPath(str(tmp_path)))
    there = UPath(memory_url)
    assert not layout.claims(there)
    (there / "en/anna/1.flac").write_bytes(b"x")
    assert layout.claims(there)


def test_folder_with_two_layouts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LAYOUTS", {**registry.LAYOUTS, "segments": SegmentLayout()})
    make_corpus(tmp_path, {"de": {"": 1}, "en": {"": 1}})
    assert find_layout("corpus", UPath(str(tmp_path))).name == "folders"
    write_table(tmp_path, [])
    with pytest.raises(UsageError) as error:
        find_layout("corpus", UPath(str(tmp_path)))
    assert str(error.value) == (
        "--corpus corpus: the folder has more than one layout, folders and segments; keep the files of one"
    )


def test_folder_without_a_layout_is_refused_with_what_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "LAYOUTS", {**registry.LAYOUTS, "segments": SegmentLayout()})
    with pytest.raises(UsageError) as error:
        find_layout("corpus", UPath(str(tmp_path)))
    assert str(error.value).endswith("or segments.csv")


ROWS = [Row("a.wav", 0.0, 1.5, "de", "anna"), Row("a.wav", 1.5, 2.5, "de", "bert"), Row("b.wav", 3.0, 4.0, "en", None)]


def segments(folder: Path, rows: list[Row]) -> Listed:
    for name in ("a.wav", "b.wav"):
        (folder / name).write_bytes(b"abc")
    write_table(folder, rows)
    return listed(str(folder))


def test_segments_are_listed_with_their_file_and_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_segments(monkeypatch)
    listing = segments(tmp_path, ROWS)
    assert listing.ignored == ("segments.csv",)
    recordings = listing.recordings
    assert list(recordings) == LISTED.names
    assert recordings["recording_id"].tolist() == [
        "a.wav#0000.000-0001.500", "a.wav#0001.500-0002.500", "b.wav#0003.000-0004.000",
    ]  # fmt: skip
    assert recordings["member"].isna().all()
    assert recordings["speaker"].isna().tolist() == [False, False, True]
    sources = AudioSources(recordings)
    expected = [AudioSource(str(tmp_path / row.file), None, row.start_s, row.stop_s) for row in ROWS]
    assert list(sources) == expected
    assert list(sources[1:]) == list(pickle.loads(pickle.dumps(sources[1:]))) == expected[1:]
    assert sources.begins_container().tolist() == [True, False, True]


def test_digest_of_a_listing_changes_with_the_span_of_a_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_segments(monkeypatch)
    longer = [ROWS[0], ROWS[1]._replace(stop_s=2.6), ROWS[2]]
    assert segments(tmp_path, ROWS).digest == segments(tmp_path, ROWS).digest != segments(tmp_path, longer).digest


def test_two_recordings_of_one_id_are_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_segments(monkeypatch)
    with pytest.raises(UsageError) as error:
        segments(tmp_path, [*ROWS, ROWS[1]])
    twice = "a.wav#0001.500-0002.500"
    assert str(error.value) == f"--corpus {tmp_path}: two files are called {twice}; rename one"


def test_segment_with_another_span_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_segments(monkeypatch)
    recordings = segments(tmp_path, ROWS).recordings
    header = {"samples": 80_000, "sample_rate_hz": 16_000, "channels": 1, "error": None, "transient": False}
    manifest = build_manifest(recordings, pd.DataFrame([header] * len(ROWS)), PipelineConfig())
    assert not compared(manifest, tmp_path).any
    row = manifest.index[manifest["recording_id"] == recordings["recording_id"][1]]
    manifest.loc[row, "start_s"] = 1.25
    assert compared(manifest, tmp_path).changed == [recordings["recording_id"][1]]


def test_sources_are_those_of_the_rows() -> None:
    table = pd.DataFrame(
        {
            "recording_id": ["z#2", "a", "z#1", "t/1", "t/0", "t/0#1", "t/0#0"],
            "uri": ["z.wav", "a.wav", "z.wav", "t.tar", "t.tar", "t.tar", "t.tar"],
            "member": [None, None, None, "1.wav", "0.wav", "0.wav", "0.wav"],
            "start_s": [2.0, None, 1.0, None, None, 1.0, 0.0],
            "stop_s": [3.0, None, 2.0, None, None, 2.0, 1.0],
        }
    ).astype({"recording_id": "string", "uri": "string", "member": "string"})
    sources = AudioSources(table)
    assert sources[1] == AudioSource("a.wav")
    assert sources[3] == AudioSource("t.tar", "1.wav")
    assert sources[6] == AudioSource("t.tar", "0.wav", 0.0, 1.0)
    assert sources.begins_container().tolist() == [True, True, True, True, False, False, False]
