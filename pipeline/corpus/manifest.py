"""The manifest: the table of all recordings with their splits and the places of their sequences in the store."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.schema import MANIFEST_COLUMNS

TYPES: Final = {
    **dict.fromkeys(MANIFEST_COLUMNS, "string"), "start_s": "float64", "stop_s": "float64", "duration_s": "float64",
    "sample_rate_hz": "int32", "channels": "int32", "frames": "int64", "sequences": "int64", "first_sequence": "int64",
    "size_bytes": "int64", "append_index": "int32", "modified_ns": "int64", "transient": "bool", "split": "str",
}  # fmt: skip
SCHEMA: Final = pa.Schema.from_pandas(
    pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in TYPES.items()}), preserve_index=False
)
"""Columns and types of the file, with what pandas needs to read it."""
ROWS_PER_GROUP: Final = 2**14
"""Rows of a row group of the file: workers read a few of them, and hold the statistics of all."""
REPEATED: Final = [
    name for name in SCHEMA.names if name not in ("recording_id", "uri", "first_sequence", "modified_ns")
]
"""Columns whose values repeat. A dictionary of values that differ takes time and makes the file larger."""
UNDIGESTED: Final = ("uri", "append_index", "masked", "modified_ns", "transient")
"""Columns that the digest of a manifest does not cover: they may change without another store."""
NOT_READ: Final = {"duration_s": 0.0, "frames": 0, "sequences": 0, "error": "not read yet", "modified_ns": -1}
"""Values of a row whose recording has to be read again."""
OLDER: Final = {"modified_ns": -1, "transient": False}
"""Values of columns that an older manifest does not have. No file has this time: what had failed is tried again."""


def masked_rows(manifest: pd.DataFrame) -> NDArray[np.bool_]:
    """Return for each recording whether it is masked, (row,) bool: the column `masked` holds the reason.

    NA stands for a recording that was never masked, an empty reason for one that is in use again.
    """
    return np.asarray(manifest["masked"].fillna("") != "", np.bool_)


def label_names(manifest: pd.DataFrame) -> tuple[str, ...]:
    """Return the labels in the order of their codes: sorted, the labels of each append after the earlier ones."""
    begun = manifest.groupby("label")["append_index"].min()
    return tuple(sorted(begun.index, key=lambda label: (begun[label], label)))


def as_codes(values: pd.Series, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the position of each value in `names`: (row,) int64."""
    return np.asarray(values.map({name: code for code, name in enumerate(names)}), np.int64)
