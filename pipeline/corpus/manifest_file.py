"""The manifest as a file of row groups: a reader holds their statistics, and reads the row groups that it needs."""

import io
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from typing import IO, Any, Final, NamedTuple, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet
from upath import UPath

from pipeline.corpus.manifest import NOT_READ, OLDER, REPEATED, ROWS_PER_GROUP, SCHEMA, UNDIGESTED, label_names
from pipeline.corpus.sources import PART_COLUMNS
from pipeline.digests import columns_digest, value_digest
from pipeline.errors import UsageError, few
from pipeline.schema import MANIFEST_COLUMNS
from pipeline.storage import BACKUP, is_local, reading_table

COLUMNS: Final = (
    "recording_id", "uri", *PART_COLUMNS, "label", "split", "duration_s", "sequences", "first_sequence", "size_bytes",
    "append_index", "masked",
)  # fmt: skip
"""The columns that a plan is made of."""
NAMED: Final = 3
"""Recordings that a message names."""
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
    """An open manifest. It may be read by several threads.

    Tables are read without pyarrow's threads, which can outlive Python's exit and abort it (Arrow issue 34314).

    It holds some kilobytes for each row group, and no rows.
    """

    def __init__(self, source: str | IO[bytes] | pa.NativeFile, path: UPath) -> None:
        self.path, self._source, self._lock = path, source, threading.Lock()
        with reading_table(path, BACKUP):
            self._file = parquet.ParquetFile(source, pre_buffer=False)
            self._names = tuple(self._file.schema_arrow.names)
        _check_columns(path, self._names)
        with reading_table(path, BACKUP):
            self.groups = tuple(_row_groups(self._file.metadata))
            self._rows = int(self._file.metadata.num_rows)
        self._stop_append: int | None = None
        self._digests: dict[int | None, str] = {}

    @classmethod
    def at(cls, path: UPath, *, whole: bool = False) -> Self:
        """Open the manifest at a path or URL.

        With `whole`, one at a URL is copied to a temporary file first, for passes over all rows. Raises
        FileNotFoundError, PipelineError for one that is damaged, and UsageError for one that lacks columns.
        """
        path.stat()
        if is_local(path):
            return cls(str(path), path)
        if not whole:
            return cls(path.open("rb"), path)
        with tempfile.NamedTemporaryFile() as copied, path.open("rb") as remote:
            shutil.copyfileobj(remote, copied)
            copied.flush()
            return cls(pa.OSFile(copied.name), path)  # its content stays until it is closed, without a name

    @classmethod
    def of(cls, manifest: pd.DataFrame, rows_per_group: int = ROWS_PER_GROUP) -> Self:
        """Return the file of a manifest that is written nowhere."""
        buffer = io.BytesIO()
        manifest.to_parquet(buffer, index=False, row_group_size=rows_per_group, use_dictionary=REPEATED)
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
        return self._rows

    def before(self, append_index: int) -> Self:
        """Return the manifest without the appends from `append_index` on.

        Where a row of a later append stands among the others, it keeps its place as a recording that has failed.
        """
        found, rows = len(self.groups), 0
        while found and not rows:
            found -= 1
            group = self.groups[found]
            if group.first_append < append_index:
                held = np.flatnonzero(self.read(found, ("append_index",))["append_index"] < append_index)
                rows = group.first_row + int(held[-1]) + 1 if len(held) else 0
        before = copy(self)
        before.groups, before._rows = self.groups[: found + 1] if rows else (), rows
        before._stop_append, before._digests = append_index, {}
        return before

    def read(self, group: int, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
        """Return columns of the rows of a row group; the index has their numbers in the manifest."""
        first = self.groups[group].first_row
        with reading_table(self.path, BACKUP):
            read: pd.DataFrame = self._read(group, columns).to_pandas(use_threads=False)
            older = {name: OLDER[name] for name in columns if name not in read}
            return read.set_index(pd.RangeIndex(first, first + len(read))).assign(**older)[list(columns)]

    def tables(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Yield columns of all rows, one row group after the other; the index has their numbers in the manifest."""
        return (self.read(group, columns) for group in range(len(self.groups)))

    def table(self, group: int) -> pa.Table:
        """Return all columns of a row group, with the types of SCHEMA."""
        with reading_table(self.path, BACKUP):
            found = self._read(group, MANIFEST_COLUMNS)
            for name, value in OLDER.items():
                if name not in found.column_names:
                    found = found.append_column(name, pa.repeat(value, len(found)))
            return found.select(SCHEMA.names).cast(SCHEMA)

    def whole_tables(self) -> Iterator[pa.Table]:
        """Yield `table` of each row group; the next one is read meanwhile."""
        with ThreadPoolExecutor(1, "manifest") as pool:
            reads = (pool.submit(self.table, number) for number in range(len(self.groups)))
            coming = next(reads, None)
            while coming is not None:
                found, coming = coming.result(), next(reads, None)
                yield found

    def numbered_tables(self) -> Iterator[pa.Table]:
        """Yield all columns of all rows, and the number of each row in the manifest as `row`."""
        for group, table in zip(self.groups, self.whole_tables(), strict=True):
            rows = range(group.first_row, group.first_row + len(table))
            yield table.append_column("row", pa.array(rows, pa.int64()))

    def local_file(self) -> str | None:
        """Return the path of the file on this machine that holds these rows and no others, None if there is none."""
        whole = self._stop_append is None and set(MANIFEST_COLUMNS) <= set(self._names)
        return self._source if isinstance(self._source, str) and whole else None

    def rows(self, numbers: Sequence[int] | NDArray[np.int64], columns: Sequence[str]) -> pd.DataFrame:
        """Return columns of the rows with these numbers, in rising order; raises ValueError for no numbers."""
        wanted = np.unique(np.asarray(numbers, np.int64))
        group = np.searchsorted([group.first_row for group in self.groups], wanted, side="right") - 1
        pieces = (self.read(each, columns).loc[wanted[group == each]] for each in np.unique(group).tolist())
        found: pd.DataFrame = pd.concat(pieces)
        return found

    def names(self, numbers: Sequence[int] | NDArray[np.int64]) -> str:
        """Return the ids of the first of some recordings and the number of the others, for a message of one line.

        `numbers` are their rows in rising order, of which there is at least one.
        """
        first = self.rows(numbers[:NAMED], ["recording_id"])["recording_id"]
        return few(first.tolist(), NAMED, len(numbers))

    def digest(self, last_append: int | None = None) -> str:
        """Return a digest of the recordings of the appends up to `last_append`, by default of all, and their places.

        It does not depend on where the files lie, nor on which recordings are masked. A column counts only if it
        applies to a recording. It is computed from passes over single columns.
        """
        if last_append not in self._digests:
            rows = self._rows
            if last_append is not None:
                rows = sum(len(chunk) for chunk in self._column("append_index", last_append))
            columns = (name for name in self._names if name not in UNDIGESTED)
            with reading_table(self.path, BACKUP):
                digest = columns_digest({name: partial(self._column, name, last_append) for name in columns}, rows)
            self._digests[last_append] = digest
        return self._digests[last_append]

    def appends_of(self, digest: str) -> int | None:
        """Return the last append of the first ones whose digest is `digest`, None if there is no such one."""
        return next((last for last in range(self.last_append, -1, -1) if self.digest(last) == digest), None)

    def extends(self, earlier_digest: str) -> bool:
        """Whether this is the manifest with the digest `earlier_digest` and one or more appends."""
        last = self.appends_of(earlier_digest)
        return last is not None and last < self.last_append

    @property
    def last_append(self) -> int:
        """The largest index of an append; 0 if nothing was appended."""
        last = 0
        for number, group in enumerate(self.groups):
            if group.last_append > last:
                last = max(last, int(self.read(number, ("append_index",))["append_index"].max()))
        return last

    def _read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Return those of the columns that the file has."""
        names = [name for name in columns if name in self._names]
        if not names or self._stop_append is not None:
            names = list(dict.fromkeys([*names, "append_index"]))
        with self._lock:
            read = self._file.read_row_group(group, names, use_threads=False)
        if self._stop_append is None:
            return read
        read = read.slice(0, self._rows - self.groups[group].first_row)
        held = pc.less(read["append_index"], self._stop_append)
        for name, value in NOT_READ.items():
            if name in read.column_names and not pc.all(held).as_py():
                column = read[name].cast(pa.string()) if pa.types.is_null(read[name].type) else read[name]
                replaced = pc.if_else(held, column, pa.scalar(value, column.type))
                read = read.set_column(read.column_names.index(name), name, replaced)
        return read

    def _column(self, name: str, last_append: int | None) -> Iterator[pa.Array]:
        """Yield a column of the rows of the appends up to `last_append`."""
        for number, group in enumerate(self.groups):
            if last_append is None or group.last_append <= last_append:
                yield from self._read(number, [name])[name].chunks
            elif group.first_append <= last_append:
                read = self._read(number, [name, "append_index"])
                yield from read.filter(pc.less_equal(read["append_index"], last_append))[name].chunks

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


def _check_columns(path: UPath, names: Sequence[str]) -> None:
    missing = [name for name in MANIFEST_COLUMNS if name not in (*names, *OLDER)]
    if missing:
        raise UsageError(
            f"{path} was written by another version of the pipeline: it has no column {few(missing)}; choose another "
            "--out"
        )


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
