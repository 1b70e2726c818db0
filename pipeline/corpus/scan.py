"""The scan stage: corpus folder → manifest, from file headers alone."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.corpus.diff import CorpusDiff
from pipeline.corpus.layouts.folder_checks import UNREAD_AUDIO, extensions_text
from pipeline.corpus.layouts.walk import extension
from pipeline.corpus.listing import Listing
from pipeline.corpus.manifest import (
    HEADER_TYPES,
    NOT_READ,
    build_manifest,
    label_names,
    languages_without,
    manifest_digest,
    with_rows_read,
    write_manifest,
)
from pipeline.corpus.sources import AudioSources
from pipeline.errors import PipelineError, counted, few
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


class Files(NamedTuple):
    """Files of a listing."""

    rows: pd.Index
    """The index of their rows in the listing."""
    sources: Sequence[AudioSource]
    size_bytes: NDArray[np.int64]

    @classmethod
    def of(cls, listed: pd.DataFrame) -> "Files":
        """Return the files of the rows of a listing."""
        return cls(listed.index, AudioSources(listed), listed["size_bytes"].to_numpy())

    def part(self, start: int, stop: int) -> "Files":
        """Return the files [start, stop)."""
        return Files(self.rows[start:stop], self.sources[start:stop], self.size_bytes[start:stop])

    @property
    def limit_s(self) -> float:
        """How long reading their headers may take."""
        return LIMIT_S + LIMIT_PER_FILE_S * len(self.rows) + int(self.size_bytes.sum()) / MIN_BYTES_PER_S


log = logging.getLogger(__name__)


def scan(
    listing: Listing,
    output: OutputFolder,
    config: PipelineConfig,
    executor: Executor,
    corpus: CorpusConfig,
    wanted: str | None = None,
) -> pd.DataFrame:
    """Read the headers of all recordings; write the manifest and return it.

    Raises PipelineError for a manifest without the digest `wanted`, that of a store which has lost its manifest.
    """
    headers = _read_headers(listing.recordings, output, executor, corpus)
    manifest = build_manifest(listing.recordings, headers, config)
    if wanted is not None and manifest_digest(manifest) != wanted:
        raise PipelineError(
            f"{output.manifest} is damaged or missing, and the recordings give another one than that of the store; "
            f"{storage.BACKUP}, or choose another --out"
        )
    write_manifest(output, manifest)
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
    is not read again, because its row is taken; after compaction, which drops the row, it is a new recording. A
    recording whose header could not be read and now can keeps its row; its sequences are those of an append.
    """
    manifest = diff.applied(manifest)
    now = listing.recordings.set_index("recording_id", drop=False).loc[manifest["recording_id"].iloc[diff.unread]]
    recordings = pd.concat([diff.new, now.reset_index(drop=True)], ignore_index=True)
    if len(recordings):
        headers = _read_headers(recordings, output, executor, corpus).sort_index()
        manifest = _with_headers(recordings, headers, manifest, diff.unread, output, config)
    write_manifest(output, manifest)
    masked = len(diff.gone) + len(diff.changed)
    log.info("scan: %s, %d masked, %d in use again", counted(len(diff.new), "new recording"), masked, len(diff.back))
    _log_summary(listing, manifest)
    return manifest


def _with_headers(
    recordings: pd.DataFrame,
    headers: pd.DataFrame,
    manifest: pd.DataFrame,
    unread: NDArray[np.int64],
    output: OutputFolder,
    config: PipelineConfig,
) -> pd.DataFrame:
    """Return `manifest` with the headers of new recordings and, as the last of `recordings`, of the rows `unread`."""
    first = len(recordings) - len(unread)
    fails = headers["error"].iloc[first:].notna().to_numpy()
    read = unread[~fails]
    for name, values in (("modified_ns", recordings["modified_ns"]), ("transient", headers["transient"])):
        manifest.loc[unread[fails], name] = values.iloc[first:][fails].to_numpy()
    failed = pd.Series(headers["error"].iloc[first:][fails].to_numpy(), unread[fails], "string")
    new_reason = failed[manifest.loc[unread[fails], "error"] == NOT_READ["error"]]  # a store holds the others
    manifest.loc[new_reason.index, "error"] = new_reason
    added = np.r_[np.ones(first, np.bool_), ~fails]
    if not added.any():
        return manifest
    if len(read):
        _release(manifest, read, output)
    kept = manifest.drop(index=pd.Index(read)).reset_index(drop=True)
    built = build_manifest(recordings[added], headers[added], config, known=kept)
    return with_rows_read(manifest, built, read)


def _release(manifest: pd.DataFrame, rows: NDArray[np.int64], output: OutputFolder) -> None:
    """Make `rows`, of which the store holds nothing, rows of the next append, in `manifest` and in the files.

    The store is then one of the manifest without them. Whenever this is interrupted, the files belong together: the
    store is that of all rows of the manifest, or of those of the earlier appends.
    """
    from pipeline.store import feature_store  # noqa: PLC0415 only a scan that reads such rows needs zarr

    earlier = manifest["append_index"].max()
    manifest.loc[rows, "append_index"] = np.int32(earlier + 1)
    write_manifest(output, manifest)
    feature_store.write_manifest_digest(output, manifest_digest(manifest[manifest["append_index"] <= earlier]))


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
    whole = Files.of(files)
    preflight.check(executor, output, whole.sources)
    batches = (whole.part(start, start + HEADERS_PER_TASK) for start in range(0, len(files), HEADERS_PER_TASK))
    found = [_without_header(recordings.index[known], recordings["unusable"][known])]
    with track("scan", len(files), "headers", executor.monitor.dashboard) as progress:
        for headers in _headers(executor, partial(read_headers, corpus=corpus), batches):
            found.append(headers)
            progress.advance(len(headers), failed=int(headers["error"].notna().sum()))
    headers = pd.concat(found)
    if len(headers) == len(recordings):
        return headers
    of_files = recordings[file].join(headers, how="inner")
    return recordings[file].merge(of_files, on=file, how="left").set_index(recordings.index).drop(columns=file)


def _headers(
    executor: Executor, read: Callable[[Files], pd.DataFrame], batches: Iterable[Files]
) -> Iterator[pd.DataFrame]:
    """Yield the headers of each batch. A file that ends the process that reads it has the reason as its error."""
    limit_s = attrgetter("limit_s")
    lost: list[Files] = []
    for outcome in surviving(executor, read, batches, limit_s):
        if isinstance(outcome, Lost):
            lost.append(outcome.item)
        else:
            yield outcome.result
    files = [batch.part(i, i + 1) for batch in lost for i in range(len(batch.rows))]
    for outcome in tried_alone(executor, read, files, limit_s):
        if isinstance(outcome, Lost):
            yield _without_header(outcome.item.rows, [outcome.failure(outcome.item.limit_s)])
        else:
            yield outcome.result


def _without_header(index: pd.Index, reasons: Iterable[str]) -> pd.DataFrame:
    """Return the headers of files that were not read, for a reason each."""
    rows = [(0, 0, 0, reason, False) for reason in reasons]
    return pd.DataFrame(rows, index, list(HEADER_TYPES)).astype(HEADER_TYPES)


def read_headers(files: Files, *, corpus: CorpusConfig) -> pd.DataFrame:
    """Return the headers of audio files: one row per file, the columns HEADER_TYPES.

    A file that cannot be used has the reason in the column `error`.
    """
    rows = [_header_row(source.whole, corpus) for source in files.sources]
    return pd.DataFrame(rows, files.rows, list(HEADER_TYPES)).astype(HEADER_TYPES)


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
