"""Sharded objects: the very bytes that zarr itself writes."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from pipeline.schema import SEQUENCE_VARIABLES, Variable
from pipeline.store.shard_codec import COMPRESSOR, encode


def written_by_zarr(values: np.ndarray, chunk: int, chunks: int, fill: object, *, compressed: bool) -> bytes:
    """The object that zarr makes of an array of one shard."""
    inner = values.shape[1:]
    kept = MemoryStore()
    array = zarr.create_array(
        kept,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(chunk, *inner),
        shards=(chunk * chunks, *inner),
        compressors=COMPRESSOR if compressed else None,
        fill_value=fill,
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return kept._store_dict["/".join(("c", *["0"] * values.ndim))].to_bytes()


@settings(max_examples=60, deadline=None)
@given(
    variable=st.sampled_from(SEQUENCE_VARIABLES),
    chunk=st.integers(1, 7),
    chunks=st.integers(1, 5),
    missing=st.integers(0, 20),
    compressed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_bytes_are_those_of_zarr(
    variable: Variable, chunk: int, chunks: int, missing: int, compressed: bool, seed: int
) -> None:
    rows = max(1, chunk * chunks - missing)
    inner, fill = (3, 2)[: len(variable.dims) - 1], variable.fill
    values = np.random.default_rng(seed).integers(0, 2, (rows, *inner)).astype(variable.dtype)
    compressed = compressed and variable.name == "features"
    found = b"".join(encode(values, chunk, chunks, fill, compressed=compressed))
    assert found == written_by_zarr(values, chunk, chunks, fill, compressed=compressed)


@pytest.mark.parametrize("compressed", [False, True])
def test_whole_chunks_of_features_are_those_of_zarr(compressed: bool) -> None:
    values = np.random.default_rng(0).normal(size=(700, 20, 40)).astype(np.float32)
    values[:600] = np.round(values[:600])
    found = b"".join(encode(values, 256, 4, np.nan, compressed=compressed))
    assert found == written_by_zarr(values, 256, 4, np.nan, compressed=compressed)


def test_chunks_are_not_copied() -> None:
    values = np.arange(8, dtype=np.uint16)
    first = encode(values, 2, 4, 0, compressed=False)[0]
    assert np.shares_memory(np.frombuffer(first, np.uint8), values)
