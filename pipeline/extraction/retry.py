"""Failed recordings that may be readable now: their file has changed, or it could not be opened and now can."""

from typing import Final

import pandas as pd

from pipeline import storage
from pipeline.corpus.manifest import masked_rows
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.storage import FileState
from pipeline.store.records import RecordingOutcome

STATE: Final = ("uri", "size_bytes", "modified_ns", "transient")


def unread(manifest: ManifestFile) -> int:
    """Return how many recordings of a manifest have a header that could not be read and may be readable now."""
    return sum(_unread(rows) for rows in manifest.tables([*STATE, "error", "masked"]))


def _unread(rows: pd.DataFrame) -> int:
    failed = rows[rows["error"].notna() & ~masked_rows(rows)]
    states = zip(*(failed[name] for name in STATE), strict=True)
    return sum(_is_other(uri, FileState(size, ns), transient=transient) for uri, size, ns, transient in states)


def may_succeed(outcome: RecordingOutcome, uri: str) -> bool:
    """Whether a recording that failed may be readable now; `uri` is its file."""
    if outcome.status != "failed":
        return False
    return _is_other(uri, FileState(outcome.size_bytes, outcome.modified_ns), transient=outcome.transient)


def _is_other(uri: str, state: FileState, *, transient: bool) -> bool:
    """Whether the file is there in another state, or can be opened after a `transient` failure."""
    now = storage.file_state(uri)
    return now is not None and (now != state or (transient and storage.can_be_read(uri)))
