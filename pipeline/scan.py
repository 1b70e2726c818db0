"""The scan stage: corpus folder → manifest, from headers alone."""

import logging

import pandas as pd

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

log = logging.getLogger(__name__)


def scan(listing: Listing, layout: Layout, config: PipelineConfig, executor: Executor) -> pd.DataFrame:
    """Probe all headers, and write and return the manifest."""
    uris = listing.recordings["uri"]
    workers.check(executor, layout, uris)
    batches = (uris.iloc[start : start + HEADERS_PER_TASK] for start in range(0, len(uris), HEADERS_PER_TASK))
    found = []
    with track("scan", len(uris), "headers", executor.dashboard) as progress:
        for headers in executor.run(probe_headers, batches):
            found.append(headers)
            progress.advance(len(headers), failed=int(headers["error"].notna().sum()))
    table = manifest.build(listing.recordings, pd.concat(found), config)
    tables.write(layout.manifest, table)
    _tell(listing, table)
    return table


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
