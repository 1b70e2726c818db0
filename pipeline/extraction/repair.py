"""Repairing a store: what is damaged is prepared to be made again, unless recordings that it takes are gone."""

import logging
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.corpus.database import stable_hash
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.digests import bytes_digest
from pipeline.errors import PipelineError, counted, few
from pipeline.extraction import ledger, lifecycle, record_ranges
from pipeline.extraction.plan import Plan
from pipeline.extraction.record_ranges import RecordStates, StartExecutor
from pipeline.extraction.segments import Shard
from pipeline.extraction.verify import check_shards
from pipeline.outputs import OutputFolder
from pipeline.runtime.executor import Executor
from pipeline.schema import SILENT, computed_names
from pipeline.sorted_arrays import among
from pipeline.storage import bytes_or_none, can_be_read, file_digest
from pipeline.store import feature_store, metadata, record_digests, records
from pipeline.store.metadata import Metadata

REUSED: Final = ("ok", "short")
"""Statuses of recordings whose sequences are copied when a shard is written again."""
NAMED: Final = 3
"""Shards and files that a message names."""
FILES_KNOWN: Final = 2**12
"""Files that are tried once: shards that follow one another take the same ones."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Damage:
    """Damaged shards, (shard,) int64 in rising order each.

    `again` are to be written again, `missing` cannot be: of the `files` that keep them from it, because they cannot be
    read, it has the first names.
    """

    again: NDArray[np.int64]
    missing: NDArray[np.int64]
    files: Sequence[str]
    number_of_files: int

    def added_to(self, pending: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shards to write if those of `pending` are, too: (shard,) int64 in rising order."""
        return np.setdiff1d(np.union1d(pending, self.again), self.missing)

    def error(self, output: OutputFolder) -> PipelineError:
        """Return the error with which a command ends that could not make all shards again."""
        return PipelineError(
            f"{output.store}: {counted(len(self.missing), 'damaged shard')} ({_names(output, self.missing)}) kept "
            f"unchanged, because recordings cannot be read ({few(self.files, NAMED, self.number_of_files)}); bring "
            "them back, or restore the shards from a backup, and run extract --repair"
        )


def _names(output: OutputFolder, shards: NDArray[np.int64]) -> str:
    return few([output.shard_record(index).stem for index in shards[:NAMED].tolist()], NAMED, len(shards))


def find(output: OutputFolder, plan: Plan, states: RecordStates, executor: Executor, *, reads_objects: bool) -> Damage:
    """Return the damaged shards of `plan`: those with a damaged record, and, if `reads_objects`, damaged objects.

    `states` are those of the records. The records of the shards to write again are prepared for that.
    """
    extracted = states.damaged.copy()  # shards of which all is damaged, or what depends on the audio
    others = np.zeros_like(extracted)
    if reads_objects:
        listed = record_digests.read(output, len(plan))
        for check in check_shards(output, listed, states, executor, "extract --repair"):
            for shard in check.damaged:
                if shard.variables and states.recorded[shard.index]:
                    whole = set(shard.variables).isdisjoint(computed_names())
                    (others if whole else extracted)[shard.index] = True
    damaged = np.flatnonzero(extracted | others)
    missing, hashes, files = array("q"), array("Q"), list[str]()
    for index, file in _missing(output, plan, damaged, extracted):
        missing.append(index)
        hashes.append(stable_hash(file))
        files = sorted({*files, file})[:NAMED]
    kept = np.array(missing, np.int64)
    again = np.setdiff1d(damaged, kept)
    if len(again):
        log.warning("extract: %s damaged, written again: %s", counted(len(again), "shard"), _names(output, again))
    for index in map(int, again):
        _invalidate(output, index, extracted=bool(extracted[index]))
    return Damage(again, kept, files, len(np.unique(np.array(hashes, np.uint64))))


def _invalidate(output: OutputFolder, index: int, *, extracted: bool) -> None:
    """Mark a damaged shard as unfinished; unless it has to be `extracted`, what depends on the audio is reused."""
    record = records.find_record(output, index)
    if record is None or extracted:
        output.shard_record(index).unlink(missing_ok=True)
    else:
        records.write_record(output, record.model_copy(update={"checksums": {}}))


def _missing(
    output: OutputFolder, plan: Plan, damaged: NDArray[np.int64], extracted: NDArray[np.bool_]
) -> Iterator[tuple[int, str]]:
    """Yield each damaged shard that takes a recording which cannot be read now, and had been, with its file."""
    readable = lru_cache(FILES_KNOWN)(can_be_read)
    failed = ledger.failed_rows(output)
    for index in map(int, damaged):
        record = None if extracted[index] else records.find_record(output, index)
        reused = {o.recording for o in record.outcomes if _is_reused(o)} if record is not None else set()
        gone = next((file for file in _files_read(plan[index], failed, reused) if not readable(file)), None)
        if gone is not None:
            yield index, gone


def _files_read(shard: Shard, failed: NDArray[np.int64], reused: set[int]) -> Iterator[str]:
    """Yield the files that a shard is made of again, without those of recordings that had `failed`."""
    exempt = among(np.array([segment.recording for segment in shard.segments], np.int64), failed)
    for segment, had_failed in zip(shard.segments, exempt.tolist(), strict=True):
        if not (segment.masked or had_failed or segment.recording in reused):
            yield segment.source.container


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
