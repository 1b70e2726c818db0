"""Comparing documents of Zarr's metadata: zarr.json of a group or an array, and what other programs added to it."""

import json
from collections.abc import Mapping
from typing import Any, Final

import zarr

ATTRIBUTES: Final = "attributes"
"""The key of a zarr.json to which other programs may add."""

CONSOLIDATED: Final = "consolidated_metadata"


def holds(content: bytes | None, found: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Whether a zarr.json holds `document` and else only attributes and variables that other programs added.

    `content` are its bytes, `found` is what they encode.
    """
    if content == encoded(found) and text(found) == text(document):
        return True
    return bool(_additions(found, document)) and text(_without_additions(found, document)) == text(document)


def _additions(found: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Whether other programs added attributes or variables."""
    variables, own = (mapping(mapping(each, CONSOLIDATED), "metadata") for each in (found, document))
    of_variables = any(mapping(found_of, ATTRIBUTES).keys() - own[name][ATTRIBUTES].keys()
                       for name, found_of in variables.items() if name in own)  # fmt: skip
    added = mapping(found, ATTRIBUTES).keys() - document[ATTRIBUTES].keys() or variables.keys() - own.keys()
    return bool(added) or of_variables


def _without_additions(found: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    attributes = {k: v for k, v in mapping(found, ATTRIBUTES).items() if k in document[ATTRIBUTES]}
    result = {**found, ATTRIBUTES: attributes}
    if CONSOLIDATED in document:
        own, consolidated = document[CONSOLIDATED]["metadata"], mapping(found, CONSOLIDATED)
        variables = mapping(consolidated, "metadata")
        kept = {
            name: _without_additions(variables[name], own[name])
            for name in own
            if isinstance(variables.get(name), Mapping)
        }
        result[CONSOLIDATED] = {**consolidated, "metadata": kept}
    return result


def changed_keys(found: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """Return the keys of `kept` whose values differ."""
    return [key for key, value in kept.items() if key not in found or text(found[key]) != text(value)]


def text(value: Any) -> str:
    """Return a value as JSON: 1, 1.0 and true are different."""
    return json.dumps(value, sort_keys=True)


def mapping(document: Any, key: str) -> Mapping[str, Any]:
    """Return what a document has for `key`, nothing if that is not a mapping."""
    found = document.get(key) if isinstance(document, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def encoded(document: Mapping[str, Any]) -> bytes:
    """Return a document as zarr writes it."""
    return json.dumps(document, indent=zarr.config.get("json_indent")).encode()
