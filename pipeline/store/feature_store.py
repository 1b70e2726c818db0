"""The feature store: the driver creates and seals it, workers write it in whole shards."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from numcodecs.bitround import BitRound
from numpy.typing import NDArray
from upath import UPath
from zarr.abc.store import Store
from zarr.core.array_spec import ArrayConfigParams  # zarr 3.1: a type, not exported elsewhere
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipeline import schema
from pipeline.digests import bytes_digest
from pipeline.durable_files import Files, Unnamed, partial_files, sync_folder
from pipeline.outputs import OutputFolder
from pipeline.schema import FEATURE, Variable
from pipeline.storage import FileDigest, file_digest, is_local
from pipeline.store import added_variables
from pipeline.store.metadata import Metadata, consolidate, publish, unsharded, written, zarr_store
from pipeline.store.records import recorded_shards
from pipeline.store.shard_codec import COMPRESSOR, encode

Arrays = Mapping[str, NDArray[Any]]

# Without it a chunk of fill values is stored as no object, and a missing object would not prove missing work.
WRITE_ALL: ArrayConfigParams = {"write_empty_chunks": True}


@dataclass(frozen=True)
class Outline:
    """A store before any shard is written.

    `feature_dims` is the one dimension of a frame, name → size, such as {"mfcc": 40}; `hop_s` is the time from one
    frame to the next; `compressed` concerns the features. `variable_attributes` are added to the attributes that the
    schema gives a variable.
    """

    sequences: int
    timesteps: int
    feature_dims: Mapping[str, int]
    sequences_per_chunk: int
    sequences_per_shard: int
    hop_s: float
    attributes: Mapping[str, Any]
    variable_attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    compressed: bool = False

    def __post_init__(self) -> None:
        if len(self.feature_dims) != 1:
            raise ValueError(f"a frame has one dimension, not {dict(self.feature_dims)}")

    def dims(self, variable: Variable) -> tuple[str, ...]:
        """Return the names of the dimensions of `variable`."""
        return tuple(name for dim in variable.dims for name in (self.feature_dims if dim == FEATURE else (dim,)))

    def shape(self, variable: Variable) -> tuple[int, ...]:
        """Return the shape of `variable`."""
        sizes = {"sequence": self.sequences, "timestep": self.timesteps, **self.feature_dims}
        return tuple(sizes[dim] for dim in self.dims(variable))

    def attributes_of(self, variable: Variable) -> dict[str, Any]:
        """Return the attributes of `variable`."""
        return {**variable.attributes(), **self.variable_attributes.get(variable.name, {})}

    def unsharded(self) -> Iterator[Variable]:
        """Yield the variables that are not over `sequence`; the index over each dimension of a frame is the last."""
        yield from schema.SHARED_VARIABLES
        yield from (Variable(dim, "int32", (dim,), 0, f"{dim} number") for dim in self.feature_dims)

    def values(self, variable: Variable) -> NDArray[Any]:
        """Return the values of a variable that is not over `sequence`, fill values where they depend on the shards."""
        if variable.name == "timestep":
            return (np.arange(self.timesteps) * self.hop_s).astype(variable.dtype)
        if variable.name in self.feature_dims:
            return np.arange(self.feature_dims[variable.name], dtype=variable.dtype)
        return np.full(self.shape(variable), variable.fill, variable.dtype)


def create(output: OutputFolder, outline: Outline) -> None:
    """Create the empty store, replacing one whose creation was interrupted.

    Shard records and metadata of an earlier store are deleted first, and the attributes are written last: a store
    with attributes is complete.
    """
    for index in map(int, recorded_shards(output)):
        output.shard_record(index).unlink()
    for path in (output.metadata, output.shard_digests):
        path.unlink(missing_ok=True)
    sync_folder(output.shards)
    _create(zarr_store(output.store), outline)
    sync_folder(output.root)  # zarr made the folder of the store
    publish(output, outline.attributes)


def metadata_of(outline: Outline) -> Metadata:
    """Return the metadata that a store of this outline has."""
    content: dict[str, Buffer] = {}
    store = MemoryStore(content)
    _create(store, outline)
    consolidate(store).update_attributes(dict(outline.attributes))
    return written(json.loads(content["zarr.json"].to_bytes()))


def _create(store: Store, outline: Outline) -> None:
    """Create a group with all variables; those over `sequence` are empty."""
    group = zarr.create_group(store, zarr_format=3, overwrite=True)
    for variable in schema.SEQUENCE_VARIABLES:
        shape = outline.shape(variable)
        group.create_array(
            variable.name,
            shape=shape,
            dtype=variable.dtype,
            chunks=(outline.sequences_per_chunk, *shape[1:]),
            shards=(outline.sequences_per_shard, *shape[1:]),
            # Unrounded features hardly compress, and all else is about 12 bytes per sequence: uncompressed chunks can
            # be read straight into place.
            compressors=COMPRESSOR if _is_compressed(variable, outline) else None,
            fill_value=variable.fill,
            dimension_names=outline.dims(variable),
            attributes=outline.attributes_of(variable),
            config=WRITE_ALL,
        )
    for variable in outline.unsharded():
        _create_unsharded(group, variable, outline.values(variable), outline)


def _is_compressed(variable: Variable, outline: Outline) -> bool:
    return variable.name == "features" and outline.compressed


def extend(output: OutputFolder, outline: Outline) -> list[str]:
    """Lengthen or shorten the store to `outline.sequences` and replace its attributes; what is left does not change.

    Attributes and consolidated metadata, which readers open, are written last: until then readers see the old store.
    Returns the names of the variables over `sequence` that other programs added; they get the same length.
    """
    group = zarr.open_group(zarr_store(output.store), mode="r+", use_consolidated=False)
    for variable in schema.SEQUENCE_VARIABLES:
        array = _array(group, variable.name)
        array.resize((outline.sequences, *array.shape[1:]))
        array.update_attributes(outline.attributes_of(variable))
    resized = added_variables.resize(output, outline.sequences)
    publish(output, outline.attributes)
    return resized


def write_manifest_digest(output: OutputFolder, digest: str) -> None:
    """Replace the attribute `manifest_digest` of the store."""
    publish(output, {"manifest_digest": digest})


def read(
    output: OutputFolder, spans: Iterable[tuple[int, int]], names: Iterable[str]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield {name: values} of the variables `names` for the sequences [start, stop) of each span."""
    group = zarr.open_group(zarr_store(output.store, read_only=True), mode="r")
    arrays = {name: _array(group, name) for name in names}
    for start, stop in spans:
        yield {name: np.asarray(array[start:stop]) for name, array in arrays.items()}


def read_features(output: OutputFolder, start: int, stop: int) -> NDArray[np.float32]:
    """Return the features of sequences [start, stop): (sequence, timestep, feature) float32."""
    (values,) = read(output, [(start, stop)], ("features",))
    return np.asarray(values["features"], np.float32)


def rounded(features: NDArray[np.float32], mantissa_bits: int | None) -> NDArray[np.float32]:
    """Return float32 features rounded to `mantissa_bits` bits of mantissa (1 to 23), unchanged if that is None.

    Ties round to even: the relative error is at most 2^-(mantissa_bits + 1). NaN and infinities do not change.
    """
    if mantissa_bits is None:
        return features
    result: NDArray[np.float32] = BitRound(mantissa_bits).encode(features).view(np.float32)
    np.copyto(result, features, where=np.isnan(features))  # a carry out of a NaN's mantissa would make it a number
    return result


def write_shard(output: OutputFolder, index: int, arrays: Arrays) -> dict[str, str]:
    """Write all arrays of shard `index`; return {variable: checksum of its object}. See `encode_shard`."""
    files, checksums = encode_shard(output, index, arrays)
    Unnamed.write(files).commit()
    return checksums


def encode_shard(output: OutputFolder, index: int, arrays: Arrays) -> tuple[Files, dict[str, str]]:
    """Return the objects of all arrays of shard `index`, to be written, and {variable: checksum}.

    `arrays` holds the whole shard for each variable over `sequence`, in that variable's type. Raises ValueError for
    anything but a whole shard, and OSError from the file system.
    """
    features = zarr.open_array(zarr_store(output.store, read_only=True), path="features", mode="r")
    start, stop = _bounds(features, index)
    chunk, shard = features.chunks[0], (features.shards or features.chunks)[0]
    places = objects(output, index)
    files: dict[UPath, list[memoryview]] = {}
    checksums = {}
    for variable in schema.SEQUENCE_VARIABLES:
        name, values = variable.name, arrays[variable.name]
        inner = features.shape[1 : len(variable.dims)]
        if values.shape != (stop - start, *inner) or values.dtype != variable.dtype:
            raise ValueError(f"{name} of shard {index}: {values.dtype} {values.shape} is not the whole shard")
        compressed = name == "features" and bool(features.compressors)
        files[places[name]] = encode(values, chunk, shard // chunk, variable.fill, compressed=compressed)
        checksums[name] = bytes_digest(files[places[name]])
    return files, checksums


def write_valid(output: OutputFolder, index: int, valid: NDArray[np.bool_]) -> None:
    """Write which sequences of shard `index` are valid, (sequence,) bool, for readers while the shard is rewritten."""
    array = _array(zarr.open_group(zarr_store(output.store), mode="r+"), "valid").with_config(WRITE_ALL)
    array[slice(*_bounds(array, index))] = valid


def checksums(output: OutputFolder, index: int) -> dict[str, str]:
    """Return {variable: checksum of its stored object, or "missing"} for shard `index`."""
    return {name: found.digest if found else "missing" for name, found in object_digests(output, index).items()}


def object_digests(output: OutputFolder, index: int) -> dict[str, FileDigest | None]:
    """Return {variable: digest and size of its stored object, or None if that is missing} for shard `index`."""
    return {name: file_digest(path) for name, path in objects(output, index).items()}


def unsharded_objects(output: OutputFolder) -> list[UPath]:
    """Return the places of the objects of all variables of the store that are not over `sequence`."""
    shared = {variable.name: variable.dims for variable in schema.SHARED_VARIABLES}
    names = (*shared, *sorted(unsharded(output) - shared.keys()))
    return [output.store.joinpath(name, "c", *("0" for _ in shared.get(name, (name,)))) for name in names]


def objects(output: OutputFolder, index: int) -> dict[str, UPath]:
    """Return {variable: place of its object} for shard `index`, by the default chunk key of Zarr format 3.

    A shard spans all dimensions but `sequence`, so its other indices are 0.
    """
    return {
        variable.name: output.store.joinpath(variable.name, "c", str(index), *("0" for _ in variable.dims[1:]))
        for variable in schema.SEQUENCE_VARIABLES
    }


def write_indexes(output: OutputFolder, outline: Outline) -> None:
    """Write the indexes of a store again, as its creation wrote them."""
    group = zarr.open_group(zarr_store(output.store), mode="r+", use_consolidated=False)
    for variable in outline.unsharded():
        if variable.name in ("timestep", *outline.feature_dims):
            _array(group, variable.name)[:] = outline.values(variable)


def seal(output: OutputFolder, mean: NDArray[np.float64], std: NDArray[np.float64], count: int) -> None:
    """Write the training statistics, and delete what killed workers left: the last write to a store."""
    group = zarr.open_group(zarr_store(output.store), mode="r+", use_consolidated=False)
    _array(group, "train_mean")[:] = mean
    _array(group, "train_std")[:] = std
    _array(group, "train_count")[...] = count
    if is_local(output.root):
        for leftover in (*partial_files(output.store, deep=True), *partial_files(output.shards)):
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


def _create_unsharded(group: zarr.Group, variable: Variable, values: NDArray[Any], outline: Outline) -> None:
    array = group.create_array(
        variable.name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=values.shape or "auto",
        fill_value=variable.fill,
        dimension_names=outline.dims(variable),
        attributes=outline.attributes_of(variable),
        config=WRITE_ALL,
    )
    array[...] = values
