"""The metadata of a store, and the copy of it from which extraction restores what other programs have changed.

xarray, for example, replaces all attributes of a store when it adds a variable.
"""

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import zarr
import zarr.storage
from pydantic import BaseModel, ConfigDict
from upath import UPath
from zarr.abc.store import Store
from zarr.errors import ZarrUserWarning

from pipeline import schema
from pipeline.outputs import OutputFolder
from pipeline.storage import is_local, read_json, write_atomically
from pipeline.store.records import DAMAGED, StoreAttributes

LAYOUT: Final = ("shape", "data_type", "chunk_grid", "codecs", "fill_value", "dimension_names")
"""Keys of an array's zarr.json on which the bytes of its stored objects depend."""


class Metadata(BaseModel):
    """The attributes of a store, and the zarr.json of each variable, both without what other programs added."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attributes: Mapping[str, Any]
    variables: Mapping[str, Mapping[str, Any]]


class _Consolidated(BaseModel):
    metadata: Mapping[str, Mapping[str, Any]]


class _Node(BaseModel):
    """The zarr.json of a group or an array."""

    attributes: Mapping[str, Any] = {}
    consolidated_metadata: _Consolidated | None = None


def zarr_store(path: UPath, *, read_only: bool = False) -> Store:
    """Return the zarr store at `path`, a folder or any URL that fsspec opens."""
    if is_local(path):
        return zarr.storage.LocalStore(str(path), read_only=read_only)
    # from_upath would reuse a file system whose connections belong to another event loop, or that has none
    return zarr.storage.FsspecStore.from_url(
        str(path), storage_options=dict(path.storage_options), read_only=read_only
    )


def own_variables(feature_dims: Collection[str]) -> set[str]:
    """Return the names of the variables that extraction writes, given the dimensions of a frame."""
    return {variable.name for variable in (*schema.SEQUENCE_VARIABLES, *schema.SHARED_VARIABLES)} | set(feature_dims)


def consolidate(output: OutputFolder) -> zarr.Group:
    """Copy the metadata of all arrays into one object, so that a store is opened with one read."""
    with warnings.catch_warnings():
        # zarr warns that consolidated metadata is not in the specification yet; xarray warns where it is absent
        warnings.simplefilter("ignore", ZarrUserWarning)
        return zarr.consolidate_metadata(zarr_store(output.store))


def publish(output: OutputFolder, attributes: Mapping[str, Any]) -> None:
    """Write attributes and consolidated metadata, which readers open, and the copy: the end of every change."""
    consolidate(output).update_attributes(dict(attributes))
    keep(output)


def keep(output: OutputFolder) -> None:
    """Copy the metadata of the store as it is now."""
    write_atomically(output.metadata, _read(output).model_dump_json().encode())


def changed_attributes(output: OutputFolder) -> list[str]:
    """Return the attributes, of the store or as VARIABLE.ATTRIBUTE, that differ from the copy, if there is one."""
    kept = _copy(output)
    return [] if kept is None else list(_changed_attributes(_read(output), kept))


def changed_layouts(output: OutputFolder) -> list[str]:
    """Return what else differs from the copy, as VARIABLE.KEY of its zarr.json.

    The metadata that readers see may be right while that of the array, with which it is written, is not.
    """
    kept = _copy(output)
    if kept is None:
        return []
    seen = _read(output).variables
    own = {name: _document(output.store / name / "zarr.json") for name in kept.variables}
    return [
        f"{name}.{key}"
        for name, document in kept.variables.items()
        for key in LAYOUT
        if any(found.get(name, {}).get(key) != document.get(key) for found in (seen, own))
    ]


def restore(output: OutputFolder, variables: Collection[str]) -> None:
    """Restore all attributes from the copy, and the layouts of `variables`; keep what other programs added."""
    kept = _copy(output)
    if kept is None:
        return
    for name, document in kept.variables.items():
        path = output.store / name / "zarr.json"
        there = _document(path)
        base = document if name in variables or not there else there
        _write(path, {**base, "attributes": _restored(there, document["attributes"])})
    path = output.store / "zarr.json"
    attributes = _restored(_document(path), kept.attributes)
    _write(path, {"attributes": attributes, "zarr_format": 3, "node_type": "group"})
    consolidate(output)


def _copy(output: OutputFolder) -> Metadata | None:
    try:
        return read_json(output.metadata, Metadata, "delete it: the next extraction writes it anew")
    except FileNotFoundError:
        return None


def _read(output: OutputFolder) -> Metadata:
    """Return the metadata that readers see, empty if there is none."""
    try:
        found = read_json(output.store / "zarr.json", _Node, DAMAGED)
    except FileNotFoundError:
        return Metadata(attributes={}, variables={})
    variables = found.consolidated_metadata.metadata if found.consolidated_metadata else {}
    features = variables.get("features", {})
    own = own_variables(features.get("dimension_names", ())[1:])
    return Metadata(
        attributes={name: found.attributes[name] for name in StoreAttributes.model_fields if name in found.attributes},
        variables={name: variables[name] for name in sorted(own & variables.keys())},
    )


def _changed_attributes(found: Metadata, kept: Metadata) -> Iterator[str]:
    yield from (name for name, value in kept.attributes.items() if found.attributes.get(name) != value)
    for variable, document in kept.variables.items():
        attributes = found.variables.get(variable, {}).get("attributes", {})
        yield from (f"{variable}.{name}" for name, value in document["attributes"].items()
                    if attributes.get(name) != value)  # fmt: skip


def _document(path: UPath) -> Mapping[str, Any]:
    """Return the content of a zarr.json, nothing if it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _restored(document: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes `kept` in their order, and after them those that others added to `document`."""
    return {**kept, **document.get("attributes", {}), **kept}


def _write(path: UPath, document: Mapping[str, Any]) -> None:
    """Write a zarr.json with the indentation of zarr, so that a restored file has its earlier bytes."""
    write_atomically(path, json.dumps(document, indent=zarr.config.get("json_indent")).encode())
