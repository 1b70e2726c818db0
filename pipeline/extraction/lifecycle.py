"""The life of a store: created or extended, filled shard by shard, and finished with statistics and ledger."""

import importlib.metadata
import logging
import shutil
from collections.abc import Iterator
from typing import Final

import numpy as np

from pipeline import durable_files
from pipeline.config import PipelineConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.manifest_summary import longest, split_runs
from pipeline.errors import PipelineError, UsageError, few
from pipeline.extraction import ledger, record_ranges
from pipeline.extraction.outcomes import Outcomes
from pipeline.extraction.plan import Plan, bytes_per_sequence
from pipeline.extraction.record_ranges import StartExecutor
from pipeline.outputs import OutputFolder
from pipeline.runtime.code_upload import FEATURE_LIBRARIES
from pipeline.schema import SCHEMA_VERSION, SEQUENCE_VARIABLES, SPLITS, flag_attributes, version_mismatch
from pipeline.storage import is_local
from pipeline.store import feature_store, metadata, record_digests, records
from pipeline.store.record_digests import RecordDigests
from pipeline.store.records import StoreAttributes
from pipeline.store.statistics import TrainSums, combine

MAX_STORE_BYTES: Final = 2**50
"""A plan of a larger store, of some ten million hours of audio, is a mistake."""

log = logging.getLogger(__name__)


def open_store(output: OutputFolder, manifest: ManifestFile, plan: Plan) -> None:
    """Create the store, or extend the existing one to the length of `plan`.

    Raises UsageError for a store of another configuration, or of a manifest that `manifest` does not extend.
    """
    restore_metadata(output)
    found = stored_attributes(output)
    planned = outline(manifest, plan)
    if found is None:
        if len(records.recorded_shards(output)):
            log.warning("%s is not there any more: all shards are extracted again", output.store)
        feature_store.create(output, planned)
        return
    check_config(output, found, plan.config)
    wanted = planned.attributes["manifest_digest"]
    if found.manifest_digest != wanted:
        if not manifest.extends(found.manifest_digest):
            raise UsageError(
                f"--out {output.root} holds a store of another manifest (manifest_digest {found.manifest_digest}, "
                f"this run has {wanted}); choose another --out, or scan the corpus that the store was made of"
            )
        added = feature_store.extend(output, planned)
        if added:
            log.warning("%s in %s: no values for the new sequences", few(added), output.store)


def stored_attributes(output: OutputFolder) -> StoreAttributes | None:
    """Return the attributes of the store, None for one that has to be created.

    Raises PipelineError for a store with finished shards whose attributes are lost.
    """
    found = records.read_attributes(output)
    if found is None and is_there(output) and len(records.recorded_shards(output)):
        raise PipelineError(
            f"{output.store} has lost its attributes, and there is no copy of them in {output.shards}; run extract "
            "--repair, which makes them from the manifest and the settings"
        )
    if found is not None and not output.metadata.exists():
        metadata.keep(output)
    return found


def is_there(output: OutputFolder) -> bool:
    """Whether the output folder holds a store, or objects of one."""
    return (output.store / "zarr.json").exists() or any(
        (output.store / variable.name / "c").exists() for variable in SEQUENCE_VARIABLES
    )


def restore_metadata(output: OutputFolder, *, layouts: bool = False) -> bool:
    """Restore what other programs have changed in the metadata of the store; return whether anything differs.

    The layout of an array is restored only if its stored objects still have it, or if all `layouts` are wanted.
    """
    if not is_there(output):
        return False
    damaged = metadata.damaged_files(output)
    if not damaged:
        return False
    changed, others = metadata.changed_attributes(output), metadata.changed_layouts(output)
    variables = _unchanged_variables(output) if others and not layouts else {name.partition(".")[0] for name in others}
    restored = [*changed, *(name for name in others if name.partition(".")[0] in variables)]
    if restored or not others:
        metadata.restore(output, variables)
        what = restored or [str(path) for path in damaged]
        log.warning("%s: another program has changed or removed %s; restored", output.store, few(what))
    return True


def _unchanged_variables(output: OutputFolder) -> set[str]:
    """Return the variables whose objects match the first finished shard, or are not over `sequence`.

    The others are not over `sequence`; `finish` writes their objects again. Returns all if no shard is finished.
    """
    names = {variable.name for variable in SEQUENCE_VARIABLES}
    for index in map(int, records.recorded_shards(output)):
        record = records.find_record(output, index)
        if record is not None and record.finished:
            found = feature_store.checksums(output, index)
            names = {name for name, checksum in record.checksums.items() if found.get(name) == checksum}
            break
    return names | metadata.unsharded(output)


def check_settings(output: OutputFolder, config: PipelineConfig) -> None:
    """Raise UsageError if the output folder holds a store of another schema version or configuration.

    The copy of the attributes decides: those of the store may be damaged, which extraction repairs.
    """
    found = next(iter(metadata.readable(output)), None)
    if found is not None:
        attributes = StoreAttributes.model_validate(found.attributes)
        mismatch = version_mismatch(str(output.store), attributes.schema_version)
        if mismatch:
            raise UsageError(mismatch)
        check_config(output, attributes, config)


def check_config(output: OutputFolder, found: StoreAttributes, config: PipelineConfig) -> None:
    """Raise UsageError if the store with the attributes `found` was made with another configuration."""
    if found.config_hash != config.config_hash:
        raise UsageError(
            f"--out {output.root} holds a store of another configuration (config_hash {found.config_hash}, this run "
            f"has {config.config_hash}); choose another --out, or use the configuration that it was made with"
        )


def roll_back(output: OutputFolder, manifest: ManifestFile, config: PipelineConfig) -> None:
    """Shorten the store to that of `manifest`, whose rows are those of the earlier appends.

    The records of the shards that held more go first. If this is interrupted, it can be repeated.
    """
    plan = Plan.of(manifest, config)
    whole = plan.sequences // config.store.sequences_per_shard
    listed = [index[index >= whole] for index, _ in record_digests.read_lines(output)]
    record_digests.release(output, np.unique(np.concatenate([np.empty(0, np.int64), *listed])))
    recorded = records.recorded_shards(output)
    for index in map(int, recorded[recorded >= whole]):
        if index >= len(plan):
            output.shard_record(index).unlink()
        else:
            record = records.find_record(output, index)
            if record is None:
                continue
            planned = {segment.recording for segment in plan[index].segments}
            kept = tuple(outcome for outcome in record.outcomes if outcome.recording in planned)
            records.write_record(output, record.model_copy(update={"checksums": {}, "outcomes": kept}))
    durable_files.sync_folder(output.shards)
    feature_store.extend(output, outline(manifest, plan))


def check_room(output: OutputFolder, manifest: ManifestFile, plan: Plan) -> None:
    """Raise UsageError for a store that no disk could hold, or for a recording that the disk of `output` could not.

    It names the longest recording, whose header may be wrong. A store that is merely larger than the disk is begun:
    room can be made while it is written.
    """
    columns = ("recording_id", "sequences", "duration_s", "size_bytes")
    largest = manifest.rows([longest(manifest)], columns).iloc[0]
    sequence_bytes = bytes_per_sequence(plan.config)
    disk_bytes = MAX_STORE_BYTES
    if is_local(output.root) and output.root.exists():
        disk_bytes = shutil.disk_usage(str(output.root)).total
    if plan.sequences * sequence_bytes <= MAX_STORE_BYTES and largest["sequences"] * sequence_bytes <= disk_bytes:
        return
    raise UsageError(
        f"{output.manifest}: no disk could hold a store of {plan.sequences * sequence_bytes / 2**30:,.0f} GiB; the "
        f"longest recording is {largest['recording_id']}, {largest['duration_s'] / 3600:,.0f} h in a file of "
        f"{largest['size_bytes']} bytes; repair or remove it, and run scan again"
    )


def finish(output: OutputFolder, manifest: ManifestFile, plan: Plan, executor: StartExecutor | None = None) -> None:
    """Write what depends on all shards: statistics, ledger and the digests of the records; and the indexes again.

    Each record is read once, by the workers of `executor` if there are many.
    """
    (size,) = plan.config.features.dims.values()
    written, sums = RecordDigests.none(len(plan)), list[TrainSums]()

    def outcomes() -> Iterator[Outcomes]:
        for found in record_ranges.summaries(output, len(plan), size, executor):
            part = slice(found.start, found.start + len(found.digests))
            written.listed[part], written.digest[part] = True, found.digests
            sums.append(found.sums)
            yield found.outcomes

    with ledger.building(manifest, outcomes(), plan.config, output.root) as built:
        statistics = combine(sums, size)
        feature_store.write_indexes(output, outline(manifest, plan))
        feature_store.seal(output, statistics.mean, statistics.std, statistics.count)
        durable_files.write_parquet_groups(output.ledger, built)
    record_digests.write(output, written)


def outline(manifest: ManifestFile, plan: Plan) -> feature_store.Outline:
    """Return the outline of the store of a manifest and its plan."""
    config = plan.config
    of_features = config.features.variable_attributes
    return feature_store.Outline(
        sequences=plan.sequences,
        timesteps=config.store.timesteps,
        feature_dims=config.features.dims,
        sequences_per_chunk=config.store.sequences_per_chunk,
        sequences_per_shard=config.store.sequences_per_shard,
        hop_s=config.features.hop_s,
        attributes=StoreAttributes(
            schema_version=SCHEMA_VERSION,
            config=config.model_dump(include=set(PipelineConfig.model_fields)),
            config_hash=config.config_hash,
            manifest_digest=manifest.digest(),
            split_runs=split_runs(manifest),
            versions={name: importlib.metadata.version(name) for name in FEATURE_LIBRARIES},
        ).model_dump(mode="json"),
        variable_attributes={
            **of_features,
            "features": {**of_features["features"], **_precision(config)},
            "label": flag_attributes(plan.labels),
            "split": flag_attributes(SPLITS),
        },
        compressed=config.store.mantissa_bits is not None,
    )


def _precision(config: PipelineConfig) -> dict[str, str]:
    """Return the attribute that states how features were rounded, if they were."""
    bits = config.store.mantissa_bits
    if bits is None:
        return {}
    return {"comment": f"rounded to {bits} bits of mantissa: relative error at most 2^-{bits + 1}"}
