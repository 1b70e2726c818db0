"""The life of a store: created or extended, filled shard by shard, and finished with statistics and ledger."""

import importlib.metadata
import logging
import shutil
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config import PipelineConfig
from pipeline.corpus.manifest import extends, label_names, manifest_digest, split_runs
from pipeline.errors import PipelineError, UsageError, few
from pipeline.extraction import ledger, retry
from pipeline.extraction.plan import Plan, Shard, bytes_per_sequence
from pipeline.outputs import OutputFolder
from pipeline.runtime.code_upload import FEATURE_LIBRARIES
from pipeline.schema import SCHEMA_VERSION, SEQUENCE_VARIABLES, SILENT, SPLITS, flag_attributes
from pipeline.storage import is_local
from pipeline.store import feature_store, metadata, records
from pipeline.store.records import RecordingOutcome, ShardRecord, StoreAttributes
from pipeline.store.statistics import combine

MAX_STORE_BYTES: Final = 2**50
"""A plan of a larger store, of some ten million hours of audio, is a mistake."""

log = logging.getLogger(__name__)


def open_store(output: OutputFolder, manifest: pd.DataFrame, plan: Plan) -> None:
    """Create the store, or extend the existing one to the length of `plan`.

    Raises UsageError for a store of another configuration, or of a manifest that `manifest` does not extend.
    """
    restore_metadata(output)
    found = stored_attributes(output)
    outline = _outline(manifest, plan)
    if found is None:
        if records.recorded_shards(output):
            log.warning("%s is not there any more: all shards are extracted again", output.store)
        feature_store.create(output, outline)
        return
    check_config(output, found, plan.config)
    wanted = outline.attributes["manifest_digest"]
    if found.manifest_digest != wanted:
        if not extends(manifest, found.manifest_digest):
            raise UsageError(
                f"--out {output.root} holds a store of another manifest (manifest_digest {found.manifest_digest}, "
                f"this run has {wanted}); choose another --out, or scan the corpus that the store was made of"
            )
        added = feature_store.extend(output, outline)
        if added:
            log.warning("%s in %s: no values for the new sequences", few(added), output.store)


def stored_attributes(output: OutputFolder) -> StoreAttributes | None:
    """Return the attributes of the store, None for one that has to be created.

    Raises PipelineError for a store with finished shards whose attributes are lost.
    """
    found = records.read_attributes(output)
    if found is None and _is_there(output) and records.recorded_shards(output):
        raise PipelineError(
            f"{output.store} has lost its attributes, and there is no copy of them in {output.shards}; restore "
            f"{output.store / 'zarr.json'} from a backup, or delete {output.store} to extract all recordings again"
        )
    if found is not None and not output.metadata.exists():
        metadata.keep(output)
    return found


def _is_there(output: OutputFolder) -> bool:
    return (output.store / "zarr.json").exists() or (output.store / "features" / "c").exists()


def restore_metadata(output: OutputFolder) -> bool:
    """Restore what other programs have changed in the metadata of the store; return whether they have changed any.

    The layout of an array is restored only if its stored objects still have it.
    """
    if not _is_there(output):
        return False
    changed, layouts = metadata.changed_attributes(output), metadata.changed_layouts(output)
    variables = _unchanged_variables(output) if layouts else set()
    restored = [*changed, *(name for name in layouts if name.partition(".")[0] in variables)]
    if restored:
        metadata.restore(output, variables)
        log.warning("%s: another program has changed or removed %s; restored", output.store, few(restored))
    return bool(changed or layouts)


def _unchanged_variables(output: OutputFolder) -> set[str]:
    """Return the variables over `sequence` whose objects match the first finished shard; all if none is finished."""
    for index in sorted(records.recorded_shards(output)):
        record = records.read_record(output, index)
        if record.finished:
            found = feature_store.checksums(output, index)
            return {name for name, checksum in record.checksums.items() if found.get(name) == checksum}
    return {variable.name for variable in SEQUENCE_VARIABLES}


def check_config(output: OutputFolder, found: StoreAttributes, config: PipelineConfig) -> None:
    """Raise UsageError if the store with the attributes `found` was made with another configuration."""
    if found.config_hash != config.config_hash:
        raise UsageError(
            f"--out {output.root} holds a store of another configuration (config_hash {found.config_hash}, this run "
            f"has {config.config_hash}); choose another --out, or use the configuration that it was made with"
        )


def pending_shards(output: OutputFolder, plan: Plan, *, filter_silent: bool | None = None) -> NDArray[np.int64]:
    """Return the shards of `plan` that still have to be written, in rising order.

    These are the shards without a record, those whose record lists other recordings than the plan does, because it
    was written for an earlier manifest, and those with a recording that failed and may succeed now. If `filter_silent`
    is given, shards with recordings without sound that were not treated in this way are pending, too.
    """
    recorded = records.recorded_shards(output)
    outdated = {i for i in plan.changeable() & recorded if not _matches(records.read_record(output, i), plan[i])}
    outdated |= {shard for shard, _ in retriable(output, plan)}
    if filter_silent is not None:
        outdated |= _treated_otherwise(output, plan, filter_silent=filter_silent) & recorded
    return np.setdiff1d(np.arange(len(plan)), np.fromiter(recorded - outdated, np.int64))


def retriable(output: OutputFolder, plan: Plan) -> set[tuple[int, int]]:
    """Return the failed recordings of written shards that may succeed now: (shard, row of the manifest).

    Those of a shard whose rewriting was interrupted are among them.
    """
    if not output.ledger.exists():
        return set()
    failed = set(np.flatnonzero(storage.read_parquet(output.ledger)["status"] == "failed").tolist())
    found: set[tuple[int, int]] = set()
    for index in plan.shards_with(failed) & records.recorded_shards(output) if failed else ():
        record = records.read_record(output, index)
        uri = {segment.recording: segment.source.container for segment in plan[index].segments}
        again = {o.recording for o in record.outcomes if o.recording in uri and retry.may_succeed(o, uri[o.recording])}
        found |= {(index, row) for row in (again if record.finished else failed & uri.keys())}
    return found


def roll_back(output: OutputFolder, manifest: pd.DataFrame, config: PipelineConfig) -> None:
    """Shorten the store to that of `manifest`, whose rows are those of the earlier appends.

    The records of the shards that held more go first. If this is interrupted, it can be repeated.
    """
    plan = Plan(manifest, config)
    whole = plan.sequences // config.store.sequences_per_shard
    for index in records.recorded_shards(output):
        if index >= len(plan):
            output.shard_record(index).unlink()
        elif index >= whole:
            record = records.read_record(output, index)
            planned = {segment.recording for segment in plan[index].segments}
            kept = tuple(outcome for outcome in record.outcomes if outcome.recording in planned)
            records.write_record(output, record.model_copy(update={"checksums": {}, "outcomes": kept}))
    feature_store.extend(output, _outline(manifest, plan))


def check_room(output: OutputFolder, manifest: pd.DataFrame, plan: Plan) -> None:
    """Raise UsageError for a store that no disk could hold, or for a recording that the disk of `output` could not.

    It names the longest recording, whose header may be wrong. A store that is merely larger than the disk is begun:
    room can be made while it is written.
    """
    longest = manifest.iloc[int(manifest["sequences"].to_numpy().argmax())]
    sequence_bytes = bytes_per_sequence(plan.config)
    disk_bytes = MAX_STORE_BYTES
    if is_local(output.root) and output.root.exists():
        disk_bytes = shutil.disk_usage(str(output.root)).total
    if plan.sequences * sequence_bytes <= MAX_STORE_BYTES and longest["sequences"] * sequence_bytes <= disk_bytes:
        return
    raise UsageError(
        f"{output.manifest}: no disk could hold a store of {plan.sequences * sequence_bytes / 2**30:,.0f} GiB; the "
        f"longest recording is {longest['recording_id']}, {longest['duration_s'] / 3600:,.0f} h in a file of "
        f"{longest['size_bytes']} bytes; repair or remove it, and run scan again"
    )


def _matches(record: ShardRecord, shard: Shard) -> bool:
    planned = [(segment.recording, segment.masked) for segment in shard.segments]
    return record.finished and planned == [
        (outcome.recording, outcome.reason if outcome.status == "filtered" and not _is_silent(outcome) else "")
        for outcome in record.outcomes
    ]


def _is_silent(outcome: RecordingOutcome) -> bool:
    return outcome.reason.startswith(SILENT)


def _treated_otherwise(output: OutputFolder, plan: Plan, *, filter_silent: bool) -> set[int]:
    """Return the shards with recordings without sound that the last extraction treated otherwise."""
    if not output.ledger.exists():
        return set()
    rows = storage.read_parquet(output.ledger)
    otherwise = ledger.silent_rows(rows) & ((rows["status"] == "filtered") != filter_silent).to_numpy()
    return plan.shards_with(np.flatnonzero(otherwise).tolist())


def finish(output: OutputFolder, manifest: pd.DataFrame, plan: Plan) -> None:
    """Write what depends on all shards: the statistics and the ledger."""
    shards, (size,) = range(len(plan)), plan.config.features.dims.values()
    statistics = combine((records.read_record(output, i) for i in shards), size)
    feature_store.seal(output, statistics.mean, statistics.std, statistics.count)
    rows = ledger.build(manifest, (records.read_record(output, i) for i in shards), plan.config)
    storage.write_parquet(output.ledger, rows)


def _outline(manifest: pd.DataFrame, plan: Plan) -> feature_store.Outline:
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
            manifest_digest=manifest_digest(manifest),
            split_runs=split_runs(manifest),
            versions={name: importlib.metadata.version(name) for name in FEATURE_LIBRARIES},
        ).model_dump(mode="json"),
        variable_attributes={
            **of_features,
            "features": {**of_features["features"], **_precision(config)},
            "label": flag_attributes(label_names(manifest)),
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
