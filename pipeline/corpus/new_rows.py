"""The rows that recordings get in the manifest: what their headers say, their splits, and their order."""

from typing import Final

import pyarrow as pa

from pipeline.config import PipelineConfig
from pipeline.corpus.database import Database, create, fill, rows, stream
from pipeline.corpus.splits import assign_splits
from pipeline.errors import UsageError
from pipeline.schema import SPLITS

WANTED: Final = """
    CREATE TABLE wanted AS
    SELECT *, {file_row} AS file_row
    FROM (SELECT row_number() OVER () - 1 AS row, * FROM (SELECT * FROM {chosen} ORDER BY recording_id))
"""
SEGMENTS: Final = """
    if(start_s IS NULL OR unusable IS NOT NULL, row,
        min(row) OVER (PARTITION BY start_s IS NULL, unusable IS NULL, uri, member))
"""
"""Segments of a file have one header, that of their first."""

AUDIO: Final = """
    CREATE TABLE audio AS
    WITH bounds AS (  -- rounded as AudioSource.sample_range does
        SELECT
            wanted.row, headers.* EXCLUDE (row),
            coalesce(trunc(start_s * sample_rate_hz)::BIGINT, 0) AS start,
            coalesce(start + trunc((stop_s - start_s) * sample_rate_hz)::BIGINT, samples) AS stop
        FROM wanted JOIN headers ON wanted.file_row = headers.row
    )
    SELECT * EXCLUDE (samples, start, stop), greatest(0, least(stop, samples) - start) AS length FROM bounds
"""
FRAMES: Final = pa.schema([("length", pa.int64()), ("sample_rate_hz", pa.int32()), ("frames", pa.int64())])
"""How many frames a recording of so many samples at its own rate has."""

DESCRIBED: Final = """
    CREATE TABLE described AS
    SELECT
        row, sample_rate_hz, channels, error, transient, length / greatest(sample_rate_hz, 1) AS duration_s,
        frames, frames // $timesteps AS sequences
    FROM audio JOIN frames USING (length, sample_rate_hz)
"""
EVERYTHING: Final = """
    CREATE VIEW everything AS
    WITH rows AS (
        SELECT * EXCLUDE (row, first_sequence), NULL AS row FROM known
        UNION ALL BY NAME
        SELECT wanted.* EXCLUDE (file_row, unusable), described.* EXCLUDE (row) FROM wanted JOIN described USING (row)
    )
    SELECT *, coalesce(speaker, chr(0) || {recording}) AS person FROM rows
"""
"""The rows of the manifest, and those that it gets, which have a `row` of `wanted`. No path holds a NUL, so a
recording without a speaker is never taken for a speaker."""

RECORDINGS: Final = """
    CREATE VIEW recordings AS
    SELECT
        label, person AS speaker, split,
        if(sequences > 0 AND coalesce(masked, '') = '', round(duration_s * 1e9)::BIGINT, 0) AS usable_ns
    FROM everything
"""
UNUSABLE: Final = "SELECT label FROM everything GROUP BY label HAVING sum(sequences) = 0 ORDER BY label LIMIT 1"
REASONS: Final = """
    SELECT
        count(error), count(*) - count(error),
        min(recording_id) FILTER (error IS NOT NULL), min_by(error, recording_id) FILTER (error IS NOT NULL)
    FROM everything WHERE label = ?
"""
ADDED: Final = """
    SELECT everything.* EXCLUDE (row, person)
        REPLACE (coalesce(decided.split, 'train') AS split, {append_index} AS append_index)
    FROM everything LEFT JOIN decided ON person = decided.speaker WHERE row IS NOT NULL
"""
IN_PLAN_ORDER: Final = """
    SELECT * EXCLUDE (container) FROM (SELECT *, {container} AS container FROM ({query}))
    ORDER BY list_position({splits}, split), stable_hash('{seed}' || chr(0) || container), {parts} recording_id
"""


def choose(db: Database, chosen: str = "listing") -> None:
    """Create the table `wanted` of rows of a listing, by default all: in the order of their ids, numbered as `row`.

    `file_row` is the row of the first recording in the same file. The table `listing` is dropped.
    """
    file_row = SEGMENTS if _has(db, "listing", "start_s") else "row"
    db.execute(WANTED.format(file_row=file_row, chosen=chosen))
    db.execute("DROP TABLE listing")


def describe(db: Database, config: PipelineConfig) -> None:
    """Create the table `described` from `wanted` and `headers`: what the manifest says of the audio of each row."""
    db.execute(AUDIO)
    create(db, "frames", FRAMES)
    lengths = stream(db, "SELECT DISTINCT length, sample_rate_hz FROM audio")
    fill(db, "frames", (_with_frames(part, config) for part in lengths))
    db.execute(DESCRIBED, {"timesteps": config.store.timesteps})


def added_rows(db: Database, config: PipelineConfig, append_index: int) -> str:
    """Return the query of the new rows of a manifest in the order of the store, without `first_sequence`.

    The new rows are those of `wanted` and `described`; `known` are the rows of the manifest so far, in the columns
    MANIFEST_COLUMNS and `row`. Raises UsageError where a language has no usable recording.
    """
    segments = _has(db, "known", "start_s") or _has(db, "wanted", "start_s")
    recording = _shared_name("start_s IS NULL", "uri, member") if segments else "recording_id"
    db.execute(EVERYTHING.format(recording=recording))
    _check_languages(db, config)
    db.execute(RECORDINGS)
    assign_splits(db, config.split, config.seed)
    parts = _has(db, "wanted", "start_s") or _has(db, "wanted", "member")
    return in_plan_order(ADDED.format(append_index=append_index), config.seed, parts=parts)


def in_plan_order(query: str, seed: int, *, parts: bool) -> str:
    """Return the query of the rows of `query`, those of one append, in the order of the store.

    Rows are sorted by split (in the order of SPLITS) and within a split by a hash of seed and recording id, which
    mixes languages and speakers. The rows of one container share the hash and are sorted by member and start, so that
    one decoding reads them all. Without `parts`, every recording is a file.
    """
    return IN_PLAN_ORDER.format(
        query=query,
        splits=list(SPLITS),
        seed=seed,
        container=_shared_name("start_s IS NULL AND member IS NULL", "uri") if parts else "recording_id",
        parts="member NULLS LAST, start_s NULLS LAST, stop_s NULLS LAST," if parts else "",
    )


def _shared_name(alone: str, by: str) -> str:
    """Return the SQL of the recording's id or, where it is not `alone`, the smallest of those that are equal in `by`.

    An id is the same wherever the corpus lies, the path of a container is not.
    """
    return f"if({alone}, recording_id, min(recording_id) OVER (PARTITION BY {alone}, {by}))"


def _has(db: Database, table: str, column: str) -> bool:
    """Whether a column has any value."""
    return bool(rows(db, f"SELECT 1 FROM {table} WHERE {column} IS NOT NULL LIMIT 1"))


def _with_frames(lengths: pa.Table, config: PipelineConfig) -> pa.Table:
    from pipeline.features.audio import resampled_length  # noqa: PLC0415 loads decoders, which reading does not need

    target_hz = config.features.sample_rate_hz
    pairs = zip(lengths["length"].to_pylist(), lengths["sample_rate_hz"].to_pylist(), strict=True)
    found = [
        config.features.frames(resampled_length(length, rate_hz, target_hz)) if length else 0
        for length, rate_hz in pairs
    ]
    return lengths.append_column("frames", pa.array(found, pa.int64()))


def _check_languages(db: Database, config: PipelineConfig) -> None:
    for (label,) in rows(db, UNUSABLE):
        ((failed, short, first, error),) = rows(db, REASONS, label)
        short_s = config.store.timesteps * config.features.hop_s
        example = f"; {first}: {error}" if failed else ""
        raise UsageError(
            f"language {label!r} has no usable recording ({failed} unreadable, {short} shorter than one sequence of "
            f"{short_s:g} s{example}); repair its files or remove the folder"
        )
