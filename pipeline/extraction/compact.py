"""The compact command: a store with appends or masked recordings → the store that a single run would have written."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import durable_files, schema
from pipeline.config import PipelineConfig
from pipeline.corpus.database import database
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.manifest_summary import has_usable
from pipeline.corpus.manifest_table import write_compacted
from pipeline.durable_files import scratch_folder, write_atomically
from pipeline.errors import PipelineError, UsageError
from pipeline.extraction import extract, lifecycle, task
from pipeline.extraction import shard as shard_arrays
from pipeline.extraction.moves import Move, Origin, moves
from pipeline.extraction.pending import find_pending
from pipeline.extraction.plan import Plan
from pipeline.extraction.segments import Segment
from pipeline.monitoring.progress import track
from pipeline.outputs import OutputFolder
from pipeline.runtime import preflight
from pipeline.runtime.executor import Executor, completed
from pipeline.storage import is_local
from pipeline.store import added_variables, feature_store, records
from pipeline.store.records import RecordingOutcome

PARTS: Final = ("manifest.parquet", "ledger.parquet", "features.zarr", "shards")
"""What compaction replaces, by its names below the output folder."""

log = logging.getLogger(__name__)


class Completion(BaseModel):
    """What run.json gets once the new store is in its place: the content of the mark `complete`.

    `key` is that of the compaction, and `extract_key` that of an extraction which has nothing to do. `scan` are the
    facts of the last scan. The numbers are those of a `CompactRecord`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    extract_key: str
    scan: Mapping[str, Any]
    appends: int
    masked: int
    sequences: int


def compact(output: OutputFolder, config: PipelineConfig, key: str, executor: Executor) -> int:
    """Write the finished store of an output folder anew, without masked recordings; return its sequences.

    No recording is read, and no recording changes its split. The manifest and the ledger lose the rows of masked
    recordings. The new store is written beside the old one, which can be read until `swap`. Shards that an interrupted
    compaction of the same store (`key`) wrote are kept. Raises UsageError for an output folder that is not local, and
    PipelineError if all recordings are masked.
    """
    if not is_local(output.root):
        raise UsageError(f"--out {output.root}: compact renames folders, so it needs a folder on this machine")
    manifest = ManifestFile.at(output.manifest)
    if not has_usable(manifest):
        raise PipelineError(f"{output.manifest}: all recordings are masked; add recordings to the corpus first")
    added = added_variables.movable(output)
    extract.check_memory(executor, config)
    preflight.check(executor, output)
    beside = output.compacted
    _begin(beside, key)
    with scratch_folder(output.root) as folder, database(folder) as db:
        new = write_compacted(db, beside.manifest, manifest, config)
        plan = Plan.of(new, config)
        lifecycle.open_store(beside, new, plan)
        added_variables.create(
            output, beside, plan.sequences, config.store.sequences_per_chunk, config.store.sequences_per_shard
        )
        pending = find_pending(beside, plan, executor=lambda: executor).shards
        work = partial(move_shard, out=str(output.root), config=config, added=added)
        with track("compact", len(pending), "shards", executor.monitor.dashboard) as progress:
            for _ in completed(executor.run(work, moves(db, output, Plan.of(manifest, config), plan, pending))):
                progress.advance()
    lifecycle.finish(beside, new, plan, lambda: executor)
    return plan.sequences


def _begin(beside: OutputFolder, key: str) -> None:
    """Delete what an interrupted compaction of another state of the store left."""
    key_file = beside.root / "key.txt"
    if not key_file.exists() or key_file.read_text() != key:
        shutil.rmtree(str(beside.root), ignore_errors=True)
        write_atomically(key_file, key.encode())


def move_shard(move: Move, *, out: str, config: PipelineConfig, added: Sequence[str] = ()) -> int:
    """Write one whole shard of the new store from sequences of the old one; return their number.

    `added` names the variables over `sequence` that other programs added.
    """
    old, shard = OutputFolder.at(out), move.shard
    arrays, outcomes = shard_arrays.empty(shard, config), []
    spans = [
        (origin.start, origin.start + segment.count)
        for segment, origin in zip(shard.segments, move.origins, strict=True)
    ]
    stored = feature_store.read(old, spans, schema.computed_names())
    for segment, origin, values in zip(shard.segments, move.origins, stored, strict=True):
        shard_arrays.describe(arrays, segment, config.store.timesteps)
        rows = slice(segment.place, segment.place + segment.count)
        for name in values:
            arrays[name][rows] = values[name]
        outcomes.append(_outcome(segment, origin, int(np.count_nonzero(values["valid"]))))
    added_variables.move(old, old.compacted, added, spans, shard.start)
    with task.one_thread():
        written = feature_store.write_shard(old.compacted, shard.index, arrays)
        records.write_record(old.compacted, shard_arrays.record_of(shard, arrays, tuple(outcomes), written))
    return shard.stop - shard.start


def _outcome(segment: Segment, origin: Origin, written: int) -> RecordingOutcome:
    """Return the outcome that extraction would have recorded for a segment with `written` valid sequences."""
    damaged = origin.status == "short" and not origin.reason.endswith(schema.ENDS_EARLY)
    complete = written == segment.count and not damaged
    found = RecordingOutcome(
        recording=segment.recording,
        status="ok" if complete else origin.status,
        reason="" if complete and origin.status != "ok" else origin.reason,
        decoded_frames=origin.decoded_frames,
        sequences_written=written,
    )
    return found if complete else found.model_copy(update=origin.state)


def mark_complete(output: OutputFolder, completion: Completion) -> None:
    """Mark that the new store is complete: from now on every command finishes the compaction."""
    write_atomically(output.compacted.complete, completion.model_dump_json().encode())


def swap(output: OutputFolder) -> Completion | None:
    """Move the new store into the place of the old one, or complete an interrupted swap.

    Each part is replaced by two renames, and the mark `complete` stays: a swap that was killed can be repeated.
    Returns the content of the mark, None if it has none, as in folders of earlier versions.
    """
    root, beside = _folders(output)
    for name in PARTS:
        if (beside / name).exists():
            if (root / name).exists():
                (root / name).rename(beside / f"old-{name}")
            (beside / name).rename(root / name)
    for folder in (output.root, output.compacted.root):
        durable_files.sync_folder(folder)
    try:
        return Completion.model_validate_json(output.compacted.complete.read_bytes())
    except ValidationError:
        return None


def remove_old(output: OutputFolder) -> None:
    """Delete the old store after a swap, and last the mark."""
    _, beside = _folders(output)
    for path in beside.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != output.compacted.complete.name:
            path.unlink()
    durable_files.sync_folder(output.compacted.root)
    shutil.rmtree(beside)


def _folders(output: OutputFolder) -> tuple[Path, Path]:
    return Path(str(output.root)), Path(str(output.compacted.root))
