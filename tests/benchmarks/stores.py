"""Feature stores of random numbers, of any length: the shards of a long one are links to the first."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.outputs import OutputFolder
from pipeline.schema import SCHEMA_VERSION, SPLITS, flag_attributes
from pipeline.store import feature_store, records
from pipeline.store.records import ShardRecord, StoreAttributes

LABELS: Final = ("de", "en", "es", "fr")
TIMESTEPS, N_MFCC = 20, 40
CONFIG: Final = PipelineConfig()
SEQUENCES_PER_SHARD: Final = CONFIG.store.sequences_per_shard


def make(root: Path, train_shards: int, validation_shards: int = 0, *, links: bool = False) -> OutputFolder:
    """Return a store with so many shards a split, made if it is not there."""
    output = OutputFolder.at(str(root))
    shards = train_shards + validation_shards
    if len(records.recorded_shards(output)) == shards:
        return output
    edges = [SEQUENCES_PER_SHARD * count for count in (0, train_shards, shards)]
    runs = {split: [list(run)] for split, run in zip(SPLITS, pairwise(edges), strict=False) if run[0] < run[1]}
    outline = feature_store.Outline(
        sequences=edges[-1],
        timesteps=TIMESTEPS,
        feature_dims={"mfcc": N_MFCC},
        sequences_per_chunk=CONFIG.store.sequences_per_chunk,
        sequences_per_shard=SEQUENCES_PER_SHARD,
        hop_s=CONFIG.features.hop_s,
        attributes=StoreAttributes(
            schema_version=SCHEMA_VERSION,
            config=CONFIG.model_dump(),
            config_hash=CONFIG.config_hash,
            manifest_digest="",
            split_runs=runs,
            versions={},
        ).model_dump(mode="json"),
        variable_attributes={"label": flag_attributes(LABELS), "split": flag_attributes(SPLITS)},
    )
    feature_store.create(output, outline)
    record = ShardRecord(
        index=0, checksums={}, outcomes=(), train_count=0, train_sum=(), train_sum_squares=()
    )  # fmt: skip
    for index in range(shards):
        if links and index:
            _link(output, index)
        else:
            feature_store.write_shard(output, index, _shard(index))
        records.write_record(output, record.model_copy(update={"index": index}))
    feature_store.seal(output, np.zeros(N_MFCC), np.ones(N_MFCC), edges[1] * TIMESTEPS)
    return output


def rows(shards: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the features (sequence, timestep, mfcc) and labels (sequence,) of the first shards of any store."""
    arrays = [_shard(index) for index in range(shards)]
    features = np.concatenate([array["features"] for array in arrays])
    return features, np.concatenate([array["label"] for array in arrays]).astype(np.int64)


def _shard(index: int) -> dict[str, NDArray]:
    random = np.random.default_rng([3, index])
    sequences = np.arange(index * SEQUENCES_PER_SHARD, (index + 1) * SEQUENCES_PER_SHARD)
    return {
        "features": random.standard_normal((len(sequences), TIMESTEPS, N_MFCC), np.float32),
        "label": random.integers(len(LABELS), size=len(sequences), dtype=np.uint16),
        "split": np.zeros(len(sequences), np.uint8),
        "recording": (sequences // 30).astype(np.uint32),
        "start_frame": (sequences % 30 * TIMESTEPS).astype(np.uint32),
        "valid": np.ones(len(sequences), bool),
    }


def _link(output: OutputFolder, index: int) -> None:
    first = feature_store.objects(output, 0)
    for name, path in feature_store.objects(output, index).items():
        target = Path(str(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        os.link(str(first[name]), target)
