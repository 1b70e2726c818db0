"""Reading arrays of a store: every element goes where it is wanted, and damage is named."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from upath import UPath

from model.data.array_reader import MAX_VECTORS, ArrayReader, open_arrays
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from tests.support import model_stores
from tests.support.model_stores import COEFFICIENTS, TIMESTEPS

SEQUENCES = 50


def _features(output: OutputFolder) -> ArrayReader:
    return open_arrays(str(output.store), output.store, ("features",))["features"]


@contextmanager
def _restored(path: Path) -> Iterator[bytes]:
    """Give what a file holds, and let it hold that again afterwards: the stores are those of all tests here."""
    whole = path.read_bytes()
    try:
        yield whole
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OutputFolder]:
    """One store plain, and one rounded to as many bits as its numbers have, so that they are the same."""
    runs, label = {"train": [(0, SEQUENCES)]}, np.arange(SEQUENCES) % 3
    return {
        "plain": model_stores.write(tmp_path_factory.mktemp("plain"), runs, label),
        "compressed": model_stores.write(tmp_path_factory.mktemp("compressed"), runs, label, mantissa_bits=20),
    }


@pytest.fixture(scope="module")
def readers(outputs: dict[str, OutputFolder]) -> Iterator[dict[str, ArrayReader]]:
    """Each way that an array can be read: two straight from files, one by zarr."""
    files = fsspec.filesystem("memory")
    files.put(str(outputs["plain"].store), "/chunk-tests/", recursive=True)
    url = "memory://chunk-tests/features.zarr"
    by_zarr = open_arrays(url, UPath(url), ("features",))["features"]
    yield {name: _features(output) for name, output in outputs.items()} | {"zarr": by_zarr}
    files.rm("/chunk-tests", recursive=True)


@pytest.mark.parametrize("kind", ["plain", "compressed", "zarr"])
@given(
    start=st.integers(0, SEQUENCES),
    count=st.integers(0, SEQUENCES),
    wanted=st.integers(0, 9),
    seed=st.integers(0),
)
def test_every_element_goes_to_its_place_and_the_others_nowhere(
    readers: dict[str, ArrayReader], kind: str, start: int, count: int, wanted: int, seed: int
) -> None:
    stop = min(SEQUENCES, start + count)
    random = np.random.default_rng(seed)
    rows = random.permutation(stop - start)[:wanted]
    out = np.full((len(rows), TIMESTEPS, COEFFICIENTS), -1, np.float32)
    places = np.full(stop - start, -1, np.int64)
    places[rows] = random.permutation(len(rows))
    readers[kind].scatter(start, stop, out, places)
    expected = np.empty_like(out)
    expected[places[rows]] = model_stores.numbered(SEQUENCES)[start + rows]
    np.testing.assert_array_equal(out, expected)


def test_a_chunk_of_more_elements_than_the_kernel_takes_places_at_once_is_read_whole(tmp_path: Path) -> None:
    count = 2 * MAX_VECTORS + 3
    output = model_stores.write(
        tmp_path, {"train": [(0, count)]}, np.arange(count) % 3, sequences_per_chunk=count, chunks_per_shard=1
    )
    places = np.random.default_rng(0).permutation(count)
    out = np.empty((count, TIMESTEPS, COEFFICIENTS), np.float32)
    _features(output).scatter(0, count, out, places)
    np.testing.assert_array_equal(out[places], model_stores.numbered(count))


def test_a_place_beyond_the_array_is_refused(readers: dict[str, ArrayReader]) -> None:
    out = np.zeros((3, TIMESTEPS, COEFFICIENTS), np.float32)
    for reader in readers.values():
        with pytest.raises(IndexError):
            reader.scatter(0, 4, out, np.array([0, 3, 1, 2]))


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((4, TIMESTEPS, COEFFICIENTS)),
        np.zeros((4, COEFFICIENTS, TIMESTEPS), np.float32),
        np.zeros((8, TIMESTEPS, COEFFICIENTS), np.float32)[::2],
    ],
)
def test_memory_of_another_form_is_refused(readers: dict[str, ArrayReader], out: NDArray[np.generic]) -> None:
    for reader in readers.values():
        with pytest.raises(ValueError, match=r"takes no elements of float32 \(50, 4, 3\)"):
            reader.scatter(0, 4, out, np.arange(4))


@pytest.mark.parametrize("kind", ["plain", "compressed"])
def test_a_shard_that_ends_too_early_is_named(outputs: dict[str, OutputFolder], kind: str) -> None:
    path = outputs[kind].store / "features/c/1/0/0"
    reader = _features(outputs[kind])
    out, places = np.empty((8, TIMESTEPS, COEFFICIENTS), np.float32), np.arange(8)
    reader.scatter(8, 16, out, places)
    with _restored(path) as whole:
        path.write_bytes(whole[:40])
        with pytest.raises(PipelineError, match=r"features/c/1/0/0 \(shard 1\) cannot be read: the file is too short"):
            reader.scatter(8, 16, out, places)
        path.unlink()
        with pytest.raises(PipelineError, match=r"features/c/1/0/0 \(shard 1\) cannot be read: No such file"):
            reader.scatter(8, 16, out, places)


def test_a_chunk_beyond_the_longest_file_is_refused_and_its_offset_not_wrapped_around(
    outputs: dict[str, OutputFolder],
) -> None:
    path = outputs["plain"].store / "features/c/0/0/0"
    row_bytes = TIMESTEPS * COEFFICIENTS * 4
    with _restored(path) as whole:
        content = bytearray(whole)
        # the index of two chunks and its checksum are the end; element 1 would begin at byte 0 again
        content[-36:-28] = (2**64 - row_bytes).to_bytes(8, "little")
        path.write_bytes(content)
        for read in (
            lambda reader: reader.read(1, 3),
            lambda reader: reader.scatter(1, 3, np.empty((2, TIMESTEPS, COEFFICIENTS), np.float32), np.arange(2)),
        ):
            with pytest.raises(PipelineError, match=r"\(shard 0\) cannot be read: it is no shard of this array"):
                read(_features(outputs["plain"]))


def test_damage_to_a_compressed_shard_is_named_where_it_can_be_seen(outputs: dict[str, OutputFolder]) -> None:
    path = outputs["compressed"].store / "features/c/0/0/0"
    refused = []
    with _restored(path) as whole:
        for place in range(len(whole)):
            content = bytearray(whole)
            content[place] ^= 0xFF
            path.write_bytes(content)
            try:
                assert len(_features(outputs["compressed"]).read(0, 4)) == 4
            except PipelineError as error:
                refused.append(str(error))
        # the sizes in the header and the chunk's place in the index at least
        assert len(refused) >= 8 + 16
        assert [text for text in refused if "features/c/0/0/0 (shard 0) cannot be read: " not in text] == []
        path.write_bytes(whole[:40])
        with pytest.raises(PipelineError, match=r"\(shard 0\) cannot be read"):
            _features(outputs["compressed"]).read(0, 4)
