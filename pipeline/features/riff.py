"""WAV: what the header of a RIFF, RIFX or RF64 file names.

Sources: Microsoft's Multimedia Programming Interface 1.0 and mmreg.h (chunks, format tags), EBU Tech 3306 (RF64).
"""

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

MAX_CHUNKS = 1000
"""Chunks that are read until the one with the samples."""
MAX_CHUNK_READ = 48
"""First bytes of a chunk that are read: its name, its size, and all fields that are used."""
EXTENSIBLE = 0xFFFE
SIZE_IN_DS64 = 0xFFFFFFFF
_CODECS = {  # format tag → name, and whether libsndfile 1.2 reads it
    0x0001: ("PCM", True),
    0x0002: ("MS ADPCM", True),
    0x0003: ("IEEE float", True),
    0x0006: ("A-law", True),
    0x0007: ("µ-law", True),
    0x0008: ("DTS", False),
    0x000A: ("WMA Voice", False),
    0x0011: ("IMA ADPCM", True),
    0x0014: ("G.723 ADPCM", False),
    0x0022: ("TrueSpeech", False),
    0x0028: ("LPC-10", False),
    0x0031: ("GSM 6.10", True),
    0x0038: ("NMS ADPCM", True),
    0x0040: ("G.721 ADPCM", True),
    0x0042: ("G.723.1", False),
    0x0045: ("G.726 ADPCM", False),
    0x0050: ("MPEG layer 1 or 2", False),
    0x0055: ("MP3", True),
    0x0057: ("AMR-NB", False),
    0x0058: ("AMR-WB", False),
    0x0064: ("G.726 ADPCM", False),
    0x0065: ("G.722", False),
    0x0083: ("G.729", False),
    0x00FF: ("AAC", False),
    0x028F: ("G.722", False),
    0x0160: ("WMA 1", False),
    0x0161: ("WMA 2", False),
    0x0162: ("WMA Pro", False),
    0x0163: ("WMA Lossless", False),
    0x1600: ("AAC", False),
    0x1602: ("AAC", False),
    0x1610: ("AAC", False),
    0x2000: ("AC-3", False),
    0x566F: ("Vorbis", False),
    0x674F: ("Vorbis", False),
    0x704F: ("Opus", False),
    0xA106: ("AAC", False),
    0xA109: ("Speex", False),
    0xF1AC: ("FLAC", False),
}


@dataclass(frozen=True)
class Wav:
    """What the header of a WAV file names, true or not. Numbers of a field that is missing are 0."""

    format_tag: int
    """The codec's number; of an extensible format, the sub-format's."""
    channels: int
    sample_rate_hz: int
    block_align: int
    """Bytes of a block: of a sample of all channels in PCM."""
    data_begin: int
    """Byte of the file where the samples begin."""
    data_bytes: int | None
    """Bytes of samples that the header names, for RF64 in its ds64 chunk; None without a chunk of samples."""
    file_bytes: int

    @property
    def codec(self) -> str:
        """The codec's name, its number where the name is unknown."""
        return _CODECS[self.format_tag][0] if self.format_tag in _CODECS else f"0x{self.format_tag:04X}"

    @property
    def is_supported(self) -> bool:
        """Whether libsndfile reads the codec in a WAV file."""
        return self.format_tag in _CODECS and _CODECS[self.format_tag][1]

    @property
    def bytes_there(self) -> int:
        """Bytes from the beginning of the samples to the end of the file."""
        return max(0, self.file_bytes - self.data_begin)


def read(file: BinaryIO) -> Wav | None:
    """Return what the header of a seekable file names; None for a file that is no WAV or whose format is missing."""
    file_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RIFX", b"RF64") or head[8:] != b"WAVE":
        return None
    order = ">" if head.startswith(b"RIFX") else "<"
    position, large_bytes, fields = 12, 0, None
    for _ in range(MAX_CHUNKS):
        file.seek(position)
        chunk = file.read(MAX_CHUNK_READ)
        name, size = chunk[:4], int.from_bytes(chunk[4:8], "big" if order == ">" else "little")
        if name == b"data" or not name:
            break
        if name == b"ds64":
            large_bytes = int.from_bytes(chunk[16:24], "little")
        elif name == b"fmt ":
            fields = _format(chunk[8 : 8 + size], order) or fields
        position += 8 + size + size % 2
    if fields is None:
        return None
    if name != b"data":
        return Wav(*fields, file_bytes, None, file_bytes)
    return Wav(*fields, position + 8, large_bytes if large_bytes and size == SIZE_IN_DS64 else size, file_bytes)


def _format(chunk: bytes, order: str) -> tuple[int, int, int, int] | None:
    """Return format tag, channels, sample rate and block size."""
    try:
        tag, channels, rate_hz, block_align = struct.unpack_from(f"{order}HHI4xH", chunk)
        if tag == EXTENSIBLE:
            (tag,) = struct.unpack_from(f"{order}H", chunk, 24)  # the sub-format's GUID begins with its tag
    except struct.error:
        return None
    return tag, channels, rate_hz, block_align
