"""Headers of recordings; those of common MP3 and Opus files without libsndfile, which takes twice as long.

Source: RFC 7845 (Ogg Opus).
"""

import io
import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from pipeline.features import mp3_frames, ogg_pages
from pipeline.features.ogg_pages import OPUS_RATE_HZ, Page

MAX_BYTES = 2**20
"""A larger file is long audio: its header may take the time that libsndfile takes."""
_LOOKS_LIKE_MP3 = re.compile(rb"ID3|\xff[\xe2-\xff]")
_OPUS_HEAD = struct.Struct("<8sBBHihB")  # capture, version, channels, pre-skip, rate of the input, gain, mapping
_OPUS_HEADER_PAGES = 2
_OPUS_CHANNELS = (1, 2)
_OPUS_RATES_HZ = (8000, 12_000, 16_000, 24_000, OPUS_RATE_HZ)
"""libsndfile decodes Opus at the lowest of these that is not below the rate of the encoder's input."""


@dataclass(frozen=True)
class Header:
    """Samples per channel, sample rate and channels of a recording."""

    samples: int
    sample_rate_hz: int
    channels: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples / self.sample_rate_hz


def quick_header(file: BinaryIO) -> Header | None:
    """Return the header of a file as libsndfile does, without it; None for a file that needs libsndfile.

    These are all but MP3s with a Xing header that can be true, and Opus files of one stream without gaps; and files
    above MAX_BYTES. `file` is at its beginning.
    """
    head = file.read(3)
    if head == b"Ogg":
        read = _opus
    elif _LOOKS_LIKE_MP3.match(head):
        read = _mp3
    else:
        return None
    if file.seek(0, io.SEEK_END) > MAX_BYTES:
        return None
    file.seek(0)
    return read(file.read())


def _mp3(data: bytes) -> Header | None:
    mp3 = mp3_frames.find(io.BytesIO(data))
    if mp3 is None or mp3.layer != mp3_frames.LAYER_3 or mp3.second_begin is not None or not mp3.is_length_trusted:
        return None
    samples = mp3.sound_samples
    if samples is None or not 0 < samples <= mp3.max_samples:
        return None
    return Header(samples, mp3.sample_rate_hz, mp3.channels)


def _opus(data: bytes) -> Header | None:
    pages = ogg_pages.contiguous_pages(data)
    if len(pages) <= _OPUS_HEADER_PAGES or not _is_one_opus_stream(data, pages):
        return None
    _, _, channels, pre_skip, input_hz, _, _ = _OPUS_HEAD.unpack_from(data, pages[0].body)
    first_sound = pages[_OPUS_HEADER_PAGES]
    if first_sound.granule != _samples_at_48_khz(data, first_sound):  # the stream is cut from a longer one
        return None
    samples = pages[-1].granule - pre_skip
    if not 0 < samples <= ogg_pages.LONGEST_OPUS_PACKET * sum(page.packets for page in pages[_OPUS_HEADER_PAGES:]):
        return None
    rate_hz = next((rate for rate in _OPUS_RATES_HZ if input_hz <= rate), OPUS_RATE_HZ)
    return Header(samples * rate_hz // OPUS_RATE_HZ, rate_hz, channels)


def _is_one_opus_stream(data: bytes, pages: list[Page]) -> bool:
    """Whether `pages` are one Opus stream of one or two channels whose tags are in one page."""
    head, tags = pages[:_OPUS_HEADER_PAGES]
    is_one = head.begins_stream and not any(page.begins_stream or page.serial != head.serial for page in pages[1:])
    if not is_one or head.table != bytes([_OPUS_HEAD.size]):
        return False
    if tags.packets != 1 or not data.startswith(b"OpusTags", tags.body):
        return False
    name, version, channels, *_, mapping = _OPUS_HEAD.unpack_from(data, head.body)
    return name == b"OpusHead" and version <= 1 and channels in _OPUS_CHANNELS and mapping == 0


def _samples_at_48_khz(data: bytes, page: Page) -> int:
    """Return how many samples the packets of an Opus page hold, or -1 if its last packet is not complete."""
    if page.table.endswith(b"\xff"):
        return -1
    samples, position = 0, page.body
    for before, segment in pairwise(b"\x00" + page.table):
        if before < ogg_pages.FULL_SEGMENT and segment:  # a packet begins here, and is not empty
            samples += ogg_pages.opus_samples(data[position : position + min(segment, 2)])
        position += segment
    return samples
