"""Ogg: the streams that a file holds, found by a walk over its pages. Nothing is decoded, and no checksum is computed.

Sources: RFC 3533 (pages), Vorbis I section 4.2.2, RFC 7845 (Opus), RFC 9639 section 10.1 (FLAC), the Speex manual.
"""

import io
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

MAX_STREAMS = 4096
"""Streams that are returned. Pages of later ones are not counted."""
BLOCK_BYTES = 2**16
"""Bytes that are read at a time: the pages of a second or more."""
FIRST_BYTES = 255
"""Bytes of a page's content that are looked at."""
MAX_SEARCHED = 2**16
"""Bytes that are searched for a page at a time."""
FULL_SEGMENT = 255
"""Size of a segment that the next one continues."""
_PAGE_HEADER = struct.Struct(
    "<5xBqI8xB"
)  # flags, granule position, serial number, segments; 27 bytes with the capture
_CAPTURE = re.compile(rb"OggS\x00[\x00-\x07]")  # capture pattern, version 0, flags
_LARGEST_PAGE_HEADER = 27 + 255
_BEGINS_STREAM = 2
_OPUS_FRAME_SAMPLES = (*(480, 960, 1920, 2880) * 3, *(480, 960) * 2, *(120, 240, 480, 960) * 4)
OPUS_RATE_HZ = 48_000
"""Opus counts its samples at this rate, whatever rate the input had (RFC 7845, section 4)."""
LONGEST_OPUS_PACKET = OPUS_RATE_HZ * 120 // 1000
"""Samples."""


@dataclass(frozen=True)
class OggStream:
    """One logical stream of an Ogg file.

    Streams that begin together (a film's picture and sound) share a link: the bytes `begin` to `end` of the file. A
    file with several links is chained. `codec` is "" where it is unknown. `sample_rate_hz` is the rate in which
    `last_granule`, `pre_skip` and `max_samples` count: 48,000 for Opus. Numbers that a codec does not have are 0.
    """

    codec: str
    begin: int
    end: int
    sample_rate_hz: int
    channels: int
    pre_skip: int
    samples_per_packet: int
    """The most samples per channel that one packet holds."""
    packets: int = 0
    """Packets that end in the stream's complete pages, headers included."""
    last_granule: int = 0
    """The last position that a page names; in a sound file the samples up to there. Any int64 in a damaged one."""

    @property
    def max_samples(self) -> int:
        """The most samples per channel that this number of packets holds."""
        return self.packets * self.samples_per_packet


def opus_samples(packet: bytes) -> int:
    """Return the samples of an Opus packet at 48 kHz, of which two bytes are enough; 0 for an invalid one.

    Source: RFC 6716, section 3.
    """
    if not packet:
        return 0
    first, second = (packet[:2] + b"\0")[:2]
    samples = (1, 2, 2, second & 63)[first & 3] * _OPUS_FRAME_SAMPLES[first >> 3]
    return samples if samples <= LONGEST_OPUS_PACKET else 0


class Page(NamedTuple):
    """A page in memory: where its content is, and the sizes of the content's segments, a byte each."""

    flags: int
    granule: int
    serial: int
    table: bytes
    body: int

    @property
    def begins_stream(self) -> bool:
        """Whether this is the first page of a stream."""
        return self.flags & _BEGINS_STREAM != 0

    @property
    def packets(self) -> int:
        """Packets that end in this page."""
        return len(self.table) - self.table.count(FULL_SEGMENT)


def contiguous_pages(data: bytes) -> list[Page]:
    """Return the pages of a file that consists of complete pages one after the other; none for all other files."""
    pages, position, size = [], 0, len(data)
    while position + _PAGE_HEADER.size <= size and _CAPTURE.match(data, position):
        flags, granule, serial, segments = _PAGE_HEADER.unpack_from(data, position)
        body = position + _PAGE_HEADER.size + segments
        table = data[body - segments : body]
        pages.append(Page(flags, granule, serial, table, body))
        position = body + sum(table)
    return pages if position == size else []


def streams(file: BinaryIO) -> tuple[OggStream, ...]:
    """Return the logical streams of a seekable file in order; none for a file without Ogg pages.

    Bytes between pages are skipped, and a page that the file ends in is left out, as libogg does. Pages of a stream
    without a beginning are not counted. A page costs two or three microseconds.
    """
    finished: list[OggStream] = []
    link: dict[int, OggStream] = {}
    counts: dict[int, list[int]] = {}  # serial number → packets, last granule position
    end, only_beginnings = 0, True
    for begin, page_end, flags, granule, serial, packets, body in _pages(file):
        if flags & _BEGINS_STREAM:
            if not only_beginnings:
                finished += _counted(link, counts, begin)
                link, counts, only_beginnings = {}, {}, True
            if serial not in link and len(finished) + len(link) < MAX_STREAMS:
                link_begin = min((stream.begin for stream in link.values()), default=begin)
                link[serial] = _stream(body, link_begin)
                counts[serial] = [0, 0]
        else:
            only_beginnings = False
        end = page_end
        if serial in counts:
            count = counts[serial]
            count[0] += packets
            if granule != -1:  # -1: no packet ends in this page
                count[1] = granule
    return (*finished, *_counted(link, counts, end))


def _counted(link: dict[int, OggStream], counts: dict[int, list[int]], end: int) -> list[OggStream]:
    return [
        replace(stream, end=end, packets=counts[serial][0], last_granule=counts[serial][1])
        for serial, stream in link.items()
    ]


def _pages(file: BinaryIO) -> Iterator[tuple[int, int, int, int, int, int, bytes]]:
    """Yield begin, end, flags, granule position, serial number, packets and first bytes of each complete page."""
    size = file.seek(0, io.SEEK_END)
    begin, block, block_begin = 0, b"", 0
    while True:
        at = begin - block_begin
        if at + _LARGEST_PAGE_HEADER > len(block) and block_begin + len(block) < size:
            file.seek(begin)
            block, block_begin, at = file.read(BLOCK_BYTES), begin, 0
        if not _CAPTURE.match(block, at):
            found = _find_page(file, begin)
            if found is None:
                return
            begin = found
            continue
        table_begin = at + _PAGE_HEADER.size
        if table_begin > len(block):
            return
        flags, granule, serial, segments = _PAGE_HEADER.unpack_from(block, at)
        body = table_begin + segments
        table = block[table_begin:body]
        end = block_begin + body + sum(table)
        if len(table) < segments or end > size:  # cut, or not a page: a complete one may still follow
            begin += 1
            continue
        yield (
            begin,
            end,
            flags,
            granule,
            serial,
            segments - table.count(FULL_SEGMENT),
            block[body : body + FIRST_BYTES],
        )
        begin = end


def _find_page(file: BinaryIO, begin: int) -> int | None:
    """Return where the first capture pattern after `begin` is."""
    count = _LARGEST_PAGE_HEADER
    while True:
        file.seek(begin)
        block = file.read(count)
        if found := _CAPTURE.search(block):
            return begin + found.start()
        if len(block) < count:
            return None
        begin += len(block) - 5  # a pattern may lie across the end
        count = min(2 * count, MAX_SEARCHED)


def _stream(packet: bytes, begin: int) -> OggStream:
    """Return the stream that begins with `packet` (of which 200 bytes suffice)."""
    codec, rate_hz, channels, pre_skip, samples_per_packet = "", 0, 0, 0, 0
    with suppress(struct.error, ValueError):  # of a packet that is cut, nothing but its name is known
        if packet.startswith(b"\x01vorbis"):
            codec = "Vorbis"
            channels, rate_hz, block_sizes = struct.unpack_from("<11xBI12xB", packet)
            samples_per_packet = (1 << (block_sizes >> 4)) // 2  # two neighbours overlap by half
        elif packet.startswith(b"OpusHead"):
            codec, rate_hz, samples_per_packet = "Opus", OPUS_RATE_HZ, LONGEST_OPUS_PACKET
            channels, pre_skip = struct.unpack_from("<9xBH", packet)
        elif packet.startswith((b"\x7fFLAC", b"fLaC")):
            codec = "FLAC"
            stream_info = packet.index(b"fLaC") + 8
            samples_per_packet, packed = struct.unpack_from(">2xH6xI", packet, stream_info)
            rate_hz, channels = packed >> 12, (packed >> 9 & 7) + 1
        elif packet.startswith(b"Speex   "):
            codec = "Speex"
            rate_hz, channels, frame, frames = struct.unpack_from("<36xI8xI4xI4xI", packet)
            samples_per_packet = frame * max(1, frames)
        elif packet.startswith(b"\x80theora"):
            codec = "Theora"
        elif packet.startswith(b"fishead\0"):
            codec = "Skeleton"
    return OggStream(codec, begin, begin, rate_hz, channels, pre_skip, samples_per_packet)
