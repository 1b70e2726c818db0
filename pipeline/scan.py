"""The scan stage: corpus folder → manifest, from headers alone."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import manifest, tables, workers
from pipeline.audio import AudioError, read_header
from pipeline.config import PipelineConfig
from pipeline.corpus import Listing
from pipeline.errors import few
from pipeline.executors import Executor
from pipeline.manifest import HEADER_TYPES
from pipeline.progress import track
from pipeline.schema import SPLITS, Layout

HEADERS_PER_TASK = 512
GONE, CHANGED = "gone from the corpus", "changed in the corpus"
NO_ROWS = np.empty(0, np.int64)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Changes:
    """How a corpus differs from a manifest of it. `new` has rows of the listing, the others are rows of the manifest.

    A recording whose size in bytes differs is `changed`. Masked ones are in none of these but in `back`, where the
    corpus has them again as they were. `moved` says whether recordings lie in another place than the manifest has.
    """

    new: pd.DataFrame
    gone: NDArray[np.int64]
    changed: NDArray[np.int64]
    back: NDArray[np.int64]
    moved: bool

    def without_masking(self) -> "Changes":
        """Return the changes that are taken in if nothing is to be masked."""
        return replace(self, gone=NO_ROWS, changed=NO_ROWS)

    def __bool__(self) -> bool:
        return self.moved or any(len(rows) > 0 for rows in (self.new, self.gone, self.changed, self.back))


def compare(table: pd.DataFrame, listing: Listing) -> Changes:
    """Compare the manifest `table` with the corpus."""
    now = _now(table, listing)
    size_bytes = now["size_bytes"].to_numpy(np.float64, na_value=np.nan)
    gone, same, masked = np.isnan(size_bytes), size_bytes == table["size_bytes"].to_numpy(), manifest.masked(table)
    return Changes(
        new=listing.recordings[~listing.recordings["recording_id"].isin(table["recording_id"])],
        gone=np.flatnonzero(gone & ~masked),
        changed=np.flatnonzero(~gone & ~same & ~masked),
        back=np.flatnonzero(same & masked),
        moved=bool((now["uri"] != table["uri"])[~gone].any()),
    )


def _now(table: pd.DataFrame, listing: Listing) -> pd.DataFrame:
    """Return the listing's rows of the recordings of a manifest, in its order; NA where the corpus has one no more."""
    return listing.recordings.set_index("recording_id").reindex(table["recording_id"]).set_index(table.index)


def scan(listing: Listing, layout: Layout, config: PipelineConfig, executor: Executor) -> pd.DataFrame:
    """Probe all headers, and write and return the manifest."""
    table = manifest.build(listing.recordings, _headers(listing.recordings["uri"], layout, executor), config)
    tables.write(layout.manifest, table)
    _tell(listing, table)
    return table


def update(
    listing: Listing, changes: Changes, table: pd.DataFrame, layout: Layout, config: PipelineConfig, executor: Executor
) -> pd.DataFrame:
    """Take changes of the corpus into the manifest `table`: probe the new recordings alone, and write and return it.

    Rows stay where they are; new recordings come after them. What is gone or has changed is masked: it keeps its
    place in the store and is used no more. A changed recording is not read again, as its row is taken; once
    compaction has dropped the row, it is a new one.
    """
    table = table.assign(uri=_now(table, listing)["uri"].fillna(table["uri"]))
    for rows, reason in ((changes.gone, GONE), (changes.changed, CHANGED), (changes.back, "")):
        table.loc[table.index[rows], "masked"] = reason
    if len(changes.new):
        headers = _headers(changes.new["uri"], layout, executor)
        table = manifest.build(changes.new, headers, config, known=table)
    tables.write(layout.manifest, table)
    log.info(
        "scan: %d new recordings, %d masked, %d in use again",
        len(changes.new), len(changes.gone) + len(changes.changed), len(changes.back),
    )  # fmt: skip
    _tell(listing, table)
    return table


def _headers(uris: pd.Series, layout: Layout, executor: Executor) -> pd.DataFrame:
    """Probe the headers of the recordings at `uris`, in any order."""
    workers.check(executor, layout, uris)
    batches = (uris.iloc[start : start + HEADERS_PER_TASK] for start in range(0, len(uris), HEADERS_PER_TASK))
    found = []
    with track("scan", len(uris), "headers", executor.dashboard) as progress:
        for headers in executor.run(probe_headers, batches):
            found.append(headers)
            progress.advance(len(headers), failed=int(headers["error"].notna().sum()))
    return pd.concat(found)


def probe_headers(uris: pd.Series) -> pd.DataFrame:
    """Read the headers of the recordings at `uris`: the rows of `uris`, the columns of `manifest.HEADER_TYPES`.

    A recording that has none gets the reason as its `error`.
    """
    return pd.DataFrame([_probe(uri) for uri in uris], uris.index, list(HEADER_TYPES)).astype(HEADER_TYPES)


def _probe(uri: str) -> tuple[int, int, int, str | None]:
    try:
        header = read_header(uri)
    except AudioError as error:
        return 0, 0, 0, str(error)
    return header.samples, header.sample_rate_hz, header.channels, None


def _tell(listing: Listing, table: pd.DataFrame) -> None:
    languages, speakers = manifest.labels(table), table["speaker"].nunique()
    hours = table["duration_s"].sum() / 3600
    log.info(
        "scan: %d recordings, %.2f h, %d languages, %d named speakers", len(table), hours, len(languages), speakers
    )
    if listing.others:
        log.warning("scan: %d files are no recordings and are left out: %s", len(listing.others), few(listing.others))
    unreadable = table[table["error"].notna()]
    if len(unreadable):
        log.warning("scan: %d recordings cannot be read: %s", len(unreadable), few(list(unreadable["recording_id"])))
    for split in SPLITS:
        missing = manifest.languages_without(table, split)
        if missing:
            log.warning("scan: no %s speaker for %s", split, ", ".join(missing))
