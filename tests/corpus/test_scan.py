"""Scanning: files whose headers end the process that reads them."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.corpus import scan as scanning
from pipeline.corpus.listing import list_recordings
from pipeline.corpus.scan import scan
from pipeline.outputs import OutputFolder
from pipeline.runtime.executor import Executor, SerialExecutor
from tests.conftest import make_corpus
from tests.support.poison import DeadlyExecutor


def scanned(corpus: Path, out: Path, executor: Executor) -> pd.DataFrame:
    output = OutputFolder.at(str(out))
    return scan(list_recordings(str(corpus)), output, PipelineConfig(), executor, CorpusConfig())


@pytest.mark.parametrize("workers", [1, 3])
def test_file_whose_header_ends_its_worker_is_unreadable_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(scanning, "HEADERS_PER_TASK", 4)
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
