"""The feature store: created once by the driver, filled by workers in whole shards, sealed by the driver."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
import zarr
import zarr.storage
from numcodecs.bitround import BitRound
from numpy.typing import NDArray
from upath import UPath
from zarr.abc.store import Store
from zarr.core.array_spec import ArrayConfigParams
from zarr.errors import ZarrUserWarning

from pipeline.outputs import OutputFolder
from pipeline.storage import is_local, write_atomically
from pipeline.store.records import finished
from pipeline.store.shard_codec import COMPRESSOR, encode

Arrays = Mapping[str, NDArray[Any]]

# the arrays over `sequence`, which the shards fill
SEQUENCE_ARRAYS: dict[str, np.dtype[Any]] = {
    "features": np.dtype("float32"),
    "label": np.dtype("uint16"),
    "split": np.dtype("uint8"),
    "recording": np.dtype("uint32"),
    "start_frame": np.dtype("uint32"),
    "valid": np.dtype("bool"),
}
FILL_VALUES = {"features": np.nan}
STATISTICS = ("train_mean", "train_std")
# without it a chunk of one value leaves no object, and a missing object would not prove missing work
WRITE_ALL: ArrayConfigParams = {"write_empty_chunks": True}


@dataclass(frozen=True)
class Outline:
    """What a store looks like before any shard is written.

    `features_shape` is (sequence, timestep, mfcc); `compressed` says whether features are.
    """

    features_shape: tuple[int, int, int]
    sequences_per_chunk: int
    sequences_per_shard: int
    timestep_s: float
    attributes: Mapping[str, Any]
    array_attributes: Mapping[str, Mapping[str, Any]]
    compressed: bool = False


def zarr_store(path: UPath, *, read_only: bool = False) -> Store:
    """Return the zarr store at `path`, a folder or any URL that fsspec opens."""
    if is_local(path):
        return zarr.storage.LocalStore(str(path), read_only=read_only)
    # from_upath would take a file system whose connections belong to another event loop, or that has none
    return zarr.storage.FsspecStore.from_url(
        str(path), storage_options=dict(path.storage_options), read_only=read_only
    )


def create(output: OutputFolder, outline: Outline) -> None:
    """Create the empty store, replacing one whose creation was cut short; attributes are written last.

    Records of shards that a store now gone held are cleared first.
    """
    for index in finished(output):
        output.shard_record(index).unlink()
    group = zarr.create_group(zarr_store(output.store), zarr_format=3, overwrite=True)
    sequences, timesteps, coefficients = outline.features_shape
    for name, dtype in SEQUENCE_ARRAYS.items():
        inner = (timesteps, coefficients) if name == "features" else ()
        group.create_array(
            name,
            shape=(sequences, *inner),
            dtype=dtype,
            chunks=(outline.sequences_per_chunk, *inner),
            shards=(outline.sequences_per_shard, *inner),
            # whole mantissas hardly compress, and all else is 12 bytes a sequence; so a chunk is read as it lies there
            compressors=COMPRESSOR if name == "features" and outline.compressed else None,
            fill_value=FILL_VALUES.get(name, 0),
            dimension_names=("sequence", "timestep", "mfcc")[: 1 + len(inner)],
            attributes=dict(outline.array_attributes.get(name, {})),
            config=WRITE_ALL,
        )
    timestep = (np.arange(timesteps) * outline.timestep_s).astype(np.float32)
    _small(group, "timestep", timestep, ("timestep",), outline)
    _small(group, "mfcc", np.arange(coefficients, dtype=np.int32), ("mfcc",), outline)
    for name in STATISTICS:
        _small(group, name, np.full(coefficients, np.nan), ("mfcc",), outline)
    _small(group, "train_count", np.array(0, np.int64), (), outline)
    _consolidate(output).update_attributes(dict(outline.attributes))


def extend(output: OutputFolder, outline: Outline) -> None:
    """Make room for more sequences, and say what `outline` says of them; what is stored stays as it is.

    Attributes are written last, with what readers open: until then they see the store as it was.
    """
    group = zarr.open_group(zarr_store(output.store), mode="r+", use_consolidated=False)
    for name in SEQUENCE_ARRAYS:
        array = _array(group, name)
        array.resize((outline.features_shape[0], *array.shape[1:]))
        array.update_attributes(dict(outline.array_attributes.get(name, {})))
    _consolidate(output).update_attributes(dict(outline.attributes))


def read(
    output: OutputFolder, spans: Iterable[tuple[int, int]], names: Iterable[str]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the values of some arrays of the sequences [start, stop) of each span."""
    group = zarr.open_group(zarr_store(output.store, read_only=True), mode="r")
    arrays = {name: _array(group, name) for name in names}
    for start, stop in spans:
        yield {name: np.asarray(array[start:stop]) for name, array in arrays.items()}


def read_features(output: OutputFolder, start: int, stop: int) -> NDArray[np.float32]:
    """Return the features of sequences [start, stop): (sequence, timestep, mfcc) float32."""
    group = zarr.open_group(zarr_store(output.store, read_only=True), mode="r")
    return np.asarray(_array(group, "features")[start:stop], np.float32)


def rounded(features: NDArray[np.float32], mantissa_bits: int | None) -> NDArray[np.float32]:
    """Return float32 features with `mantissa_bits` bits of mantissa (1 to 23), or as they are with None.

    Rounded to nearest, ties to even: the error is at most 2^-(mantissa_bits + 1) of a value. NaN and infinities stay.
    """
    if mantissa_bits is None:
        return features
    result: NDArray[np.float32] = BitRound(mantissa_bits).encode(features).view(np.float32)
    np.copyto(result, features, where=np.isnan(features))  # a carry out of a NaN's mantissa would make it a number
    return result


def write_shard(output: OutputFolder, index: int, arrays: Arrays) -> dict[str, str]:
    """Write all arrays of shard `index`, and return the checksum of each stored object.

    `arrays` holds for every name of SEQUENCE_ARRAYS the whole shard: `features` (sequence, timestep, mfcc), the
    others (sequence,). Raises ValueError for anything that is not a whole shard, and OSError as the file system.
    """
    features = zarr.open_array(zarr_store(output.store, read_only=True), path="features", mode="r")
    start, stop = _bounds(features, index)
    chunk, shard = features.chunks[0], (features.shards or features.chunks)[0]
    digests = {}
    for name, path in _objects(output, index).items():
        values, dtype = arrays[name], SEQUENCE_ARRAYS[name]
        inner = features.shape[1:] if name == "features" else ()
        if values.shape != (stop - start, *inner) or values.dtype != dtype:
            raise ValueError(f"{name} of shard {index}: {values.dtype} {values.shape} is not the whole shard")
        compressed = name == "features" and bool(features.compressors)
        parts = encode(values, chunk, shard // chunk, FILL_VALUES.get(name, 0), compressed=compressed)
        write_atomically(path, *parts)
        digests[name] = _digest(parts)
    return digests


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def write_valid(output: OutputFolder, index: int, valid: NDArray[np.bool_]) -> None:
    """Write which sequences of shard `index` are valid: (sequence,) bool, for readers of a shard that changes."""
    array = _array(zarr.open_group(zarr_store(output.store), mode="r+"), "valid").with_config(WRITE_ALL)
    array[slice(*_bounds(array, index))] = valid


def checksums(output: OutputFolder, index: int) -> dict[str, str]:
    """Return a digest of each stored object of shard `index`: {array: digest, or "missing"}."""
    result = {}
    for name, path in _objects(output, index).items():
        try:
            result[name] = _digest([path.read_bytes()])
        except FileNotFoundError:
            result[name] = "missing"
    return result


def stored_bytes(output: OutputFolder, index: int) -> int:
    """Return the size of all stored objects of shard `index`."""
    return sum(path.stat().st_size for path in _objects(output, index).values())


def _objects(output: OutputFolder, index: int) -> dict[str, UPath]:
    """Return where each array's object of shard `index` lies, by the keys that Zarr's format 3 has by default."""
    inner = {"features": ("0", "0")}  # its other dimensions are one shard each
    return {name: output.store.joinpath(name, "c", str(index), *inner.get(name, ())) for name in SEQUENCE_ARRAYS}


def seal(output: OutputFolder, mean: NDArray[np.float64], std: NDArray[np.float64], count: int) -> None:
    """Write the training statistics and clear what killed workers left: the last write to a store."""
    group = zarr.open_group(zarr_store(output.store), mode="r+", use_consolidated=False)
    _array(group, "train_mean")[:] = mean
    _array(group, "train_std")[:] = std
    _array(group, "train_count")[...] = count
    if is_local(output.root):
        for leftover in (*output.store.rglob("*.partial"), *output.shards.glob("*.partial")):
            leftover.unlink()


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{name} of {group.store} is not an array")
    return array


def _bounds(array: zarr.Array[Any], index: int) -> tuple[int, int]:
    """Return the sequences [start, stop) of shard `index`."""
    size = (array.shards or array.chunks)[0]
    if not 0 <= index * size < array.shape[0]:
        raise ValueError(f"shard {index} is outside of an array of {array.shape[0]} sequences")
    return index * size, min((index + 1) * size, array.shape[0])


def _small(group: zarr.Group, name: str, values: NDArray[Any], dims: Iterable[str], outline: Outline) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=values.shape or "auto",
        fill_value=np.nan if values.dtype.kind == "f" else 0,
        dimension_names=tuple(dims),
        attributes=dict(outline.array_attributes.get(name, {})),
        config=WRITE_ALL,
    )
    array[...] = values


def _consolidate(output: OutputFolder) -> zarr.Group:
    """Put the metadata of all arrays into one object, so that opening a store is one read."""
    with warnings.catch_warnings():
        # zarr warns that consolidated metadata is not yet in the specification; xarray warns where it is absent
        warnings.simplefilter("ignore", ZarrUserWarning)
        return zarr.consolidate_metadata(zarr_store(output.store))
