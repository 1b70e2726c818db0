"""Scanning: files whose headers end the process that reads them."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from upath import UPath

from pipeline.config import PipelineConfig
from pipeline.corpus import header_task, headers
from pipeline.features.audio_source import AudioSource
from pipeline.features.header import Header
from pipeline.outputs import OutputFolder
from pipeline.runtime.executor import Executor, SerialExecutor
from tests.conftest import make_corpus
from tests.support import scans
from tests.support.poison import DeadlyExecutor


def scanned(corpus: Path, out: Path, executor: Executor) -> pd.DataFrame:
    return scans.scanned(corpus, OutputFolder.at(str(out)), PipelineConfig(), executor)


@pytest.mark.parametrize("workers", [1, 3])
def test_file_whose_header_ends_its_worker_is_unreadable_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(headers, "HEADERS_PER_TASK", 4)
    corpus = make_corpus(tmp_path / "corpus", {"de": {"anna": 5, "bert": 2}, "en": {"dora": 3, "emil": 2}})
    sound = scanned(corpus, tmp_path / "sound", SerialExecutor()).set_index("recording_id")

    def dies(files: Any) -> bool:
        return any(source.container.endswith(("anna/3.flac", "dora/0.flac")) for source in files[1])

    found = scanned(corpus, tmp_path / "out", DeadlyExecutor(dies, workers)).set_index("recording_id")
    errors = found["error"].dropna()
    assert dict(errors) == dict.fromkeys(["de/anna/3.flac", "en/dora/0.flac"], "crash: the process that reads it dies")
    columns = ["sample_rate_hz", "channels", "duration_s", "frames", "sequences", "size_bytes"]
    others = found.index.difference(errors.index)
    pd.testing.assert_frame_equal(found.loc[others, columns], sound.loc[others, columns])


class Ends(BaseException):
    """The end of a scan."""


def test_scan_that_was_ended_reads_only_the_headers_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "HEADERS_PER_TASK", 2)
    monkeypatch.setattr(headers, "TASKS_AT_ONCE", 2)
    corpus = make_corpus(tmp_path / "corpus", {"de": {"anna": 5, "bert": 2}, "en": {"dora": 3, "emil": 2}})
    damaged = corpus / "de" / "anna" / "1.flac"
    damaged.write_bytes(b"rubbish")
    expected = scanned(corpus, tmp_path / "undisturbed", SerialExecutor())
    read: list[str] = []
    read_header, calls = header_task.read_header, 0

    def counted(source: AudioSource, floor_hz: int) -> Header:
        nonlocal calls
        read.append(source.container)
        calls += 1
        if calls == 10:
            raise Ends
        return read_header(source, floor_hz)

    monkeypatch.setattr(header_task, "read_header", counted)
    with pytest.raises(Ends):
        scanned(corpus, tmp_path / "out", SerialExecutor())
    kept = list((tmp_path / "out" / "headers").iterdir())
    assert len(kept) == 2
    first = set(read[:8]) - {str(damaged)}  # what could not be read is tried again
    del read[:]
    monkeypatch.setattr(
        header_task, "read_header", lambda *given: (read.append(given[0].container), read_header(*given))[1]
    )
    pd.testing.assert_frame_equal(scanned(corpus, tmp_path / "out", SerialExecutor()), expected)
    assert not first.intersection(read)
    assert len(first) + len(read) == len(expected)
    assert not (tmp_path / "out" / "headers").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_headers_that_are_damaged_or_of_other_files_are_read_again(tmp_path: Path, damage: str) -> None:
    rows = {"row": range(100), "samples": range(100), "sample_rate_hz": [16_000] * 100, "channels": [1] * 100}
    table = pa.table({**rows, "error": [None] * 100, "transient": [False] * 100}).cast(header_task.HEADERS)
    kept = headers.KeptHeaders(UPath(str(tmp_path)), "key")
    kept.write(table)
    assert list(kept.read()) == [table]
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 4] ^= 16
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    again = kept._replace(key="another") if damage == "other" else kept
    assert list(again.read()) == []
    assert list(tmp_path.iterdir()) == []
