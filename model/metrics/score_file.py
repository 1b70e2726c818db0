"""metrics/NAME.scores.parquet: a model's scores on the test split, one row per sequence in the order of the store.

A file is written and read in pieces, so memory does not depend on its length. Per-frame scores would take as many
times more space as a sequence has frames; of a model that classifies frames, the file has their confusion counts, as
metadata.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet
from upath import UPath

from pipeline.durable_files import replacing
from pipeline.errors import PipelineError

ROWS_PER_GROUP: Final = 2**16
"""Rows that are written and read at a time."""

LABELS, FRAME_CONFUSION = b"labels", b"frame_confusion"


@dataclass(frozen=True)
class ScoreBlock:
    """Scores of consecutive items, which are sequences or recordings; every array has one row per item.

    `recording` (item,) int64, the row of the manifest; `speaker` (item,) int64, a number for each speaker; `label`
    (item,) int64, the true language; `sequence` (item,) int64, the place in the store of the first sequence;
    `start_s` (item,) float64, from the start of the recording; `duration_s` (item,) float64; `log_posterior`
    (item, label) float32, -inf for a label that the model does not have.
    """

    recording: NDArray[np.int64]
    speaker: NDArray[np.int64]
    label: NDArray[np.int64]
    sequence: NDArray[np.int64]
    start_s: NDArray[np.float64]
    duration_s: NDArray[np.float64]
    log_posterior: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: slice) -> "ScoreBlock":
        return ScoreBlock(**{name: values[rows] for name, values in vars(self).items()})

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The label with the largest posterior: (item,) int64."""
        predicted: NDArray[np.int64] = self.log_posterior.argmax(axis=1)
        return predicted


def joined(blocks: Sequence[ScoreBlock]) -> ScoreBlock:
    """Return the items of several blocks as one block."""
    names = [field.name for field in fields(ScoreBlock)]
    return ScoreBlock(**{name: np.concatenate([getattr(block, name) for block in blocks]) for name in names})


def confusion_counts(true: NDArray[np.int64], predicted: NDArray[np.int64], labels: int) -> NDArray[np.int64]:
    """Return how often each label was taken for each label: (true label, predicted label) int64."""
    counts = np.bincount(true.ravel() * labels + predicted.ravel(), minlength=labels * labels)
    return counts.reshape(labels, labels).astype(np.int64)


class ScoreWriter:
    """Appends blocks to a file of scores; see `create`."""

    def __init__(self, writer: parquet.ParquetWriter, labels: int) -> None:
        self._writer, self._labels = writer, labels
        self._waiting: list[ScoreBlock] = []
        self._frame_confusion: NDArray[np.int64] | None = None

    def add(self, block: ScoreBlock, frames: NDArray[np.int64] | None = None) -> None:
        """Append a block of sequences; `frames` (sequence, timestep) has the predicted label of each frame."""
        if frames is not None:
            true = np.repeat(block.label, frames.shape[1])
            counts = confusion_counts(true, frames, self._labels)
            self._frame_confusion = counts if self._frame_confusion is None else self._frame_confusion + counts
        self._waiting.append(block)
        if sum(map(len, self._waiting)) >= ROWS_PER_GROUP:
            self._write()

    def finish(self) -> None:
        """Write the rows that are left, and the confusion counts of the frames."""
        if self._waiting:
            self._write()
        if self._frame_confusion is not None:
            self._writer.add_key_value_metadata({FRAME_CONFUSION: json.dumps(self._frame_confusion.tolist())})

    def _write(self) -> None:
        block, self._waiting = joined(self._waiting), []
        columns: dict[str, Any] = dict(vars(block))
        flat = pa.array(block.log_posterior.ravel(), pa.float32())
        columns["log_posterior"] = pa.FixedSizeListArray.from_arrays(flat, self._labels)
        table = pa.Table.from_pydict(columns, schema=self._writer.schema)
        self._writer.write_table(table, row_group_size=ROWS_PER_GROUP)


@contextmanager
def create(path: UPath, labels: Sequence[str]) -> Iterator[ScoreWriter]:
    """Yield a writer of a file of scores; the file appears at `path` when the block ends without an error."""
    schema = pa.schema(
        [
            ("recording", pa.uint32()),
            ("speaker", pa.uint32()),
            ("label", pa.uint16()),
            ("sequence", pa.uint64()),
            ("start_s", pa.float64()),
            ("duration_s", pa.float64()),
            ("log_posterior", pa.list_(pa.float32(), len(labels))),
        ],
        metadata={LABELS: json.dumps(list(labels))},
    )
    with replacing(path) as file, parquet.ParquetWriter(file, schema) as parquet_writer:
        writer = ScoreWriter(parquet_writer, len(labels))
        yield writer
        writer.finish()


@dataclass(frozen=True)
class ScoreFile:
    """A file of scores that was opened for reading; holds no rows.

    `labels` are the languages in the order of their codes: those of the store, then further languages of the model.
    `frame_confusion` (true label, predicted label) int64 counts frames, if the model classifies frames.
    """

    path: UPath
    labels: tuple[str, ...]
    frame_confusion: NDArray[np.int64] | None

    @classmethod
    def open(cls, path: UPath) -> Self:
        """Open a file of scores; raises PipelineError if it is missing or damaged."""
        try:
            with path.open("rb") as file:
                metadata = parquet.read_metadata(file).metadata
            labels = json.loads(metadata[LABELS])
            counts = json.loads(metadata[FRAME_CONFUSION]) if FRAME_CONFUSION in metadata else None
        except FileNotFoundError:
            raise PipelineError(f"{path} is missing; run evaluate again") from None
        except (pa.ArrowException, ValueError, KeyError, TypeError, RecursionError):
            raise PipelineError(f"{path} is damaged; run evaluate again") from None
        return cls(path, tuple(labels), None if counts is None else np.array(counts, np.int64))

    def blocks(self) -> Iterator[ScoreBlock]:
        """Yield all sequences, at most ROWS_PER_GROUP at a time."""
        with self.path.open("rb") as file:
            # pyarrow's threads can outlive Python's exit and abort it (Arrow issue 34314)
            table = parquet.ParquetFile(file, pre_buffer=False)
            for group in range(table.num_row_groups):
                yield self._block(table.read_row_group(group, use_threads=False))

    def _block(self, rows: pa.Table) -> ScoreBlock:
        columns = {
            name: rows[name].to_numpy().astype(np.float64 if name.endswith("_s") else np.int64)
            for name in rows.column_names
            if name != "log_posterior"
        }
        flat = rows["log_posterior"].combine_chunks().flatten().to_numpy()
        return ScoreBlock(**columns, log_posterior=flat.reshape(-1, len(self.labels)))
