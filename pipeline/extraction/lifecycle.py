"""The life of a store: created or extended, filled shard by shard, and finished with statistics and ledger."""

import importlib.metadata

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import storage
from pipeline.config import PipelineConfig
from pipeline.corpus.manifest import extends, label_names, manifest_digest, split_runs
from pipeline.errors import UsageError
from pipeline.extraction import ledger
from pipeline.extraction.plan import Plan, Shard
from pipeline.outputs import OutputFolder
from pipeline.runtime.code_upload import FEATURE_LIBRARIES
from pipeline.schema import SCHEMA_VERSION, SILENT, SPLITS, flag_attributes
from pipeline.store import feature_store, records
from pipeline.store.records import RecordingOutcome, ShardRecord, StoreAttributes
from pipeline.store.statistics import combine


def open_store(output: OutputFolder, manifest: pd.DataFrame, plan: Plan) -> None:
    """Create the store, or extend the existing one to the length of `plan`.

    Raises UsageError for a store of another configuration, or of a manifest that `manifest` does not extend.
    """
    found = records.read_attributes(output)
    outline = _outline(manifest, plan)
    if found is None:
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
        feature_store.extend(output, outline)


def check_config(output: OutputFolder, found: StoreAttributes, config: PipelineConfig) -> None:
    """Raise UsageError if the store with the attributes `found` was made with another configuration."""
    if found.config_hash != config.config_hash:
        raise UsageError(
            f"--out {output.root} holds a store of another configuration (config_hash {found.config_hash}, this run "
            f"has {config.config_hash}); choose another --out, or use the configuration that it was made with"
        )


def pending_shards(output: OutputFolder, plan: Plan, *, filter_silent: bool | None = None) -> NDArray[np.int64]:
    """Return the shards of `plan` that still have to be written, in rising order.

    These are the shards without a record, and those whose record lists other recordings than the plan does, because
    it was written for an earlier manifest. If `filter_silent` is given, shards with recordings without sound that were
    not treated in this way are pending, too.
    """
    recorded = records.recorded_shards(output)
    outdated = {i for i in plan.changeable() & recorded if not _matches(records.read_record(output, i), plan[i])}
    if filter_silent is not None:
        outdated |= _treated_otherwise(output, plan, filter_silent=filter_silent) & recorded
    return np.setdiff1d(np.arange(len(plan)), np.fromiter(recorded - outdated, np.int64))


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
