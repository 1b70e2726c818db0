"""The verify stage: every file below the output folder is the one that was written. Nothing is repaired."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from pipeline.config import PipelineConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.errors import PipelineError
from pipeline.extraction import ledger, record_ranges
from pipeline.extraction.pending import find_pending
from pipeline.extraction.plan import Plan
from pipeline.extraction.record_ranges import RecordRange, RecordStates
from pipeline.monitoring.progress import track
from pipeline.outputs import OutputFolder
from pipeline.run_record import ExtractRecord, RunFile
from pipeline.runtime import preflight
from pipeline.runtime.executor import Executor, completed
from pipeline.schema import AS_OF
from pipeline.storage import file_digest
from pipeline.store import feature_store, metadata, record_digests, records
from pipeline.store.record_digests import RecordDigests

REPAIR: Final = "run extract --repair"
DELETE: Final = "delete it"
"""The remedy for a file that only shows the progress of an extraction: it may be missing."""
REMEDIES: Final[Mapping[str, str]] = {
    "scan": "restore the manifest from a backup, or run scan on the same recordings",
    "train": "run train",
    "evaluate": "run evaluate",
    "report": "run report",
}
"""What makes the files of a stage again; for all other stages it is REPAIR."""
TASKS: Final = 4096
"""The shards are read by so many tasks, or by more."""
MOST_AT_ONCE: Final = 256
"""The most shards of a task."""


@dataclass(frozen=True)
class DamagedShard:
    """A shard with a damaged record, or else the variables whose objects are damaged."""

    index: int
    variables: tuple[str, ...] = ()


@dataclass(frozen=True)
class RangeCheck:
    """What was read of some shards: those that are damaged, and files and bytes."""

    shards: int
    damaged: tuple[DamagedShard, ...]
    files: int
    size_bytes: int


@dataclass(frozen=True)
class Verification:
    """What was read, and the damaged files with their remedies: paths below the output folder."""

    shards: int
    files: int
    size_bytes: int
    damaged: Mapping[str, str]


def verify(
    output: OutputFolder, manifest: ManifestFile, config: PipelineConfig, run: RunFile, executor: Executor
) -> Verification:
    """Read every file that is recorded, and compare it with what was written; `run` is the content of run.json.

    The record of a shard has the digests of its objects, shards/_digests those of the records, and run.json those of
    all other files. Raises PipelineError for a store that is not extracted completely.
    """
    plan = Plan.of(manifest, config)
    damaged: dict[str, str] = {}
    files, size_bytes = 0, 0
    for name, digest, remedy in _recorded(run):
        found = file_digest(output.root / name)
        files, size_bytes = files + 1, size_bytes + (found.size_bytes if found else 0)
        if (found and found.digest) != digest and (found or remedy != DELETE):
            damaged[name] = remedy
    no_digests = below(output, output.shard_digests) in damaged
    listed = RecordDigests.none(len(plan)) if no_digests else record_digests.read(output, len(plan))
    states = record_ranges.states(output, listed, lambda: executor)
    pending = find_pending(output, plan, states=states)
    unfinished = np.count_nonzero(~states.damaged[pending.shards])
    if unfinished:
        raise PipelineError(
            f"{output.root}: {unfinished} of {len(plan)} shards are not extracted yet; run extract first"
        )
    preflight.check(executor, output, writes=False)
    for path in _damaged_metadata(output, damaged):
        damaged[path] = REPAIR
    for check in check_shards(output, listed, states, executor):
        files, size_bytes = files + check.files, size_bytes + check.size_bytes
        for shard in check.damaged:
            damaged |= dict.fromkeys(damaged_files(output, shard), REPAIR)
    documents = [] if below(output, output.metadata) in damaged else list(map(file_digest, metadata.documents(output)))
    files, size_bytes = files + len(documents), size_bytes + sum(found.size_bytes for found in documents if found)
    (size,) = config.features.dims.values()
    outcomes = (part.outcomes for part in record_ranges.summaries(output, len(plan), size, lambda: executor))
    if not damaged and not ledger.matches(output, manifest, outcomes, config):
        damaged["ledger.parquet"] = REPAIR
    return Verification(len(plan), files, size_bytes, damaged)


def _recorded(run: RunFile) -> Iterator[tuple[str, str, str]]:
    """Yield name, digest and remedy of every file that is recorded in run.json."""
    accounted = run.accounted
    for stage, record in run.stages.items():
        if stage == "scan" and not accounted:  # an earlier version did not record a compacted manifest
            continue
        kind, _, model = stage.partition("/")
        remedy = REMEDIES.get(kind, REPAIR)
        if model.startswith(AS_OF):
            remedy += f" --as-of {model.removeprefix(AS_OF)}"
        for name, digest in record.outputs.items():
            if digest is not None:
                yield name, digest, remedy
    extracted = run.stages.get("extract")
    yield from (
        (name, digest, DELETE)
        for name, digest in (extracted.progress.items() if isinstance(extracted, ExtractRecord) else ())
        if digest is not None
    )


def _damaged_metadata(output: OutputFolder, damaged: Mapping[str, str]) -> list[str]:
    """Return each zarr.json that differs; if the copy of the metadata is damaged itself, there is no telling."""
    if below(output, output.metadata) in damaged:
        return []
    return [below(output, path) for path in metadata.damaged_files(output)]


def check_shards(
    output: OutputFolder, listed: RecordDigests, states: RecordStates, executor: Executor, stage: str = "verify"
) -> Iterator[RangeCheck]:
    """Read the record and the objects of every shard of a plan; yield what was found, in any order.

    `listed` are the digests that records must have. The progress is shown as that of `stage`.
    """
    shards = len(states.recorded)
    size = min(max(1, shards // TASKS), MOST_AT_ONCE)
    parts = RecordRange.split(states.recorded, listed, size)
    with track(stage, shards, "shards", executor.monitor.dashboard) as progress:
        for done in completed(executor.run(partial(check_range, out=str(output.root)), parts)):
            progress.advance(done.result.shards, failed=len(done.result.damaged))
            yield done.result


def check_range(part: RecordRange, *, out: str) -> RangeCheck:
    """Compare the records of some shards with their digests, and the stored objects with their checksums."""
    output, damaged, files, size_bytes = OutputFolder.at(out), list[DamagedShard](), 0, 0
    for index, content in zip(part.shards, records.contents(output, part.shards), strict=True):
        record = None if content is None else part.record(output, index, content)
        if content is None or record is None:
            damaged.append(DamagedShard(index))
            continue
        found = feature_store.object_digests(output, index)
        differing = [name for name, file in found.items() if record.checksums.get(name) != (file and file.digest)]
        if differing:
            damaged.append(DamagedShard(index, tuple(differing)))
        files += 1 + len(found)
        size_bytes += len(content) + sum(file.size_bytes for file in found.values() if file)
    return RangeCheck(len(part.shards), tuple(damaged), files, size_bytes)


def damaged_files(output: OutputFolder, shard: DamagedShard) -> list[str]:
    """Return the damaged files of a shard."""
    places = feature_store.objects(output, shard.index)
    paths = [places[name] for name in shard.variables] or [output.shard_record(shard.index)]
    return [below(output, path) for path in paths]


def below(output: OutputFolder, path: object) -> str:
    """Return the path of a file relative to the output folder."""
    return str(path).removeprefix(str(output.root)).lstrip("/\\")
