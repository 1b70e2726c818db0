"""MPEG audio (MP3): where the frames are, what the length header names, and how many samples the frames hold.

Sources: ISO/IEC 11172-3 and 13818-3 (frames), LAME's Xing and Info tags, Fraunhofer's VBRI tag, ID3, APEv2.
"""

import io
import re
import struct
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import BinaryIO

DECODER_DELAY = 529
"""Samples by which decoding layer III delays the sound."""
MAX_JUNK_BYTES = 2**20
"""Bytes, tags apart, that are searched for the first frame."""
BLOCK_BYTES = 2**16
"""Bytes that are read at a time."""
_FIRST_BLOCK_BYTES = 2**13
_LARGEST_FRAME = 2**12  # the longest with a bit rate has 2,880 bytes
_UNNAMED_BYTES = 2**12  # no second file: encoders differ in whether they count the frame that is the length header
_MAX_TAGS = 1000
_TAG_HEAD_BYTES = 16
_ID3V2 = re.compile(rb"ID3..(.)([\x00-\x7f]{4})", re.DOTALL)
_VBRI = re.compile(rb"VBRI.{6}(....)(....)", re.DOTALL)
_VBRI_BEGIN = 36  # whatever the number of channels
_XING = re.compile(rb"(?:Xing|Info)(....)", re.DOTALL)
_LAME = re.compile(rb"[^\x00].{20}(...)", re.DOTALL)  # the encoder's name and settings, delay and padding
_SYNC = re.compile(rb"\xff(?=[\xe2-\xff][^\xff])")
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MPEG_1 = 3  # version bits; 2 is MPEG 2, 0 is MPEG 2.5
_CHECKSUM_END = 6  # of a frame that has one; side information follows
_MONO = 0xC0  # in the fourth byte of a frame
LAYER_3 = 3
_LAYERS = {3: 1, 2: 2, 1: LAYER_3}  # by layer bits
_KBITS = {  # by MPEG 1 or not, and layer
    (True, 1): tuple(range(32, 449, 32)),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True)
class LengthHeader:
    """What the first frame of an MP3 names in place of sound, true or not; None for what it does not name."""

    is_xing: bool
    """Whether it is a Xing header; the other kind is VBRI."""
    frames: int | None
    """Frames after this one."""
    size_bytes: int | None
    """Bytes of all frames, in most files with this one."""
    delay: int | None
    """Samples that the encoder put in front."""
    padding: int | None
    """Samples that the encoder put behind. `delay` and `padding` may exceed the samples of a very short file."""


@dataclass(frozen=True)
class Mp3:
    """The frames of an MPEG audio file: bytes `begin` to `end`, sound from `sound_begin`, after the length header."""

    begin: int
    sound_begin: int
    end: int
    sample_rate_hz: int
    channels: int
    layer: int
    samples_per_frame: int
    shortest_frame_bytes: int
    length_header: LengthHeader | None
    second_begin: int | None
    """Where another file's frames begin, behind the bytes that the length header names: the files were joined."""

    @property
    def max_samples(self) -> int:
        """The most samples per channel that this number of bytes holds."""
        return -(-(self.end - self.sound_begin) // self.shortest_frame_bytes) * self.samples_per_frame

    @property
    def named_samples(self) -> int | None:
        """The samples per channel that the length header names, with the encoder's delay and padding."""
        header = self.length_header
        return None if header is None or header.frames is None else header.frames * self.samples_per_frame

    @property
    def sound_samples(self) -> int | None:
        """`named_samples` without delay and padding, as libmpg123 returns them; None where the header lacks these.

        libmpg123 removes at least DECODER_DELAY samples at the end.
        """
        header, named = self.length_header, self.named_samples
        if header is None or named is None or header.delay is None or header.padding is None:
            return None
        return named - header.delay - max(header.padding, DECODER_DELAY)

    @property
    def is_length_trusted(self) -> bool:
        """Whether there is a length header that libmpg123 knows and that can be true.

        Its frames have to fit into the file, and hold its delay and padding.
        """
        header, named = self.length_header, self.named_samples
        if header is None or named is None or not header.is_xing:
            return False
        return (header.delay or 0) + (header.padding or 0) < named <= self.max_samples + self.samples_per_frame


@dataclass(frozen=True)
class Mp3Frames:
    """What a walk over all frames found."""

    samples: int
    """Samples per channel of all complete frames, the encoder's delay and padding included."""
    spans: tuple[tuple[int, int], ...]
    """Bytes [begin, end) of each run of complete frames."""
    first_hole: int | None
    """Samples in front of the first bytes that are no frame but are followed by frames."""

    @property
    def end(self) -> int:
        """Byte behind the last complete frame."""
        return self.spans[-1][1]


@dataclass(frozen=True)
class _Kind:
    """Frames of one version, layer and sample rate; `sizes` holds the bytes of a frame by its first three bytes.

    `shortest_bytes` is the smallest of these.
    """

    mpeg_1: bool
    layer: int
    sample_rate_hz: int
    samples_per_frame: int
    sizes: dict[bytes, int]
    shortest_bytes: int


def find(file: BinaryIO, start: int = 0) -> Mp3 | None:
    """Return where the frames of a seekable file are, from the byte `start` on; None where none are found.

    Tags and other bytes in front are skipped: a frame begins where two headers in a row agree, or where one frame is
    all there is. Frames of free format are not found.
    """
    end = _end_without_tags(file)
    first = _first_frame(file, _skip_tags(file, start, end), end)
    if first is None:
        return None
    begin, frame = first
    kind = _kinds()[frame[:3]]
    channels = 1 if frame[3] >= _MONO else 2
    size = kind.sizes[frame[:3]]
    header = _length_header(frame, kind, channels)
    return Mp3(
        begin, begin + size if header else begin, end, kind.sample_rate_hz, channels, kind.layer,
        kind.samples_per_frame, kind.shortest_bytes, header, _second_begin(file, begin, end, header),
    )  # fmt: skip


def count_samples(file: BinaryIO, mp3: Mp3) -> Mp3Frames:
    """Return how many samples the frames of `mp3` hold, by a walk over all of them.

    An hour at 44.1 kHz takes about 0.1 s. Bytes that are no frames of the first one's version, layer and sample rate
    are skipped.
    """
    file.seek(mp3.begin)
    sizes = _kinds()[file.read(3)].sizes
    frames, in_step, first_hole = 0, True, None
    spans: list[tuple[int, int]] = []
    position = begin = end = mp3.sound_begin
    while position < mp3.end:
        file.seek(position)
        block = file.read(min(BLOCK_BYTES, mp3.end - position))
        is_last = len(block) < BLOCK_BYTES
        searched = len(block) if is_last else len(block) - 2 * _LARGEST_FRAME
        offset = 0
        while offset < searched:
            size = sizes.get(block[offset : offset + 3])
            if size is None or not (in_step or block[offset + size : offset + size + 3] in sizes):
                in_step = False
                sync = _SYNC.search(block, offset + 1, searched + 2)
                offset = sync.start() if sync else searched
            elif offset + size > len(block):  # the file ends inside this frame
                break
            else:
                if not in_step:
                    first_hole = frames if first_hole is None else first_hole
                    spans.append((begin, end))
                    begin, in_step = position + offset, True
                frames += 1
                offset += size
                end = position + offset
        if is_last:
            break
        position += offset
    hole = None if first_hole is None else first_hole * mp3.samples_per_frame
    return Mp3Frames(frames * mp3.samples_per_frame, (*spans, (begin, end)), hole)


@cache
def _kinds() -> dict[bytes, _Kind]:
    """Return the kind of a frame by its first three bytes; other bytes begin no frame."""
    kinds: dict[bytes, _Kind] = {}
    for version, layer_bits, rate_bits in product(_RATES_HZ, _LAYERS, range(3)):
        kind = _make_kind(version, layer_bits, rate_bits)
        kinds |= dict.fromkeys(kind.sizes, kind)
    return kinds


def _make_kind(version: int, layer_bits: int, rate_bits: int) -> _Kind:
    mpeg_1, layer, rate_hz = version == _MPEG_1, _LAYERS[layer_bits], _RATES_HZ[version][rate_bits]
    samples = {1: 384, 2: 1152, 3: 1152 if mpeg_1 else 576}[layer]
    slot_bytes = 4 if layer == 1 else 1
    sizes = {}
    kbits_of = enumerate(_KBITS[mpeg_1, layer], start=1)
    for (index, kbits), padding, private, no_checksum in product(kbits_of, (0, 1), (0, 1), (0, 1)):
        second = 0xE0 | version << 3 | layer_bits << 1 | no_checksum
        third = index << 4 | rate_bits << 2 | padding << 1 | private
        slots = samples // 8 // slot_bytes * kbits * 1000 // rate_hz + padding
        sizes[bytes((0xFF, second, third))] = slots * slot_bytes
    return _Kind(mpeg_1, layer, rate_hz, samples, sizes, min(sizes.values()))


def _first_frame(file: BinaryIO, begin: int, end: int) -> tuple[int, bytes] | None:
    """Return where the first frame at or behind `begin` is, and its bytes."""
    kinds = _kinds()
    position, count = begin, _FIRST_BLOCK_BYTES
    while position < min(end, begin + MAX_JUNK_BYTES):
        file.seek(position)
        block = file.read(min(count, end - position))
        is_last = len(block) < count
        searched = len(block) if is_last else len(block) - _LARGEST_FRAME
        for sync in _SYNC.finditer(block, 0, searched + 2):
            offset = sync.start()
            if kind := kinds.get(block[offset : offset + 3]):
                following = offset + kind.sizes[block[offset : offset + 3]]
                is_alone = position + offset == begin and position + following == end
                if is_alone or block[following : following + 3] in kind.sizes:
                    return position + offset, block[offset:following]
        if is_last:
            return None
        position += searched
        count = BLOCK_BYTES
    return None


def _second_begin(file: BinaryIO, begin: int, end: int, header: LengthHeader | None) -> int | None:
    if header is None or not header.size_bytes:
        return None
    first_end = begin + header.size_bytes
    if first_end + _UNNAMED_BYTES > end:
        return None
    second = _first_frame(file, _skip_tags(file, first_end, end), end)
    return None if second is None else second[0]


def _length_header(frame: bytes, kind: _Kind, channels: int) -> LengthHeader | None:
    vbri = _VBRI.match(frame, _VBRI_BEGIN)
    if vbri:
        return LengthHeader(False, _number(vbri[2]), _number(vbri[1]), None, None)
    side_information_bytes = {(True, 2): 32, (True, 1): 17, (False, 2): 17, (False, 1): 9}[kind.mpeg_1, channels]
    begin = 4 + side_information_bytes
    xing = _XING.match(frame, begin) or _XING.match(frame, begin + 2)  # behind a checksum
    if not xing or any(frame[_CHECKSUM_END : xing.start()]):  # libmpg123 requires side information of zeros
        return None
    flags, position = _number(xing[1]), xing.end()
    frames = size_bytes = None
    if flags & 1:
        frames, position = _number(frame[position : position + 4]), position + 4
    if flags & 2:
        size_bytes, position = _number(frame[position : position + 4]), position + 4
    position += 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)  # table of contents, quality
    if lame := _LAME.match(frame, position):
        delay_and_padding = _number(lame[1])
        return LengthHeader(True, frames, size_bytes, delay_and_padding >> 12, delay_and_padding & 0xFFF)
    return LengthHeader(True, frames, size_bytes, None, None)


def _number(digits: bytes) -> int:
    return int.from_bytes(digits, "big")


def _skip_tags(file: BinaryIO, position: int, end: int) -> int:
    """Return where what follows the tags at `position` begins. A tag that the file ends in is not skipped."""
    for _ in range(_MAX_TAGS):
        file.seek(position)
        head = file.read(_TAG_HEAD_BYTES)
        if id3v2 := _ID3V2.match(head):
            a, b, c, d = id3v2[2]
            footer_bytes = 10 if id3v2[1][0] & 0x10 else 0
            size = 10 + (a << 21 | b << 14 | c << 7 | d) + footer_bytes
        elif head.startswith(b"TAG"):
            size = 128
        elif head.startswith(b"APETAGEX"):
            size = 32 + int.from_bytes(head[12:16], "little")
        else:
            break
        if position + size > end:
            break
        position += size
    return position


def _end_without_tags(file: BinaryIO) -> int:
    """Return where the ID3v1 and APEv2 tags at the end of the file begin, or the size of the file."""
    end = file.seek(0, io.SEEK_END)
    file.seek(max(0, end - 160))
    tail = file.read(160)
    if tail[-128:-125] == b"TAG":
        end, tail = end - 128, tail[:-128]
    if tail[-32:-24] == b"APETAGEX":
        size, flags = struct.unpack_from("<I4xI", tail, len(tail) - 20)
        size += 32 if flags >> 31 else 0
        end -= size if size <= end else 0
    return end
