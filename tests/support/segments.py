"""A layout of long files whose segments a table names, for tests; and a count of opened files."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import pytest
import soundfile
from upath import UPath

from pipeline.corpus.layouts import registry
from pipeline.corpus.layouts.protocol import Ignored, Recording
from pipeline.features import audio, audio_file
from pipeline.features.audio_source import AudioSource
from tests.conftest import noise

TABLE = "segments.csv"


class Row(NamedTuple):
    """A line of the table: seconds [start_s, stop_s) of `file`, which is in the language `label`."""

    file: str
    start_s: float
    stop_s: float
    label: str
    speaker: str | None


class SegmentLayout:
    """Long files beside segments.csv, which has the columns of `Row`."""

    name = "segments"
    expected = TABLE

    def claims(self, root: UPath) -> bool:
        """Whether there is a table."""
        return bool((root / TABLE).exists())

    def recordings(self, root: UPath) -> Iterator[Recording | Ignored]:
        """Yield the lines of the table, and the table."""
        yield Ignored(TABLE)
        for row in pd.read_csv(str(root / TABLE)).itertuples():
            path = Path(str(root / row.file))
            source = AudioSource(str(path), None, row.start_s, row.stop_s)
            id_ = f"{row.file}#{row.start_s:08.3f}-{row.stop_s:08.3f}"
            speaker = None if pd.isna(row.speaker) else row.speaker
            yield Recording(id_, source, row.label, speaker, path.stat().st_size)


def use_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `SegmentLayout` as the only layout."""
    monkeypatch.setattr(registry, "LAYOUTS", {SegmentLayout.name: SegmentLayout()})


def write_table(corpus: Path, rows: Sequence[Row]) -> None:
    """Write segments.csv."""
    pd.DataFrame(rows).to_csv(corpus / TABLE, index=False)


def write_long_file(path: Path, seconds: float, sample_rate_hz: int) -> None:
    """Write noise whose level changes with time, so that segments differ in their peak."""
    samples = noise(path.name, round(seconds * sample_rate_hz))
    level = np.repeat(np.random.default_rng(1).uniform(0.01, 1.0, round(seconds) + 1), sample_rate_hz)[: len(samples)]
    soundfile.write(path, samples * level, sample_rate_hz)


def random_rows(file: str, label: str, seconds: float, number: int, speakers: Sequence[str | None]) -> list[Row]:
    """Return segments of up to two seconds of a file; some touch, some overlap, and speakers take turns."""
    random = np.random.default_rng(number)
    starts = np.sort(np.round(random.uniform(0, seconds - 2.5, number), 3))
    lengths = np.round(random.uniform(0.3, 2.0, number), 3)
    spans = list(zip(starts.tolist(), (starts + lengths).round(3).tolist(), strict=True))
    spans[1::7] = [(before[1], before[1] + 0.5) for before in spans[:-1:7]][: len(spans[1::7])]
    unique = sorted(set(spans))
    return [Row(file, *span, label, speakers[i % len(speakers)]) for i, span in enumerate(unique)]


def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the path of every audio file is appended when it is opened."""
    opened: list[str] = []
    opens = audio_file.open_stream

    def recorded(source: AudioSource) -> AbstractContextManager[tuple[BinaryIO, str | None]]:
        opened.append(source.container)
        return opens(source)

    for module in (audio, audio_file):
        monkeypatch.setattr(module, "open_stream", recorded)
    return opened
