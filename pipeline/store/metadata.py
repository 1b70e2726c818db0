"""The metadata of a store, and the copy of it from which extraction restores what other programs have changed.

xarray, for example, replaces all attributes of a store when it adds a variable.
"""

import asyncio
import json
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

import zarr
import zarr.storage
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from upath import UPath
from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.errors import ZarrUserWarning

from pipeline import schema
from pipeline.durable_files import write_atomically
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from pipeline.storage import bytes_or_none, is_local, read_json
from pipeline.store import zarr_json
from pipeline.store.records import REPAIR, StoreAttributes
from pipeline.store.zarr_json import ATTRIBUTES, CONSOLIDATED, changed_keys, encoded, mapping

GROUP: Final[Mapping[str, Any]] = {"zarr_format": 3, "node_type": "group"}
"""What is in the zarr.json of every group."""


class Metadata(BaseModel):
    """The attributes of a store, and the zarr.json of each variable, both without what other programs added."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attributes: Mapping[str, Any]
    variables: Mapping[str, Mapping[str, Any]]

    @field_validator("variables")
    @classmethod
    def _have_attributes(cls, variables: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        if not all(isinstance(document.get(ATTRIBUTES), Mapping) for document in variables.values()):
            raise ValueError("a variable has no attributes")
        return variables


class _Consolidated(BaseModel):
    metadata: Mapping[str, Mapping[str, Any]]


class _Node(BaseModel):
    """The zarr.json of a group or an array."""

    attributes: Mapping[str, Any] = {}
    consolidated_metadata: _Consolidated | None = None


class _DurableStore(zarr.storage.LocalStore):
    """zarr's local store, but each object survives a power cut once it is written (zarr 3.1: `set` writes objects)."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write the object `key` atomically."""
        if not self._is_open:
            await self._open()
        self._check_writable()
        await asyncio.to_thread(write_atomically, UPath(self.root / key), value.to_bytes())


def zarr_store(path: UPath, *, read_only: bool = False) -> Store:
    """Return the zarr store at `path`, a folder or any URL that fsspec opens."""
    if is_local(path):
        return _DurableStore(str(path), read_only=read_only)
    # from_upath would reuse a file system whose connections belong to another event loop, or that has none
    return zarr.storage.FsspecStore.from_url(
        str(path), storage_options=dict(path.storage_options), read_only=read_only
    )


def own_variables(feature_dims: Collection[str]) -> set[str]:
    """Return the names of the variables that extraction writes, given the dimensions of a frame."""
    return {variable.name for variable in (*schema.SEQUENCE_VARIABLES, *schema.SHARED_VARIABLES)} | set(feature_dims)


def unsharded(output: OutputFolder) -> set[str]:
    """Return the names of the variables of the copy that are not over `sequence`."""
    kept = _copy(output)
    sequence = {variable.name for variable in schema.SEQUENCE_VARIABLES}
    return set() if kept is None else kept.variables.keys() - sequence


def consolidate(store: Store) -> zarr.Group:
    """Copy the metadata of all arrays into one object, so that a store is opened with one read."""
    with warnings.catch_warnings():
        # zarr warns that consolidated metadata is not in the specification yet; xarray warns where it is absent
        warnings.simplefilter("ignore", ZarrUserWarning)
        return zarr.consolidate_metadata(store)


def publish(output: OutputFolder, attributes: Mapping[str, Any]) -> None:
    """Write attributes and consolidated metadata, which readers open, and the copy: the end of every change."""
    consolidate(zarr_store(output.store)).update_attributes(dict(attributes))
    keep(output)


def keep(output: OutputFolder) -> None:
    """Copy the metadata of the store as it is now."""
    write_copy(output, _read(output))


def write_copy(output: OutputFolder, copied: Metadata) -> None:
    """Write the copy of the metadata of a store."""
    write_atomically(output.metadata, copied.model_dump_json().encode())


def written(group: Mapping[str, Any]) -> Metadata:
    """Return the metadata in the zarr.json of the group of a store, without what other programs added."""
    return _metadata(_Node.model_validate(group))


def readable(output: OutputFolder) -> list[Metadata]:
    """Return the copy of the metadata, and what readers see, each if it can be read and has all attributes."""
    found = []
    with suppress(PipelineError):
        found.append(_copy(output))
    found.append(_found(output))
    return [each for each in found if each is not None and _is_complete(each)]


def copy_is_damaged(output: OutputFolder) -> bool:
    """Whether there is a copy of the metadata that cannot be read."""
    try:
        _copy(output)
    except PipelineError:
        return True
    return False


def _is_complete(found: Metadata) -> bool:
    try:
        StoreAttributes.model_validate(found.attributes)
    except ValidationError:
        return False
    return True


def changed_attributes(output: OutputFolder) -> list[str]:
    """Return the attributes, of the store or as VARIABLE.ATTRIBUTE, that differ from the copy, if there is one.

    The metadata that readers see may be right while that of the array, with which it is written, is not.
    """
    kept = _copy(output)
    if kept is None:
        return []
    changed = _changed_attributes(_found(output), kept) + _changed_attributes(_own(output, kept), kept)
    return list(dict.fromkeys(changed))


def changed_layouts(output: OutputFolder) -> list[str]:
    """Return what else differs from the copy, as VARIABLE.KEY of its zarr.json."""
    kept = _copy(output)
    if kept is None:
        return []
    changed = (
        f"{name}.{key}"
        for found in (_found(output).variables, _own(output, kept).variables)
        for name, document in kept.variables.items()
        for key in changed_keys(found.get(name, {}), document)
        if key != ATTRIBUTES
    )
    return list(dict.fromkeys(changed))


def documents(output: OutputFolder) -> list[UPath]:
    """Return the places of every zarr.json that extraction writes, none if there is no copy of the metadata."""
    kept = _copy(output)
    return (
        [] if kept is None else [output.store / "zarr.json", *(output.store / n / "zarr.json" for n in kept.variables)]
    )


def damaged_files(output: OutputFolder) -> list[UPath]:
    """Return each zarr.json of the store that differs from the copy in more than what other programs added.

    A file to which nothing was added must have the very bytes that extraction wrote.
    """
    kept = _copy(output)
    if kept is None:
        return []
    group = output.store / "zarr.json"
    arrays = {output.store / name / "zarr.json": document for name, document in kept.variables.items()}
    return [
        *([] if _is_whole(group, _group(kept)) else [group]),
        *(path for path, document in arrays.items() if not _is_whole(path, document)),
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
    _write(path, {ATTRIBUTES: attributes, **GROUP})
    consolidate(zarr_store(output.store))


def _copy(output: OutputFolder) -> Metadata | None:
    try:
        return read_json(output.metadata, Metadata, REPAIR)
    except FileNotFoundError:
        return None


def _read(output: OutputFolder) -> Metadata:
    """Return the metadata that readers see, empty if there is none."""
    try:
        found = read_json(output.store / "zarr.json", _Node, REPAIR)
    except FileNotFoundError:
        return Metadata(attributes={}, variables={})
    return _metadata(found)


def _metadata(found: _Node) -> Metadata:
    variables = found.consolidated_metadata.metadata if found.consolidated_metadata else {}
    dims = variables.get("features", {}).get("dimension_names")
    own = own_variables(dims[1:] if isinstance(dims, list) else ())
    variables = {
        name: document for name, document in variables.items() if isinstance(document.get(ATTRIBUTES), Mapping)
    }
    return Metadata(
        attributes={name: found.attributes[name] for name in StoreAttributes.model_fields if name in found.attributes},
        variables={name: variables[name] for name in sorted(own & variables.keys())},
    )


def _found(output: OutputFolder) -> Metadata:
    """Return the metadata that readers see, empty if there is none that can be read."""
    try:
        return _read(output)
    except PipelineError:
        return Metadata(attributes={}, variables={})


def _own(output: OutputFolder, kept: Metadata) -> Metadata:
    """Return the metadata with which the arrays are written, and the attributes of the store."""
    documents = {name: _document(output.store / name / "zarr.json") for name in kept.variables}
    return Metadata.model_construct(attributes=_found(output).attributes, variables=documents)  # of any form


def _changed_attributes(found: Metadata, kept: Metadata) -> list[str]:
    changed = changed_keys(found.attributes, kept.attributes)
    for variable, document in kept.variables.items():
        attributes = mapping(found.variables.get(variable, {}), ATTRIBUTES)
        changed += [f"{variable}.{name}" for name in changed_keys(attributes, document[ATTRIBUTES])]
    return changed


def _group(kept: Metadata) -> dict[str, Any]:
    """Return the zarr.json of the group without what other programs added."""
    consolidated = {"kind": "inline", "must_understand": False, "metadata": kept.variables}
    return {ATTRIBUTES: kept.attributes, **GROUP, CONSOLIDATED: consolidated}


def _is_whole(path: UPath, document: Mapping[str, Any]) -> bool:
    return zarr_json.holds(bytes_or_none(path), _document(path), document)


def _document(path: UPath) -> Mapping[str, Any]:
    """Return the content of a zarr.json, nothing if it is missing or damaged."""
    try:
        content = json.loads(bytes_or_none(path) or b"")
    except (ValueError, RecursionError):  # the latter for a list of lists of lists …
        return {}
    return content if isinstance(content, dict) else {}


def _restored(document: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes `kept` in their order, and after them those that others added to `document`."""
    return {**kept, **mapping(document, ATTRIBUTES), **kept}


def _write(path: UPath, document: Mapping[str, Any]) -> None:
    """Write a zarr.json with the indentation of zarr, so that a restored file has its earlier bytes."""
    write_atomically(path, encoded(document))
