"""What follows from all rows of a manifest, which are read one row group after the other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.corpus.manifest import as_codes, masked_rows
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.schema import SPLITS

TOTAL: Final = "total"
"""Stands for all splits in a table of amounts."""


def split_runs(manifest: ManifestFile) -> dict[str, list[list[int]]]:
    """Return where the sequences of each split are: {split: [[start, stop], …]}, without empty splits.

    A recording that was read again, whose row is not where its sequences are, takes some bytes.
    """
    found = [_runs(rows) for rows in manifest.tables(["split", "sequences", "first_sequence"])]
    start, code = np.concatenate([np.empty((0, 2), np.int64), *found]).T
    order = np.argsort(start, kind="stable")
    begins = order[_changes(code[order])]
    starts = [*start[begins].tolist(), manifest.sequences]
    runs: dict[str, list[list[int]]] = {}
    for i in np.argsort(code[begins], kind="stable").tolist():
        runs.setdefault(SPLITS[code[begins[i]]], []).append(starts[i : i + 2])
    return runs


def _runs(rows: pd.DataFrame) -> NDArray[np.int64]:
    """Return the first sequence and the code of the split of each run of sequences in some rows: (run, 2) int64."""
    rows = rows[rows["sequences"] > 0].sort_values("first_sequence")
    start, code = rows["first_sequence"].to_numpy(np.int64), as_codes(rows["split"], SPLITS)
    stop = start + rows["sequences"].to_numpy(np.int64)
    begins = np.union1d(_changes(code), np.flatnonzero(start[1:] != stop[:-1]) + 1).astype(np.int64)
    return np.stack([start[begins], code[begins]], axis=1)


def _changes(code: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(np.diff(code, prepend=-1))


def longest(manifest: ManifestFile) -> int:
    """Return the row of the first of the recordings with the most sequences; raises ValueError for no recordings."""
    most, row = -1, -1
    for number, group in enumerate(manifest.groups):
        if group.most_sequences > most:
            sequences = manifest.read(number, ["sequences"])["sequences"].to_numpy()
            if sequences.max(initial=-1) > most:
                most, row = int(sequences.max()), group.first_row + int(sequences.argmax())
    if row < 0:
        raise ValueError("the manifest has no rows")
    return row


def has_usable(manifest: ManifestFile) -> bool:
    """Whether any recording has sequences and is not masked."""
    parts = manifest.tables(["sequences", "masked"])
    return any(((rows["sequences"] > 0).to_numpy() & ~masked_rows(rows)).any() for rows in parts)


def masked_count(manifest: ManifestFile) -> int:
    """Return the number of masked recordings."""
    return sum(1 for _ in masked_recordings(manifest))


def masked_recordings(manifest: ManifestFile) -> Iterator[tuple[int, str]]:
    """Yield the row of each masked recording and the reason."""
    for number, group in enumerate(manifest.groups):
        if group.has_masked:
            rows = manifest.read(number, ["masked"])
            masked = rows["masked"][masked_rows(rows)]
            yield from zip(masked.index.tolist(), masked, strict=True)


def languages_by_missing_split(
    manifest: ManifestFile, has_sequences: NDArray[np.bool_] | None = None
) -> dict[str, list[str]]:
    """Return for each split the labels, sorted, that have nothing usable in it.

    A recording is usable if it has sequences in the store: `has_sequences` (row,), which may end early. Without it, a
    recording is usable if it is not masked and its header promises at least one sequence.
    """
    labels, usable = set[str](), set[tuple[str, str]]()
    for rows in manifest.tables(["label", "split", "sequences", "masked"]):
        if has_sequences is None:
            used = (rows["sequences"] > 0).to_numpy() & ~masked_rows(rows)
        else:
            used = has_sequences[rows.index[0] : rows.index[-1] + 1]
            used = np.pad(used, (0, len(rows) - len(used)))
        labels.update(rows["label"].unique())
        pairs = rows.loc[used, ["label", "split"]].drop_duplicates()
        usable.update(zip(pairs["label"], pairs["split"], strict=True))
    return {split: sorted(label for label in labels if (label, split) not in usable) for split in SPLITS}


@dataclass(frozen=True)
class Amounts:
    """The recordings that are not masked, by label and split; the split TOTAL stands for all splits.

    `table` has the index (label, split) and the columns `duration_s` and `recordings`. `unnamed` counts recordings
    without a named speaker, `unnamed_masked` those that are masked.
    """

    table: pd.DataFrame
    unnamed: int
    unnamed_masked: int

    @property
    def by_split(self) -> pd.DataFrame:
        """The amounts of all labels: the index is the split."""
        return self.table.groupby(level="split").sum()


def amounts(manifest: ManifestFile) -> Amounts:
    """Return the amounts of audio in a manifest."""
    found, unnamed, unnamed_masked = [], 0, 0
    for rows in manifest.tables(["label", "split", "duration_s", "speaker", "masked"]):
        masked, nameless = masked_rows(rows), rows["speaker"].isna().to_numpy()
        unnamed, unnamed_masked = (
            unnamed + int((nameless & ~masked).sum()),
            unnamed_masked + int((nameless & masked).sum()),
        )
        kept = rows[~masked].groupby(["label", "split"])
        found.append(kept.agg(duration_s=("duration_s", "sum"), recordings=("duration_s", "size")))
    by_split = pd.concat(found).groupby(level=["label", "split"]).sum()
    total = by_split.groupby(level="label").sum().assign(split=TOTAL).set_index("split", append=True)
    return Amounts(pd.concat([by_split, total]), unnamed, unnamed_masked)
