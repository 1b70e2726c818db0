"""The variables that other programs added to a store: they stay when it is extended and when it is compacted."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import zarr
from zarr.errors import ZarrUserWarning

from pipeline.errors import UsageError
from pipeline.outputs import OutputFolder
from pipeline.store.metadata import consolidate, own_variables, zarr_store

Array = zarr.Array[Any]


def resize(output: OutputFolder, sequences: int) -> list[str]:
    """Give the added variables over `sequence` that length; return their names. New values are the fill values."""
    resized = []
    for name, array in _added(output):
        dims = _dims(array)
        if "sequence" in dims:
            array.resize(
                tuple(sequences if dim == "sequence" else n for dim, n in zip(dims, array.shape, strict=True))
            )
            resized.append(name)
    return resized


def movable(output: OutputFolder) -> tuple[str, ...]:
    """Return the names of the added variables over `sequence`, which `move` moves.

    Raises UsageError for one that has another dimension before `sequence`, and for a group.
    """
    for name, member in _members(output):
        if isinstance(member, zarr.Group):
            raise UsageError(
                f"{output.store / name} is a group, whose arrays cannot be moved; move this folder elsewhere"
            )
    found = {name: _dims(array) for name, array in _added(output) if "sequence" in _dims(array)}
    for name, dims in found.items():
        if dims[0] != "sequence":
            raise UsageError(
                f"{output.store / name}: the first dimension of an added variable must be sequence, not {dims[0]}; "
                "delete this folder, or write it with the dimensions in another order"
            )
    return tuple(found)


def create(old: OutputFolder, new: OutputFolder, sequences: int, chunk: int, shard: int) -> None:
    """Create the added variables of the store `old` in `new`, where it has them not yet.

    Those over `sequence` are empty and have chunks of `chunk` and shards of `shard` sequences; others are copied.
    """
    group = zarr.open_group(zarr_store(new.store), mode="r+", use_consolidated=False)
    there = {name for name, _ in _members(new)}
    for name, array in _added(old):
        over_sequence = "sequence" in _dims(array)
        if over_sequence and name in there:
            continue
        inner = array.shape[1:]
        made = group.create_array(
            name,
            shape=(sequences, *inner) if over_sequence else array.shape,
            dtype=array.dtype,
            chunks=(chunk, *inner) if over_sequence else array.chunks,
            shards=(shard, *inner) if over_sequence else array.shards,
            compressors=array.compressors,
            filters=array.filters,
            fill_value=array.fill_value,
            dimension_names=_dims(array),
            attributes=array.attrs.asdict(),
            overwrite=True,
        )
        if not over_sequence:
            made[...] = array[...]
    consolidate(zarr_store(new.store))


def move(
    old: OutputFolder, new: OutputFolder, names: Iterable[str], spans: Sequence[tuple[int, int]], start: int
) -> None:
    """Write the sequences [start, stop) of all spans of `old`, one after the other, into `new` from `start` on."""
    stop = start + sum(end - begin for begin, end in spans)
    for name in names:
        source = zarr.open_array(zarr_store(old.store, read_only=True), path=name, mode="r")
        target = zarr.open_array(zarr_store(new.store), path=name, mode="r+")
        target[start:stop] = np.concatenate([np.asarray(source[begin:end]) for begin, end in spans])


def _added(output: OutputFolder) -> Iterator[tuple[str, Array]]:
    """Yield name and array of each variable that extraction did not write."""
    arrays = {name: member for name, member in _members(output) if isinstance(member, zarr.Array)}
    own = own_variables(_dims(arrays["features"])[1:])
    return ((name, array) for name, array in arrays.items() if name not in own)


def _members(output: OutputFolder) -> list[tuple[str, Array | zarr.Group]]:
    """Return name and content of each array and group in the store, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # half-written files of killed processes are no member
        group = zarr.open_group(zarr_store(output.store), mode="r+", use_consolidated=False)
        return sorted(group.members(), key=itemgetter(0))


def _dims(array: Array) -> tuple[str, ...]:
    """Return the names of an array's dimensions, "" for one without a name."""
    names: Sequence[str | None] | None = getattr(array.metadata, "dimension_names", None)  # not in Zarr format 2
    return tuple(name or "" for name in names or [""] * array.ndim)
