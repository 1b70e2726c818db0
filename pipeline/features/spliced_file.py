"""Spans of a file, and bytes that are not in it, read as one file."""

import io
from collections.abc import Sequence
from itertools import accumulate
from typing import BinaryIO


class SplicedFile:
    """A seekable binary file that consists of pieces: bytes, or ranges of the bytes of `file`.

    It has the methods that libsndfile reads a file by. `file` stays open; its position changes with every read.
    """

    def __init__(self, file: BinaryIO, pieces: Sequence[bytes | range]) -> None:
        self._file = file
        self._pieces = pieces
        self._ends = list(accumulate(len(piece) for piece in pieces))
        self._position = 0
        self._piece = 0  # where the last read ended: files are mostly read forwards

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, which may lie behind the end but not before the beginning."""
        size = self._ends[-1] if self._ends else 0
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        parts = []
        while size > 0 and (part := self._part(size)):
            parts.append(part)
            self._position += len(part)
            size -= len(part)
        return b"".join(parts)

    def _part(self, most: int) -> bytes:
        """Return at least one and at most `most` bytes of one piece; none at the end."""
        if self._piece and self._position < self._ends[self._piece - 1]:
            self._piece = 0
        while self._piece < len(self._pieces) and self._position >= self._ends[self._piece]:
            self._piece += 1
        if self._piece == len(self._pieces):
            return b""
        piece = self._pieces[self._piece]
        begin = self._position - self._ends[self._piece] + len(piece)
        span = piece[begin : begin + most]
        if isinstance(span, bytes):
            return span
        self._file.seek(span.start)
        return self._file.read(len(span))
