"""Reading the headers of some files, on a worker."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import CorpusConfig
from pipeline.features.audio import AudioError, read_header
from pipeline.features.audio_source import AudioSource

HEADERS: Final = pa.schema([
    ("row", pa.int64()), ("samples", pa.int64()), ("sample_rate_hz", pa.int32()), ("channels", pa.int32()),
    ("error", pa.string()), ("transient", pa.bool_()),
])  # fmt: skip
"""Columns of headers. `row` is the row of the file in the listing. Where a file has no header, `error` is the reason
and the numbers are 0. `transient` is true if the file system is the cause."""

LIMIT_S: Final = 60.0
LIMIT_PER_FILE_S: Final = 1.0
MIN_BYTES_PER_S: Final = 1e6
"""A task may take LIMIT_S, LIMIT_PER_FILE_S for each file, and the time to read all of the files at this speed."""


class Files(NamedTuple):
    """Files of a listing."""

    rows: NDArray[np.int64]
    """Their rows in the listing."""
    sources: Sequence[AudioSource]
    size_bytes: NDArray[np.int64]

    def part(self, start: int, stop: int) -> "Files":
        """Return the files [start, stop)."""
        return Files(self.rows[start:stop], self.sources[start:stop], self.size_bytes[start:stop])

    @property
    def limit_s(self) -> float:
        """How long reading their headers may take."""
        return LIMIT_S + LIMIT_PER_FILE_S * len(self.rows) + int(self.size_bytes.sum()) / MIN_BYTES_PER_S


def read_headers(files: Files, *, corpus: CorpusConfig) -> pa.Table:
    """Return the headers of audio files: one row per file, the columns HEADERS.

    A file that cannot be used has the reason in the column `error`.
    """
    found = [_header_row(source, corpus) for source in files.sources]
    columns = [files.rows, *(zip(*found, strict=True) if found else [[]] * (len(HEADERS) - 1))]
    return pa.table([pa.array(*pair) for pair in zip(columns, HEADERS.types, strict=True)], schema=HEADERS)


def without_header(files: Files, reason: str) -> pa.Table:
    """Return the headers of files that were not read, for a reason."""
    found = [{"row": row, "samples": 0, "sample_rate_hz": 0, "channels": 0, "error": reason, "transient": False}
             for row in files.rows.tolist()]  # fmt: skip
    return pa.Table.from_pylist(found, HEADERS)


def _header_row(source: AudioSource, corpus: CorpusConfig) -> tuple[int, int, int, str | None, bool]:
    try:
        header = read_header(source, corpus.min_sample_rate_hz)
    except AudioError as error:
        return 0, 0, 0, str(error), error.transient
    return header.samples, header.sample_rate_hz, header.channels, None, False
