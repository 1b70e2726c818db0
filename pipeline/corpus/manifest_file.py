"""The manifest as a file of row groups: a reader holds their statistics, and reads the row groups that it needs."""

import io
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, NamedTuple, Self

import pandas as pd
from pyarrow import parquet
from upath import UPath

from pipeline.corpus.manifest import ROWS_PER_GROUP, label_names
from pipeline.corpus.sources import PART_COLUMNS
from pipeline.digests import value_digest
from pipeline.storage import BACKUP, is_local, reading_table

COLUMNS: Final = (
    "recording_id", "uri", *PART_COLUMNS, "label", "split", "duration_s", "sequences", "first_sequence", "size_bytes",
    "append_index", "masked",
)  # fmt: skip
"""The columns that a plan is made of."""
UNKNOWN: Final = 2**61
"""Stands for a bound that the file does not state."""


class RowGroup(NamedTuple):
    """What the statistics of a row group say.

    `first_row` is its first row. Its recordings have `most_sequences` or fewer, none before the sequence `start` or
    at and after `stop`, and belong to the appends `first_append` to `last_append`. `has_parts` and `has_masked` are
    true if there may be a recording that is not a whole file, or that is or was masked.
    """

    first_row: int
    most_sequences: int
    start: int
    stop: int
    first_append: int
    last_append: int
    has_parts: bool
    has_masked: bool


class ManifestFile:
    """An open manifest. It may be read by several threads."""

    def __init__(self, source: str | BinaryIO, path: UPath) -> None:
        self._path, self._lock = path, threading.Lock()
        with reading_table(path, BACKUP):
            self._file = parquet.ParquetFile(source, pre_buffer=False)
            self.groups = tuple(_row_groups(self._file.metadata))

    @classmethod
    def at(cls, path: UPath) -> Self:
        """Open the manifest at a path or URL; raises FileNotFoundError, or PipelineError for one that is damaged."""
        path.stat()
        return cls(str(path) if is_local(path) else path.open("rb"), path)

    @classmethod
    def of(cls, manifest: pd.DataFrame, rows_per_group: int = ROWS_PER_GROUP) -> Self:
        """Return the file of a manifest that is written nowhere."""
        buffer = io.BytesIO()
        manifest.to_parquet(buffer, index=False, row_group_size=rows_per_group)
        return cls(buffer, UPath("manifest.parquet"))

    @property
    def fingerprint(self) -> str:
        """A digest of the sizes and the statistics of all columns, by which another state of the file is noticed."""
        found = (
            (column.path_in_schema, column.total_compressed_size, column.num_values, column.statistics)
            for group in range(len(self.groups))
            for column in _columns(self._file.metadata.row_group(group))
        )
        return value_digest([(*rest, _described(statistics)) for *rest, statistics in found])

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def read(self, group: int, columns: tuple[str, ...] = COLUMNS) -> pd.DataFrame:
        """Return columns of the rows of a row group; the index has their numbers in the manifest."""
        with self._lock, reading_table(self._path, BACKUP):
            read = self._file.read_row_group(group, list(columns), use_threads=False)
        table: pd.DataFrame = read.to_pandas(use_threads=False)
        first = self.groups[group].first_row
        return table.set_index(pd.RangeIndex(first, first + len(table)))

    @property
    def sequences(self) -> int:
        """Number of sequences of all recordings."""
        stop = 0
        for group in sorted(range(len(self.groups)), key=lambda group: -self.groups[group].stop):
            if self.groups[group].stop <= stop:
                break
            rows = self.read(group, ("first_sequence", "sequences"))
            used = rows[rows["sequences"] > 0]
            stop = max(stop, int(used.sum(axis="columns").to_numpy().max(initial=0)))
        return stop

    def label_names(self) -> tuple[str, ...]:
        """Return the labels in the order of their codes (see `pipeline.corpus.manifest.label_names`)."""
        columns = ("label", "append_index")
        seen = [self.read(group, columns).drop_duplicates() for group in range(len(self.groups))]
        return label_names(pd.concat(seen)) if seen else ()


def _row_groups(metadata: Any) -> Iterator[RowGroup]:
    first_row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        found = {column.path_in_schema: column.statistics for column in _columns(group)}
        start, last_start = _bounds(found["first_sequence"])
        _, most = _bounds(found["sequences"])
        first_append, last_append = _bounds(found["append_index"])
        yield RowGroup(
            first_row=first_row,
            most_sequences=most,
            start=start,
            stop=last_start + most,
            first_append=first_append,
            last_append=last_append,
            has_parts=any(_has_values(found[name], group.num_rows) for name in PART_COLUMNS),
            has_masked=_has_values(found["masked"], group.num_rows),
        )
        first_row += group.num_rows


def _columns(group: Any) -> Iterator[Any]:
    return (group.column(i) for i in range(group.num_columns))


def _described(statistics: Any) -> list[str]:
    return [] if statistics is None else [str(statistics.min), str(statistics.max), str(statistics.null_count)]


def _bounds(statistics: Any) -> tuple[int, int]:
    """Return the smallest and the largest value of a column, or bounds that hold for any."""
    known = statistics is not None and statistics.has_min_max
    return (int(statistics.min), int(statistics.max)) if known else (0, UNKNOWN)


def _has_values(statistics: Any, rows: int) -> bool:
    """Whether a column may have a value in some of its rows."""
    return statistics is None or not statistics.has_null_count or bool(statistics.null_count < rows)
