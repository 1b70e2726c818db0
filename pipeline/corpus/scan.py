"""The scan stage: corpus folder → manifest, from file headers alone."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

import pandas as pd

from pipeline import storage
from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.corpus.diff import CorpusDiff
from pipeline.corpus.layouts.folder_checks import UNREAD_AUDIO, extensions_text
from pipeline.corpus.layouts.walk import extension
from pipeline.corpus.listing import Listing
from pipeline.corpus.manifest import HEADER_TYPES, build_manifest, label_names, languages_without
from pipeline.corpus.sources import AudioSources
from pipeline.errors import counted, few
from pipeline.features.audio import AudioError, read_header
from pipeline.features.audio_source import AudioSource
from pipeline.monitoring.progress import track
from pipeline.outputs import OutputFolder
from pipeline.runtime import preflight
from pipeline.runtime.executor import Executor, Lost, surviving, tried_alone
from pipeline.schema import SPLITS

HEADERS_PER_TASK: Final = 512
MOST_LABELS: Final = 200
MOST_LEFT_OUT: Final = 20
"""Languages that are named in one line of the log, and lines of it on folders and links that are left out."""
LIMIT_S: Final = 60.0
LIMIT_PER_FILE_S: Final = 1.0
MIN_BYTES_PER_S: Final = 1e6
"""A task may take LIMIT_S, LIMIT_PER_FILE_S for each file, and the time to read all of the files at this speed."""

Files = tuple[pd.Index, Sequence[AudioSource]]
"""The index of some rows of a listing, and the sources of their files."""

log = logging.getLogger(__name__)


def scan(
    listing: Listing,
    output: OutputFolder,
    config: PipelineConfig,
    executor: Executor,
    corpus: CorpusConfig,
) -> pd.DataFrame:
    """Read the headers of all recordings; write the manifest and return it."""
    headers = _read_headers(listing.recordings, output, executor, corpus)
    manifest = build_manifest(listing.recordings, headers, config)
    storage.write_parquet(output.manifest, manifest)
    _log_summary(listing, manifest)
    return manifest


def update(
    listing: Listing,
    diff: CorpusDiff,
    manifest: pd.DataFrame,
    output: OutputFolder,
    config: PipelineConfig,
    executor: Executor,
    corpus: CorpusConfig,
) -> pd.DataFrame:
    """Apply the differences between corpus and `manifest`; write the new manifest and return it.

    Existing rows stay where they are, and new recordings, whose headers are read, follow them. Recordings that are
    gone or have changed are masked: they keep their places in the store and are no longer used. A changed recording
    is not read again, because its row is taken; after compaction, which drops the row, it is a new recording.
    """
    manifest = diff.applied(manifest)
    if len(diff.new):
        headers = _read_headers(diff.new, output, executor, corpus)
        manifest = build_manifest(diff.new, headers, config, known=manifest)
    storage.write_parquet(output.manifest, manifest)
    masked = len(diff.gone) + len(diff.changed)
    log.info("scan: %s, %d masked, %d in use again", counted(len(diff.new), "new recording"), masked, len(diff.back))
    _log_summary(listing, manifest)
    return manifest


def _read_headers(
    recordings: pd.DataFrame, output: OutputFolder, executor: Executor, corpus: CorpusConfig
) -> pd.DataFrame:
    """Return the headers of the rows of a listing, in any order, with the columns HEADER_TYPES.

    The header of a file with many segments is read once.
    """
    file = ["uri", "member"]
    known = recordings["unusable"].notna()
    files = recordings[~known]
    if files["start_s"].notna().any():
        files = files.drop_duplicates(file)
    sources = AudioSources(files)
    preflight.check(executor, output, sources)
    starts = range(0, len(files), HEADERS_PER_TASK)
    batches = ((files.index[i : i + HEADERS_PER_TASK], sources[i : i + HEADERS_PER_TASK]) for i in starts)
    found = [_without_header(recordings.index[known], recordings["unusable"][known])]
    with track("scan", len(files), "headers", executor.monitor.dashboard) as progress:
        for headers in _headers(executor, partial(read_headers, corpus=corpus), batches, files["size_bytes"]):
            found.append(headers)
            progress.advance(len(headers), failed=int(headers["error"].notna().sum()))
    headers = pd.concat(found)
    if len(headers) == len(recordings):
        return headers
    of_files = recordings[file].join(headers, how="inner")
    return recordings[file].merge(of_files, on=file, how="left").set_index(recordings.index).drop(columns=file)


def _headers(
    executor: Executor, read: Callable[[Files], pd.DataFrame], batches: Iterable[Files], size_bytes: pd.Series
) -> Iterator[pd.DataFrame]:
    """Yield the headers of each batch. A file that ends the process that reads it has the reason as its error."""

    def limit_s(files: Files) -> float:
        return LIMIT_S + LIMIT_PER_FILE_S * len(files[0]) + float(size_bytes.loc[files[0]].sum()) / MIN_BYTES_PER_S

    lost: list[Files] = []
    for outcome in surviving(executor, read, batches, limit_s):
        if isinstance(outcome, Lost):
            lost.append(outcome.item)
        else:
            yield outcome.result
    files = [(index[i : i + 1], sources[i : i + 1]) for index, sources in lost for i in range(len(index))]
    for outcome in tried_alone(executor, read, files, limit_s):
        if isinstance(outcome, Lost):
            yield _without_header(outcome.item[0], [outcome.failure(limit_s(outcome.item))])
        else:
            yield outcome.result


def _without_header(index: pd.Index, reasons: Iterable[str]) -> pd.DataFrame:
    """Return the headers of files that were not read, for a reason each."""
    rows = [(0, 0, 0, reason, False) for reason in reasons]
    return pd.DataFrame(rows, index, list(HEADER_TYPES)).astype(HEADER_TYPES)


def read_headers(files: Files, *, corpus: CorpusConfig) -> pd.DataFrame:
    """Return the headers of audio files, given as (index, sources): one row per file, the columns HEADER_TYPES.

    A file that cannot be used has the reason in the column `error`.
    """
    index, sources = files
    rows = [_header_row(source.whole, corpus) for source in sources]
    return pd.DataFrame(rows, index, list(HEADER_TYPES)).astype(HEADER_TYPES)


def _header_row(source: AudioSource, corpus: CorpusConfig) -> tuple[int, int, int, str | None, bool]:
    try:
        header = read_header(source, corpus.min_sample_rate_hz)
    except AudioError as error:
        return 0, 0, 0, str(error), error.transient
    return header.samples, header.sample_rate_hz, header.channels, None, False


def _log_summary(listing: Listing, manifest: pd.DataFrame) -> None:
    log.info(
        "scan: %s, %.2f h, %s, %s", counted(len(manifest), "recording"), manifest["duration_s"].sum() / 3600,
        counted(len(label_names(manifest)), "language"), counted(manifest["speaker"].nunique(), "named speaker"),
    )  # fmt: skip
    log.info("scan: the languages are %s", few(label_names(manifest), MOST_LABELS))
    _log_left_out(listing)
    unreadable = manifest["recording_id"][manifest["error"].notna()]
    if len(unreadable):
        log.warning("scan: %s cannot be read: %s", counted(len(unreadable), "recording"), few(list(unreadable)))
    for split in SPLITS:
        missing = languages_without(manifest, split)
        if missing:
            log.warning("scan: no %s speaker for %s", split, ", ".join(missing))


def _log_left_out(listing: Listing) -> None:
    """Log the files and folders of a corpus that are not used, by extension, by kind, and one by one."""
    if listing.hidden:
        number, names = counted(len(listing.hidden), "hidden or system file or folder"), few(listing.hidden)
        log.info("scan: left out %s: %s", number.replace("file or folders", "files and folders"), names)
    extensions = Counter(map(extension, listing.ignored))
    unread = {name: number for name, number in extensions.items() if name in UNREAD_AUDIO}
    if unread:
        log.warning("scan: %s are not read; convert them to FLAC or WAV, and unpack archives", extensions_text(unread))
    if listing.ignored:
        files = counted(len(listing.ignored), "file")
        log.warning(
            "scan: ignored %s, not recordings: %s (%s)", files, few(listing.ignored), extensions_text(extensions)
        )
    for path, reason in listing.left_out[:MOST_LEFT_OUT]:
        log.warning("scan: left out %s: %s", path, reason)
    if len(listing.left_out) > MOST_LEFT_OUT:
        log.warning("scan: left out %d more for such reasons", len(listing.left_out) - MOST_LEFT_OUT)
