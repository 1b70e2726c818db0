"""The scan stage: corpus folder → manifest, from headers alone."""

import logging
from collections.abc import Sequence

import pandas as pd
from toolz import partition_all

from pipeline import manifest, tables
from pipeline.audio import AudioError, read_header
from pipeline.config import PipelineConfig
from pipeline.corpus import Listing, Recording
from pipeline.errors import few
from pipeline.executors import Executor
from pipeline.manifest import Probe
from pipeline.progress import track
from pipeline.schema import SPLITS, Layout

HEADERS_PER_TASK = 256

log = logging.getLogger(__name__)


def scan(listing: Listing, layout: Layout, config: PipelineConfig, executor: Executor) -> pd.DataFrame:
    """Probe all headers, and write and return the manifest."""
    batches = list(partition_all(HEADERS_PER_TASK, listing.recordings))
    probes: list[Probe] = []
    with track("scan", len(listing.recordings), "headers", executor.dashboard) as progress:
        for found in executor.run(probe_headers, batches):
            probes.extend(found)
            progress.advance(len(found), failed=sum(probe.error is not None for probe in found))
    probes.sort(key=lambda probe: probe.recording.recording_id)
    table = manifest.build(probes, config)
    tables.write(layout.manifest, table)
    _tell(listing, table)
    return table


def probe_headers(recordings: Sequence[Recording]) -> list[Probe]:
    """Read the headers of some recordings; one that has none gets the reason."""
    return [_probe(recording) for recording in recordings]


def _probe(recording: Recording) -> Probe:
    try:
        return Probe(recording, read_header(recording.uri))
    except AudioError as error:
        return Probe(recording, None, str(error))


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
