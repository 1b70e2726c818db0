"""The file shards/_digests: the digests that the records of finished shards must have, read and written in parts."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.digests import bytes_digest
from pipeline.durable_files import replacing
from pipeline.outputs import OutputFolder, record_name
from pipeline.sorted_arrays import among

DIGEST_BYTES: Final = 16

BLOCK_BYTES: Final = 2**20
"""The file is read in blocks of this size."""
LINES_AT_ONCE: Final = 2**14
"""The file is written in blocks of so many lines."""

_LINE: Final = re.compile(rb"^([0-9a-f]{32})  (\d{8,18})\.json$", re.MULTILINE)
_DAMAGED: Final = b"\0"
"""In place of the beginning of a line that is too long to be one."""


class Lines(NamedTuple):
    """Some lines of the file: the shards, (line,) int64, and the digests of their records, (line, 16) uint8."""

    shard: NDArray[np.int64]
    digest: NDArray[np.uint8]


@dataclass(frozen=True)
class RecordDigests:
    """The digests of the records of the first shards: `digest` (shard, 16) uint8, where `listed`, (shard,) bool."""

    listed: NDArray[np.bool_]
    digest: NDArray[np.uint8]

    @classmethod
    def none(cls, shards: int) -> Self:
        """Return those of so many shards, none of which is listed yet; the arrays can be filled."""
        return cls(np.zeros(shards, np.bool_), np.zeros((shards, DIGEST_BYTES), np.uint8))

    def lines(self) -> Iterator[Lines]:
        """Yield the lines of the shards that are listed."""
        for start in range(0, len(self.listed), LINES_AT_ONCE):
            index = start + np.flatnonzero(self.listed[start : start + LINES_AT_ONCE])
            yield Lines(index, self.digest[index])


def read(output: OutputFolder, shards: int) -> RecordDigests:
    """Return the digests that the records of the first `shards` shards must have; lines that are damaged are left out.

    There are none for a shard that is being rewritten, nor in a folder of an earlier version. Of several lines for one
    shard, the last one counts.
    """
    found = RecordDigests.none(shards)
    for shard, digest in read_lines(output):
        planned = shard < shards
        found.listed[shard[planned]] = True
        found.digest[shard[planned]] = digest[planned]
    return found


def read_lines(output: OutputFolder) -> Iterator[Lines]:
    """Yield the lines of the file in parts, without those that are damaged; none if there is no file."""
    try:
        with output.shard_digests.open("rb") as file:
            rest = b""
            while block := file.read(BLOCK_BYTES):
                whole, newline, rest = (rest + block).rpartition(b"\n")
                if len(rest) > BLOCK_BYTES:
                    rest = _DAMAGED
                yield _parsed(whole + newline)
            yield _parsed(rest)
    except FileNotFoundError:
        return


def _parsed(content: bytes) -> Lines:
    found = _LINE.findall(content)
    digests = bytes.fromhex(b"".join(digest for digest, _ in found).decode())
    return Lines(
        np.fromiter((int(index) for _, index in found), np.int64, len(found)),
        np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES),
    )


def write(output: OutputFolder, found: RecordDigests) -> None:
    """Write the file."""
    _write(output, found.lines())


def content_digest(found: RecordDigests) -> str:
    """Return the digest that the file has when these are written to it."""
    return bytes_digest(map(_content, found.lines()))


def release(output: OutputFolder, shards: NDArray[np.int64]) -> None:
    """Remove the lines of shards that are about to be rewritten, (shard,) int64 in rising order."""
    if any(among(lines.shard, shards).any() for lines in read_lines(output)):
        kept = ((lines, ~among(lines.shard, shards)) for lines in read_lines(output))
        _write(output, (Lines(shard[whole], digest[whole]) for (shard, digest), whole in kept))


def _write(output: OutputFolder, parts: Iterable[Lines]) -> None:
    with replacing(output.shard_digests) as file:
        file.writelines(map(_content, parts))


def _content(lines: Lines) -> bytes:
    digests = lines.digest.tobytes().hex()
    size = 2 * DIGEST_BYTES
    return "".join(
        f"{digests[size * i : size * (i + 1)]}  {record_name(index)}\n" for i, index in enumerate(lines.shard.tolist())
    ).encode()
