"""The differences between a corpus and the manifest that was made of it."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.corpus.listing import Listing
from pipeline.corpus.manifest import masked_rows, unread_rows
from pipeline.corpus.sources import PART_COLUMNS

GONE: Final = "gone from the corpus"
CHANGED: Final = "changed in the corpus"
NO_ROWS: Final = np.empty(0, np.int64)


@dataclass(frozen=True)
class CorpusDiff:
    """The differences between a corpus and a manifest of it.

    `new` holds rows of the listing; `gone`, `changed`, `back` and `unread` are rows of the manifest, (row,) int64. A
    recording is `changed` if its size in bytes or its place within its file differs, and `unread` if its header could
    not be read and may be readable now; it is not changed, because the store holds nothing of it. A masked recording
    is in none of them but `back`, where the corpus again has it as it was. `uri` is where each recording of the
    manifest lies now; `moved` is true if any of them lies elsewhere than the manifest says.
    """

    new: pd.DataFrame
    gone: NDArray[np.int64]
    changed: NDArray[np.int64]
    back: NDArray[np.int64]
    unread: NDArray[np.int64]
    uri: pd.Series
    moved: bool

    def without_masking(self) -> "CorpusDiff":
        """Return the differences without those that mask a recording."""
        return replace(self, gone=NO_ROWS, changed=NO_ROWS)

    def __bool__(self) -> bool:
        return self.moved or any(len(rows) > 0 for rows in (self.new, self.gone, self.changed, self.back, self.unread))

    def applied(self, manifest: pd.DataFrame) -> pd.DataFrame:
        """Return `manifest` with the places and masks of its recordings as they are now; new ones are not added."""
        manifest = manifest.assign(uri=self.uri)
        for rows, reason in ((self.gone, GONE), (self.changed, CHANGED), (self.back, "")):
            manifest.loc[manifest.index[rows], "masked"] = reason
        return manifest


def compare(manifest: pd.DataFrame, listing: Listing) -> CorpusDiff:
    """Compare a manifest with the corpus as it is now."""
    now = listing.recordings.set_index("recording_id").reindex(manifest["recording_id"]).set_index(manifest.index)
    uri = now["uri"].fillna(manifest["uri"])  # NA where the corpus no longer has it
    size_bytes = now["size_bytes"].to_numpy(np.float64, na_value=np.nan)
    gone, masked = np.isnan(size_bytes), masked_rows(manifest)
    unread = manifest["error"].notna().to_numpy()
    gone |= now["unusable"].notna().to_numpy() & ~unread
    same = (size_bytes == manifest["size_bytes"].to_numpy()) | (unread & ~gone)
    for name in PART_COLUMNS:
        same &= ((now[name] == manifest[name]).fillna(False) | (now[name].isna() & manifest[name].isna())).to_numpy()
    return CorpusDiff(
        new=listing.recordings[~listing.recordings["recording_id"].isin(manifest["recording_id"])],
        gone=np.flatnonzero(gone & ~masked),
        changed=np.flatnonzero(~gone & ~same & ~masked),
        back=np.flatnonzero(same & masked & ~gone),
        unread=unread_rows(manifest, listing.recordings),
        uri=uri,
        moved=not uri.equals(manifest["uri"]),
    )
