"""A .keras file: the members that Keras saves, and those that this project adds.

The archive's comment is the digest of all bytes before it, so that any damage is found without another file. Nothing
in an archive depends on the clock: equal networks are equal files.
"""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import xxhash
from upath import UPath

from pipeline.errors import PipelineError

METADATA, CONFIG, WEIGHTS = "metadata.json", "config.json", "model.weights.h5"
"""Members that Keras writes."""
NUMBER: Final = "shared_object_id"
LABELS, HISTORY, KEY = "labels.json", "history.csv", "key.txt"
"""Members that this project adds: the content of the file of this name, and the key of the training."""
ADDED: Final = frozenset({LABELS, HISTORY, KEY})

MAX_EXPANSION: Final = 100
"""Keras does not compress. An archive that is so many times smaller than its content would fill the memory."""

DIGEST_LENGTH: Final = 32

Members = Mapping[str, bytes]
"""The content of each member of an archive by its name."""


class DamagedArchiveError(ValueError):
    """An archive is not what was written."""


def pack(members: Members) -> bytes:
    """Return an archive of `members`, in their order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)  # of 1980
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
        archive.comment = bytes(DIGEST_LENGTH)
    content = buffer.getvalue()[:-DIGEST_LENGTH]
    return content + _digest(content)


def unpack(content: bytes) -> dict[str, bytes]:
    """Return the members of an archive; raises DamagedArchiveError.

    An archive of another program has no digest: it has the checksum of each member.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            own = archive.comment or not ADDED.isdisjoint(archive.namelist())
            if own and _digest(memoryview(content)[:-DIGEST_LENGTH]) != content[-DIGEST_LENGTH:]:
                raise DamagedArchiveError
            if sum(member.file_size for member in archive.infolist()) > MAX_EXPANSION * len(content):
                raise DamagedArchiveError
            return {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # noqa: BLE001 zipfile raises a dozen types for a damaged archive
        raise DamagedArchiveError from None


def read(path: UPath, remedy: str) -> dict[str, bytes]:
    """Return the members of the archive at `path`; raises PipelineError with `remedy` if it is missing or damaged."""
    try:
        return unpack(path.read_bytes())
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing; {remedy}") from None
    except DamagedArchiveError:
        raise PipelineError(f"{path} is damaged; {remedy}") from None


def of_keras(members: Members) -> dict[str, bytes]:
    """Return the members that Keras saves."""
    return {name: content for name, content in members.items() if name not in ADDED}


def reproducible(members: Members) -> dict[str, bytes]:
    """Return the members that Keras has saved, without what differs between equal networks.

    That is the date of saving, and the numbers by which Keras finds objects that are used in several places: addresses
    in memory. They are counted instead. A policy of data types has none: it is a value, and a loaded network does not
    share it.
    """
    metadata, config = json.loads(members[METADATA]), json.loads(members[CONFIG])
    metadata.pop("date_saved", None)
    numbered = list(_numbered(config))
    uses, numbers = Counter(node[NUMBER] for node in numbered), dict[int, int]()
    for node in numbered:
        number = node.pop(NUMBER)
        if uses[number] > 1 and node["class_name"] != "DTypePolicy":
            node[NUMBER] = numbers.setdefault(number, len(numbers))
    return {**members, METADATA: json.dumps(metadata).encode(), CONFIG: json.dumps(config).encode()}


def _numbered(node: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects in a configuration of Keras that have a number."""
    if isinstance(node, dict) and NUMBER in node:
        yield node
    if isinstance(node, dict | list):
        for part in node.values() if isinstance(node, dict) else node:
            yield from _numbered(part)


def _digest(content: bytes | memoryview) -> bytes:
    return xxhash.xxh3_128_hexdigest(content).encode()
