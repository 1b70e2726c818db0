"""The verify stage: every file below the output folder is the one that was written. Nothing is repaired."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import pandas as pd

from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError
from pipeline.extraction import ledger, lifecycle
from pipeline.extraction.plan import Plan
from pipeline.monitoring.progress import track
from pipeline.outputs import OutputFolder
from pipeline.run_record import ExtractRecord, RunFile
from pipeline.runtime import preflight
from pipeline.runtime.executor import Executor, completed
from pipeline.schema import AS_OF
from pipeline.storage import file_digest
from pipeline.store import feature_store, metadata, records

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


@dataclass(frozen=True)
class ListedShard:
    """A shard to check, and the digest that its record must have; None if it is not known."""

    index: int
    digest: str | None


@dataclass(frozen=True)
class ShardCheck:
    """What was read of a shard: its record is right or not, the variables whose objects are not, files and bytes."""

    index: int
    record_damaged: bool = False
    variables: tuple[str, ...] = ()
    files: int = 0
    size_bytes: int = 0


@dataclass(frozen=True)
class Verification:
    """What was read, and the damaged files with their remedies: paths below the output folder."""

    shards: int
    files: int
    size_bytes: int
    damaged: Mapping[str, str]


def verify(
    output: OutputFolder, manifest: pd.DataFrame, config: PipelineConfig, run: RunFile, executor: Executor
) -> Verification:
    """Read every file that is recorded, and compare it with what was written; `run` is the content of run.json.

    The record of a shard has the digests of its objects, shards/_digests those of the records, and run.json those of
    all other files. Raises PipelineError for a store that is not extracted completely.
    """
    plan = Plan.at(output, config)
    damaged: dict[str, str] = {}
    files, size_bytes = 0, 0
    for name, digest, remedy in _recorded(run):
        found = file_digest(output.root / name)
        files, size_bytes = files + 1, size_bytes + (found.size_bytes if found else 0)
        if (found and found.digest) != digest and (found or remedy != DELETE):
            damaged[name] = remedy
    listed = {} if below(output, output.shard_digests) in damaged else records.read_digests(output)
    damaged_records = lifecycle.damaged_records(output, plan, listed)
    unfinished = set(lifecycle.pending_shards(output, plan, listed=listed).tolist()) - damaged_records
    if unfinished:
        raise PipelineError(
            f"{output.root}: {len(unfinished)} of {len(plan)} shards are not extracted yet; run extract first"
        )
    preflight.check(executor, output, writes=False)
    for path in _damaged_metadata(output, damaged):
        damaged[path] = REPAIR
    for check in check_shards(output, plan, listed, executor):
        files, size_bytes = files + check.files, size_bytes + check.size_bytes
        damaged |= dict.fromkeys(damaged_files(output, check), REPAIR)
    documents = [] if below(output, output.metadata) in damaged else list(map(file_digest, metadata.documents(output)))
    files, size_bytes = files + len(documents), size_bytes + sum(found.size_bytes for found in documents if found)
    if not damaged and not _ledger_matches(output, manifest, plan):
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


def _ledger_matches(output: OutputFolder, manifest: pd.DataFrame, plan: Plan) -> bool:
    written, found = (records.read_record(output, index) for index in range(len(plan))), ledger.find(output)
    return found is not None and ledger.build(manifest, written, plan.config).equals(found)


def check_shards(
    output: OutputFolder, plan: Plan, listed: Mapping[int, str], executor: Executor, stage: str = "verify"
) -> Iterator[ShardCheck]:
    """Read the record and the objects of every shard of `plan`; yield what was found, in any order.

    `listed` are the digests that records must have, by shard. The progress is shown as that of `stage`.
    """
    shards = [ListedShard(index, listed.get(index)) for index in range(len(plan))]
    with track(stage, len(shards), "shards", executor.monitor.dashboard) as progress:
        for done in completed(executor.run(partial(check_shard, out=str(output.root)), shards)):
            progress.advance(failed=bool(done.result.record_damaged or done.result.variables))
            yield done.result


def check_shard(shard: ListedShard, *, out: str) -> ShardCheck:
    """Compare the record of a shard with its digest, and the stored objects with the checksums in the record."""
    output, index = OutputFolder.at(out), shard.index
    recorded, record = file_digest(output.shard_record(index)), records.find_record(output, index)
    if recorded is None or record is None or shard.digest not in (None, recorded.digest):
        return ShardCheck(index, record_damaged=True)
    found = feature_store.object_digests(output, index)
    differing = [name for name, file in found.items() if record.checksums.get(name) != (file and file.digest)]
    size_bytes = recorded.size_bytes + sum(file.size_bytes for file in found.values() if file)
    return ShardCheck(index, False, tuple(differing), 1 + len(found), size_bytes)


def damaged_files(output: OutputFolder, check: ShardCheck) -> list[str]:
    """Return the damaged files of a shard."""
    places = feature_store.objects(output, check.index)
    paths = [output.shard_record(check.index)] if check.record_damaged else [places[name] for name in check.variables]
    return [below(output, path) for path in paths]


def below(output: OutputFolder, path: object) -> str:
    """Return the path of a file relative to the output folder."""
    return str(path).removeprefix(str(output.root)).lstrip("/\\")
