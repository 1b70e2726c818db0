"""Repairing a store: what is damaged is prepared to be made again, unless recordings that it takes are gone."""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final

import numpy as np

from pipeline.config import PipelineConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.digests import bytes_digest
from pipeline.errors import PipelineError, counted, few
from pipeline.extraction import ledger, lifecycle, record_ranges
from pipeline.extraction.plan import Plan
from pipeline.extraction.record_ranges import RecordStates, StartExecutor
from pipeline.extraction.segments import Segment
from pipeline.extraction.verify import check_shards
from pipeline.outputs import OutputFolder
from pipeline.runtime.executor import Executor
from pipeline.schema import SILENT, computed_names
from pipeline.storage import bytes_or_none, can_be_read, file_digest
from pipeline.store import feature_store, metadata, record_digests, records
from pipeline.store.metadata import Metadata

REUSED: Final = ("ok", "short")
"""Statuses of recordings whose sequences are copied when a shard is written again."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Damage:
    """Damaged shards: those to write again, and the files that keep others from it because they cannot be read."""

    shards: Collection[int]
    missing: Mapping[int, str]

    def error(self, output: OutputFolder) -> PipelineError:
        """Return the error with which a command ends that could not make all shards again."""
        names = few([output.shard_record(index).stem for index in sorted(self.missing)])
        return PipelineError(
            f"{output.store}: {counted(len(self.missing), 'damaged shard')} ({names}) kept unchanged, because "
            f"recordings cannot be read ({few(sorted(set(self.missing.values())))}); bring them back, or restore the "
            "shards from a backup, and run extract --repair"
        )


def find(output: OutputFolder, plan: Plan, states: RecordStates, executor: Executor, *, reads_objects: bool) -> Damage:
    """Return the damaged shards of `plan`: those with a damaged record, and, if `reads_objects`, damaged objects.

    `states` are those of the records. The records of the shards to write again are prepared for that.
    """
    damaged: dict[int, Collection[str]] = dict.fromkeys(np.flatnonzero(states.damaged).tolist(), computed_names())
    if reads_objects:
        listed = record_digests.read(output, len(plan))
        for check in check_shards(output, listed, states, executor, "extract --repair"):
            finished = (shard for shard in check.damaged if states.recorded[shard.index])
            damaged |= {shard.index: shard.variables for shard in finished if shard.variables}
    missing = dict(_missing(output, plan, damaged))
    again = {index: variables for index, variables in damaged.items() if index not in missing}
    if again:
        names = few([output.shard_record(index).stem for index in sorted(again)])
        log.warning("extract: %s damaged, written again: %s", counted(len(again), "shard"), names)
    for index, variables in again.items():
        _invalidate(output, index, variables)
    return Damage(again.keys(), missing)


def _invalidate(output: OutputFolder, index: int, variables: Collection[str]) -> None:
    """Mark a shard with damaged `variables` as unfinished; what depends on the audio is reused if it is whole."""
    record = records.find_record(output, index)
    if record is None or not set(variables).isdisjoint(computed_names()):
        output.shard_record(index).unlink(missing_ok=True)
    else:
        records.write_record(output, record.model_copy(update={"checksums": {}}))


def _missing(output: OutputFolder, plan: Plan, damaged: Mapping[int, Collection[str]]) -> Iterator[tuple[int, str]]:
    """Yield each damaged shard that takes a recording which cannot be read now, and had been, with its file."""
    readable = cache(can_be_read)
    failed = set(ledger.failed_rows(output).tolist())
    for index in sorted(damaged):
        record = records.find_record(output, index)
        whole = record is not None and set(damaged[index]).isdisjoint(computed_names())
        reused = {o.recording for o in record.outcomes if _is_reused(o)} if record is not None and whole else set()
        files = (s.source.container for s in plan[index].segments if _is_read(s, failed | reused))
        gone = next((file for file in files if not readable(file)), None)
        if gone is not None:
            yield index, gone


def _is_read(segment: Segment, exempt: Collection[int]) -> bool:
    return not segment.masked and segment.recording not in exempt


def _is_reused(outcome: records.RecordingOutcome) -> bool:
    return outcome.status in REUSED and not outcome.reason.startswith(SILENT)


def restore_copy(
    output: OutputFolder, manifest: ManifestFile, config: PipelineConfig, recorded: str | None, *, repair: bool
) -> None:
    """Write the copy of the metadata of a store again, if it is damaged or missing.

    `recorded` is its digest after the last extraction. What creation writes for the manifest, or for its earlier
    appends, is right if it has this digest, or is what the store or the copy has. With `repair` it is right in any
    case. Raises PipelineError if nothing is right.
    """
    content = bytes_or_none(output.metadata)
    if not lifecycle.is_there(output) or (content is not None and bytes_digest([content]) == recorded):
        return
    if recorded is None and not metadata.copy_is_damaged(output):
        return
    made = [_encoded(candidate) for candidate in _candidates(output, manifest, config)]
    if content is not None and content in made:
        return  # an extraction has begun since
    seen = [_encoded(each) for each in metadata.readable(output)]
    right = next((each for each in made if bytes_digest([each]) == recorded), None)
    right = right or next((each for each in made if each in seen), made[0] if repair else None)
    if right is None:
        raise PipelineError(f"{output.metadata} is damaged or missing; {records.REPAIR}")
    log.warning("%s was damaged or missing; it is written again", output.metadata)
    metadata.write_copy(output, Metadata.model_validate_json(right))


def stored_manifest_digest(output: OutputFolder) -> str | None:
    """Return the digest of the manifest of the store, None if there is no store."""
    found = next(iter(metadata.readable(output)), None) if lifecycle.is_there(output) else None
    return None if found is None else str(found.attributes["manifest_digest"])


def restore_digests(
    output: OutputFolder, plan: Plan, recorded: str | None, executor: StartExecutor | None = None
) -> None:
    """Write the digests of the shard records again, if that gives the file with the digest `recorded`.

    Otherwise an extraction has begun since, or a record is damaged, too.
    """
    now = file_digest(output.shard_digests) if recorded is not None else None
    if recorded is None or (now is not None and now.digest == recorded):
        return
    found = record_ranges.digests(output, len(plan), executor)
    if record_digests.content_digest(found) == recorded:
        log.warning("%s was damaged or missing; it is written again", output.shard_digests)
        record_digests.write(output, found)


def _candidates(output: OutputFolder, manifest: ManifestFile, config: PipelineConfig) -> Iterator[Metadata]:
    """Yield the metadata that creation writes, with the library versions of the store and with those of now."""
    versions = [found.attributes["versions"] for found in metadata.readable(output)]
    for append_index in range(manifest.last_append, -1, -1):
        rows = manifest.before(append_index + 1)
        made = feature_store.metadata_of(lifecycle.outline(rows, Plan.of(rows, config)))
        # a scan that gave rows another append left a store without them, see `scan`
        digests = {rows.digest(), manifest.digest(append_index)}
        for digest, each in product(digests, (*versions, made.attributes["versions"])):
            attributes = {**made.attributes, "manifest_digest": digest, "versions": each}
            yield made.model_copy(update={"attributes": attributes})


def _encoded(found: Metadata) -> bytes:
    return found.model_dump_json().encode()
