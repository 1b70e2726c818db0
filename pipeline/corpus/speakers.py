"""The speakers of a manifest: how many there are, and a number for each. There may be as many as recordings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from upath import UPath

from pipeline.corpus.database import database, reserve
from pipeline.corpus.manifest import masked_rows
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.durable_files import scratch_folder

NAMED, SEGMENT, RECORDING = range(3)
"""What stands for a speaker: a name, the recording that segments share, or the recording itself."""


@dataclass(frozen=True)
class SpeakerCounts:
    """The numbers of named speakers.

    `unmasked` counts those of recordings that are not masked, by label and split; None stands for all labels or
    splits. `test` counts those of all recordings of the test split.
    """

    unmasked: Mapping[tuple[str | None, str | None], int]
    test: int


def count_speakers(manifest: ManifestFile, folder: UPath) -> SpeakerCounts:
    """Count the named speakers of a manifest; `folder` is that of `scratch_folder`."""
    with scratch_folder(folder) as scratch, database(scratch) as connection:
        reserve(connection, len(manifest))
        connection.execute("CREATE TABLE named (label VARCHAR, split VARCHAR, speaker VARCHAR, masked BOOLEAN)")
        for rows in manifest.tables(["label", "split", "speaker", "masked"]):
            named = rows.assign(masked=masked_rows(rows))[rows["speaker"].notna()].drop_duplicates()
            connection.register("piece", pa.Table.from_pandas(named, preserve_index=False, nthreads=1))
            connection.execute("INSERT INTO named SELECT label, split, speaker, masked FROM piece")
        unmasked = connection.execute(
            "SELECT label, split, count(DISTINCT speaker) FROM named WHERE NOT masked "
            "GROUP BY GROUPING SETS ((label, split), (label), (split), ())"
        ).fetchall()
        (test,) = connection.execute("SELECT count(DISTINCT speaker) FROM named WHERE split = 'test'").fetchall()
    return SpeakerCounts({(label, split): count for label, split, count in unmasked}, int(test[0]))


class SpeakerCodes:
    """A number for the speaker of each recording of the test split, equal for all recordings of a speaker.

    A recording without a speaker counts as a speaker of its own, with all of its segments. Speakers are numbered in
    the order of their first recordings in the manifest. A recording takes 16 bytes.
    """

    def __init__(self, rows: NDArray[np.int64], codes: NDArray[np.int64]) -> None:
        self._rows, self._codes = rows, codes

    @classmethod
    def of(cls, manifest: ManifestFile, folder: UPath) -> "SpeakerCodes":
        """Return the numbers for a manifest; `folder` is that of `scratch_folder`."""
        with scratch_folder(folder) as scratch, database(scratch) as connection:
            reserve(connection, len(manifest))
            connection.execute(
                "CREATE TABLE recordings (number BIGINT, test BOOLEAN, kind TINYINT, name VARCHAR, member VARCHAR)"
            )
            for rows in manifest.tables(["recording_id", "uri", "member", "start_s", "speaker", "split"]):
                connection.register("piece", pa.Table.from_pandas(_keys(rows), preserve_index=False, nthreads=1))
                connection.execute("INSERT INTO recordings SELECT number, test, kind, name, member FROM piece")
            found = connection.execute(
                "WITH speakers AS ("
                "  SELECT kind, name, member, row_number() OVER (ORDER BY min(number)) - 1 AS code"
                "  FROM recordings GROUP BY kind, name, member"
                ") SELECT number, code FROM recordings JOIN speakers USING (kind, name, member) "
                "WHERE test ORDER BY number"
            ).fetchnumpy()
        return cls(np.asarray(found["number"], np.int64), np.asarray(found["code"], np.int64))

    def __getitem__(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the numbers of the speakers of some rows of the manifest, which are in the test split."""
        place = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        if not (self._rows[place] == rows).all():
            raise KeyError(f"rows {np.setdiff1d(rows, self._rows).tolist()} of the manifest are not in the test split")
        return self._codes[place]


def _keys(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what stands for the speaker of each recording: `kind`, `name` and `member`."""
    named, segment = rows["speaker"].notna(), rows["start_s"].notna()
    name = rows["recording_id"].mask(segment, rows["uri"]).mask(named, rows["speaker"])
    kind = np.where(named, NAMED, np.where(segment, SEGMENT, RECORDING))
    member = rows["member"].astype("string").where(segment & ~named).fillna("")
    test = (rows["split"] == "test").to_numpy()
    return pd.DataFrame({"number": rows.index, "test": test, "kind": kind, "name": name, "member": member})
