"""Small feature stores of known content, written as extraction writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from upath import UPath

from model.bundle import Description
from pipeline.config import PipelineConfig, StoreConfig
from pipeline.features.mfcc import Mfcc
from pipeline.outputs import OutputFolder
from pipeline.schema import SCHEMA_VERSION, SPLITS, flag_attributes
from pipeline.store import feature_store

LANGUAGES = ("de", "en", "fr")
TIMESTEPS, COEFFICIENTS = 4, 3

# keras calls numpy.array on tensorflow's variables, which know no `copy` yet, wherever it saves a model
SAVES_MODELS = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SplitRuns = Mapping[str, Sequence[tuple[int, int]]]


def numbered(sequences: int, timesteps: int = TIMESTEPS, coefficients: int = COEFFICIENTS) -> NDArray[np.float32]:
    """Return features (sequence, timestep, mfcc) whose every number says where it stands, exactly in float32."""
    s, t, c = np.ogrid[:sequences, :timesteps, :coefficients]
    return (s + t / 64 + c / 1024).astype(np.float32)


def audible(label: NDArray[np.int64], seed: int = 0, timesteps: int = TIMESTEPS) -> NDArray[np.float32]:
    """Return features (sequence, timestep, mfcc) from which a network can learn the labels (sequence,)."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(len(LANGUAGES), 1, COEFFICIENTS))
    noise = rng.normal(size=(len(label), timesteps, COEFFICIENTS))
    return (3 + 2 * (centres[label] + noise)).astype(np.float32)


def config(
    timesteps: int,
    coefficients: int,
    sequences_per_chunk: int,
    chunks_per_shard: int,
    mantissa_bits: int | None = None,
) -> PipelineConfig:
    """Return the configuration that a store of this shape would have been extracted with."""
    return PipelineConfig(
        features=Mfcc(n_mfcc=coefficients),
        store=StoreConfig(
            timesteps=timesteps,
            sequences_per_chunk=sequences_per_chunk,
            chunks_per_shard=chunks_per_shard,
            mantissa_bits=mantissa_bits,
        ),
    )


def create(
    root: Path,
    split_runs: SplitRuns,
    *,
    timesteps: int = TIMESTEPS,
    coefficients: int = COEFFICIENTS,
    languages: Sequence[str] = LANGUAGES,
    sequences_per_chunk: int = 4,
    chunks_per_shard: int = 2,
    mantissa_bits: int | None = None,
) -> OutputFolder:
    """Create a store without any shard, as long as the runs of its splits."""
    settings = config(timesteps, coefficients, sequences_per_chunk, chunks_per_shard, mantissa_bits)
    sequences = max(stop for runs in split_runs.values() for _, stop in runs)
    outline = feature_store.Outline(
        sequences=sequences,
        timesteps=timesteps,
        feature_dims=settings.features.dims,
        sequences_per_chunk=settings.store.sequences_per_chunk,
        sequences_per_shard=settings.store.sequences_per_shard,
        hop_s=settings.features.hop_s,
        attributes={
            "schema_version": SCHEMA_VERSION,
            "config": settings.model_dump(mode="json"),
            "config_hash": settings.config_hash,
            "manifest_digest": "0123456789abcdef",
            "split_runs": {name: [list(run) for run in split_runs.get(name, ())] for name in SPLITS},
            "versions": {},
        },
        variable_attributes={"label": flag_attributes(languages), "split": flag_attributes(SPLITS)},
        compressed=mantissa_bits is not None,
    )
    output = OutputFolder.at(str(root))
    feature_store.create(output, outline)
    return output


def write(
    root: Path,
    split_runs: SplitRuns,
    label: Sequence[int] | NDArray[np.int64],
    *,
    features: NDArray[np.float32] | None = None,
    valid: Sequence[bool] | NDArray[np.bool_] | None = None,
    recording: Sequence[int] | NDArray[np.int64] | None = None,
    start_frame: Sequence[int] | NDArray[np.int64] | None = None,
    languages: Sequence[str] = LANGUAGES,
    sequences_per_chunk: int = 4,
    chunks_per_shard: int = 2,
    mantissa_bits: int | None = None,
) -> OutputFolder:
    """Write a whole store: features are `numbered`, all sequences valid, each a recording of its own if not given.

    Features are rounded if `mantissa_bits` says so.
    Training statistics are those of the valid training sequences (standard deviation 1 where there are none).
    """
    count = len(label)
    features = feature_store.rounded(numbered(count) if features is None else features, mantissa_bits)
    keep = np.ones(count, bool) if valid is None else np.asarray(valid, bool)
    split = np.zeros(count, np.uint8)
    for name, runs in split_runs.items():
        for start, stop in runs:
            split[start:stop] = SPLITS.index(name)
    arrays = {
        "features": np.where(keep[:, None, None], features, np.float32(np.nan)),
        "label": np.asarray(label, np.uint16),
        "split": split,
        "recording": np.asarray(np.arange(count) if recording is None else recording, np.uint32),
        "start_frame": np.asarray(np.zeros(count) if start_frame is None else start_frame, np.uint32),
        "valid": keep,
    }
    output = create(
        root,
        split_runs,
        timesteps=features.shape[1],
        coefficients=features.shape[2],
        languages=languages,
        sequences_per_chunk=sequences_per_chunk,
        chunks_per_shard=chunks_per_shard,
        mantissa_bits=mantissa_bits,
    )
    size = sequences_per_chunk * chunks_per_shard
    for index, start in enumerate(range(0, count, size)):
        feature_store.write_shard(output, index, {name: array[start : start + size] for name, array in arrays.items()})
    frames = features[keep & (split == 0)].reshape(-1, features.shape[2]).astype(np.float64)
    if len(frames):
        feature_store.seal(output, frames.mean(axis=0), frames.std(axis=0), len(frames))
    else:
        feature_store.seal(output, np.zeros(features.shape[2]), np.ones(features.shape[2]), 0)
    return output


def describe(folder: UPath, level: Literal["frame", "sequence"], languages: Sequence[str] = LANGUAGES,
             timesteps: int = TIMESTEPS, **features: Any) -> None:  # fmt: skip
    """Write the labels.json of a model of these stores; `features` are settings in which it differs from them."""
    taken = {**Mfcc(n_mfcc=COEFFICIENTS).model_dump(), **features}
    Description(labels=tuple(languages), level=level, timesteps=timesteps, features=taken).write(folder)
