"""How a corpus differs from the manifest that was made of it."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.corpus import manifest
from pipeline.corpus.listing import Listing

GONE: Final = "gone from the corpus"
CHANGED: Final = "changed in the corpus"
NO_ROWS: Final = np.empty(0, np.int64)


@dataclass(frozen=True)
class CorpusDiff:
    """How a corpus differs from a manifest of it. `new` has rows of the listing, the others are rows of the manifest.

    A recording whose size in bytes differs is `changed`. Masked ones are in none of these but in `back`, where the
    corpus has them again as they were. `moved` says whether recordings lie in another place than the manifest has.
    """

    new: pd.DataFrame
    gone: NDArray[np.int64]
    changed: NDArray[np.int64]
    back: NDArray[np.int64]
    uri: pd.Series
    moved: bool

    def without_masking(self) -> "CorpusDiff":
        """Return the changes that are taken in if nothing is to be masked."""
        return replace(self, gone=NO_ROWS, changed=NO_ROWS)

    def __bool__(self) -> bool:
        return self.moved or any(len(rows) > 0 for rows in (self.new, self.gone, self.changed, self.back))

    def applied(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the manifest `table`, whose changes these are, with what they make of its rows."""
        table = table.assign(uri=self.uri)
        for rows, reason in ((self.gone, GONE), (self.changed, CHANGED), (self.back, "")):
            table.loc[table.index[rows], "masked"] = reason
        return table


def compare(table: pd.DataFrame, listing: Listing) -> CorpusDiff:
    """Compare the manifest `table` with the corpus."""
    now = listing.recordings.set_index("recording_id").reindex(table["recording_id"]).set_index(table.index)
    uri = now["uri"].fillna(table["uri"])  # NA where the corpus has it no more
    size_bytes = now["size_bytes"].to_numpy(np.float64, na_value=np.nan)
    gone, same, masked = np.isnan(size_bytes), size_bytes == table["size_bytes"].to_numpy(), manifest.masked(table)
    return CorpusDiff(
        new=listing.recordings[~listing.recordings["recording_id"].isin(table["recording_id"])],
        gone=np.flatnonzero(gone & ~masked),
        changed=np.flatnonzero(~gone & ~same & ~masked),
        back=np.flatnonzero(same & masked),
        uri=uri,
        moved=not uri.equals(table["uri"]),
    )
