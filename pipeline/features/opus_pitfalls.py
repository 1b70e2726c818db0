"""Damaged Opus files of which libsndfile would return samples that it never decoded.

Two faults of libsndfile 1.2.2 are known. Both need a hole: a page that is gone, or whose checksum is wrong.

- `ogg_opus_read_refill` takes the length of the last packet from the positions of the pages. If the last page begins
  after its own end (behind a hole its beginning is computed, and the unsigned difference wraps), the length is that of
  all its packets. The samples behind the first packet are memory that nobody wrote.
- `ogg_stream_unpack_page` decodes the previous packet again, from memory that may be freed, if no packet ends in the
  page behind a hole.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from pipeline.features.ogg_pages import FULL_SEGMENT, opus_samples

HEADER: Final = struct.Struct("<4sBBQIIIB")
MAX_PAGE_BYTES: Final = HEADER.size + 255 + 255 * 255
BLOCK_BYTES: Final = 4 * MAX_PAGE_BYTES
CONTINUED, BEGIN, END = 1, 2, 4
"""Flags of a page."""
_REVERSED_BITS: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Page(NamedTuple):
    """A page whose checksum is right. `granule` is the position at its end, unsigned."""

    begin: int
    flags: int
    granule: int
    serial: int
    number: int
    table: bytes
    body: bytes

    def packets(self, *, whole: bool) -> list[bytes]:
        """Return the packets that end in the page; with `whole`, without the end of one that began before."""
        packets, start, size = [], 0, 0
        for segment in self.table:
            size += segment
            if segment < FULL_SEGMENT:
                packets.append(self.body[start : start + size])
                start, size = start + size, 0
        return packets[1:] if whole and self.flags & CONTINUED else packets


def first_pitfall(file: BinaryIO) -> int | None:
    """Return where the first page begins that libsndfile decodes wrongly, None for a file without such a page.

    `file` is a link of an Ogg file. Its position does not change.
    """
    position = file.tell()
    try:
        return _first_pitfall(file)
    finally:
        file.seek(position)


def _first_pitfall(file: BinaryIO) -> int | None:
    stream: Page | None = None
    has_comments, number, end = False, 0, 0
    for page in valid_pages(file):
        if stream is None:
            if page.flags & BEGIN and page.body.startswith(b"OpusHead"):
                stream, number = page, page.number
            continue
        if page.serial != stream.serial:
            continue
        follows_hole, number = page.number != (number + 1) % 2**32, page.number
        packets = page.packets(whole=follows_hole)
        if not has_comments:
            has_comments = bool(packets)
        elif follows_hole and not packets:
            return page.begin
        elif page.flags & END:
            begin = page.granule - sum(map(opus_samples, packets)) if follows_hole else end
            return page.begin if packets and _wraps(begin % 2**64, page.granule) else None
        elif packets:
            end = page.granule
    return None


def _wraps(begin: int, end: int) -> bool:
    """Whether libsndfile, which keeps 32 bits of the difference of positions, takes a page to be longer than 0."""
    return begin > end and 0 < (end - begin) % 2**32 < 2**31


def valid_pages(file: BinaryIO) -> Iterator[Page]:
    """Yield the pages of a file that libogg finds; memory is a few pages."""
    size = file.seek(0, io.SEEK_END)
    block, block_begin, begin = b"", 0, 0
    while begin < size:
        if begin + MAX_PAGE_BYTES > block_begin + len(block) < size:
            file.seek(begin)
            block, block_begin = file.read(BLOCK_BYTES), begin
        at = block.find(b"OggS", begin - block_begin)
        if at < 0:
            begin = max(begin + 1, block_begin + len(block) - 3)  # the pattern may lie across the end
            continue
        begin = block_begin + at
        if begin + MAX_PAGE_BYTES > block_begin + len(block) < size:
            continue
        page = _page(block, at, begin)
        if page is not None:
            yield page
        begin += 1 if page is None else HEADER.size + len(page.table) + len(page.body)


def _page(block: bytes, at: int, begin: int) -> Page | None:
    """Return the page at `at`, None if there is none that is complete and has the right checksum."""
    if at + HEADER.size > len(block):
        return None
    _, _, flags, granule, serial, number, checksum, segments = HEADER.unpack_from(block, at)
    body = at + HEADER.size + segments
    table = block[at + HEADER.size : body]
    end = body + sum(table)
    if end > len(block) or checksum != crc32(block[at : at + 22] + bytes(4) + block[at + 26 : end]):
        return None
    return Page(begin, flags, granule, serial, number, table, block[body:end])


def crc32(data: bytes) -> int:
    """Return the checksum of Ogg (RFC 3533, section 6): that of zlib with the bits in reversed order, from 0."""
    reversed_crc = zlib.crc32(data.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reversed_crc:032b}"[::-1], 2)
