"""What a scan logs of a corpus: its size, its languages, and what cannot be used."""

import logging
from typing import Final

from pipeline.corpus.database import Database, rows
from pipeline.corpus.layouts.folder_checks import UNREAD_AUDIO, extensions_text
from pipeline.errors import counted, few
from pipeline.schema import SPLITS

MOST_LABELS: Final = 200
MOST_LEFT_OUT: Final = 20
"""Languages that are named in one line of the log, and lines of it on folders and links that are left out."""

SIZE: Final = """
    SELECT count(*), coalesce(sum(duration_s), 0), count(error) FROM everything
"""
LABELS: Final = "SELECT label FROM everything GROUP BY label ORDER BY min(coalesce(append_index, 2147483647)), label"
SPEAKERS: Final = "SELECT count(DISTINCT speaker) FROM speakers WHERE NOT starts_with(speaker, chr(0))"
UNREADABLE: Final = "SELECT recording_id FROM everything WHERE error IS NOT NULL ORDER BY recording_id LIMIT 3"
WITHOUT: Final = """
    SELECT label FROM speakers LEFT JOIN decided USING (speaker) GROUP BY label
    HAVING count(*) FILTER (duration_ns > 0 AND decided.split = ?) = 0 ORDER BY label
"""

log = logging.getLogger("pipeline.corpus.scan")


def log_summary(db: Database) -> None:
    """Log what the tables of a scan hold, before the manifest is written."""
    ((recordings, duration_s, unreadable),) = rows(db, SIZE)
    labels = [label for (label,) in rows(db, LABELS)]
    ((speakers,),) = rows(db, SPEAKERS)
    log.info(
        "scan: %s, %.2f h, %s, %s", counted(recordings, "recording"), duration_s / 3600,
        counted(len(labels), "language"), counted(speakers, "named speaker"),
    )  # fmt: skip
    log.info("scan: the languages are %s", few(labels, MOST_LABELS))
    _log_others(db)
    if unreadable:
        names = few(_first(db, UNREADABLE), count=unreadable)
        log.warning("scan: %s cannot be read: %s", counted(unreadable, "recording"), names)
    for split in SPLITS:
        missing = [label for (label,) in rows(db, WITHOUT, split)]
        if missing:
            log.warning("scan: no %s speaker for %s", split, ", ".join(missing))


def _log_others(db: Database) -> None:
    """Log the files and folders of a corpus that are not used, by extension, by kind, and one by one."""
    numbers = dict(rows(db, "SELECT kind, count(*) FROM others GROUP BY kind"))
    if hidden := numbers.get("hidden", 0):
        number, names = counted(hidden, "hidden or system file or folder"), few(_paths(db, "hidden"), count=hidden)
        log.info("scan: left out %s: %s", number.replace("file or folders", "files and folders"), names)
    extensions = dict(
        rows(db, "SELECT extension, count(*) FROM others WHERE kind = 'ignored' GROUP BY extension ORDER BY extension")
    )
    unread = {name: number for name, number in extensions.items() if name in UNREAD_AUDIO}
    if unread:
        log.warning("scan: %s are not read; convert them to FLAC or WAV, and unpack archives", extensions_text(unread))
    if ignored := numbers.get("ignored", 0):
        names = few(_paths(db, "ignored"), count=ignored)
        log.warning(
            "scan: ignored %s, not recordings: %s (%s)", counted(ignored, "file"), names, extensions_text(extensions)
        )
    query = "SELECT path, reason FROM others WHERE kind = 'left out' ORDER BY path, reason LIMIT ?"
    for path, reason in rows(db, query, MOST_LEFT_OUT):
        log.warning("scan: left out %s: %s", path, reason)
    if numbers.get("left out", 0) > MOST_LEFT_OUT:
        log.warning("scan: left out %d more for such reasons", numbers["left out"] - MOST_LEFT_OUT)


def _paths(db: Database, kind: str) -> list[str]:
    return _first(db, f"SELECT path FROM others WHERE kind = '{kind}' ORDER BY path LIMIT 3")


def _first(db: Database, query: str) -> list[str]:
    return [name for (name,) in rows(db, query)]
