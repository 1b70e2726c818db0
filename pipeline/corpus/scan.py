"""The scan stage: corpus folder → manifest, from headers alone."""

import logging

import pandas as pd

from pipeline import storage
from pipeline.config import PipelineConfig
from pipeline.corpus import manifest
from pipeline.corpus.diff import CorpusDiff
from pipeline.corpus.listing import Listing
from pipeline.corpus.manifest import HEADER_TYPES
from pipeline.errors import few
from pipeline.features.audio import AudioError, read_header
from pipeline.monitoring.progress import track
from pipeline.outputs import OutputFolder
from pipeline.runtime import preflight
from pipeline.runtime.executor import Executor, completed
from pipeline.schema import SPLITS

HEADERS_PER_TASK = 512

log = logging.getLogger(__name__)


def scan(listing: Listing, output: OutputFolder, config: PipelineConfig, executor: Executor) -> pd.DataFrame:
    """Probe all headers, and write and return the manifest."""
    table = manifest.build(listing.recordings, _headers(listing.recordings["uri"], output, executor), config)
    storage.write_parquet(output.manifest, table)
    _tell(listing, table)
    return table


def update(
    listing: Listing,
    changes: CorpusDiff,
    table: pd.DataFrame,
    output: OutputFolder,
    config: PipelineConfig,
    executor: Executor,
) -> pd.DataFrame:
    """Take changes of the corpus into the manifest `table`: probe the new recordings alone, and write and return it.

    Rows stay where they are; new recordings come after them. What is gone or has changed is masked: it keeps its
    place in the store and is used no more. A changed recording is not read again, as its row is taken; once
    compaction has dropped the row, it is a new one.
    """
    table = changes.applied(table)
    if len(changes.new):
        headers = _headers(changes.new["uri"], output, executor)
        table = manifest.build(changes.new, headers, config, known=table)
    storage.write_parquet(output.manifest, table)
    log.info(
        "scan: %d new recordings, %d masked, %d in use again",
        len(changes.new), len(changes.gone) + len(changes.changed), len(changes.back),
    )  # fmt: skip
    _tell(listing, table)
    return table


def _headers(uris: pd.Series, output: OutputFolder, executor: Executor) -> pd.DataFrame:
    """Probe the headers of the recordings at `uris`, in any order."""
    preflight.check(executor, output, uris)
    batches = (uris.iloc[start : start + HEADERS_PER_TASK] for start in range(0, len(uris), HEADERS_PER_TASK))
    found = []
    with track("scan", len(uris), "headers", executor.monitor.dashboard) as progress:
        for done in completed(executor.run(probe_headers, batches)):
            headers = done.result
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
