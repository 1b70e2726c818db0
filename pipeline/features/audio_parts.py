"""Where the audio of a file is, if libsndfile cannot be given the file as it is; and what a file is that has none."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import PurePath
from typing import BinaryIO

from pipeline.features import file_kind, mp3_frames, ogg_pages, riff
from pipeline.features.audio_source import AudioError
from pipeline.features.mp3_frames import Mp3
from pipeline.features.ogg_pages import OggStream
from pipeline.features.spliced_file import SplicedFile

UNREAD_FACTOR = 64
"""See `_frames_alone`: no estimate from a frame's bit rate is wrong by more."""
LENGTH_TOLERANCE = 4096
"""Samples by which libsndfile may differ from the frames that a length header names: delay, padding and a frame."""
MAX_UNNAMED_BYTES = 4096
"""Bytes of a WAV file beside its samples that are not looked at: chunks of text."""
MAX_CHANNELS = 1024
"""libsndfile's limit."""
_WRAPS_AT = 2**32
_LEAST_PLACEHOLDER = 2**31 - 2**16
"""Sizes from here up to 2^32 - 1 stand for an unknown length: sox and ffmpeg write such ones into a pipe."""
_OGG_CODECS = ("Vorbis", "Opus", "FLAC")


@dataclass(frozen=True)
class Part:
    """Audio that libsndfile decodes in one go. Without `file` it is the whole file as it is.

    `samples` is the length where it is known better than libsndfile knows it; `max_samples` is the largest length
    that the bytes can hold, by what is known of the format.
    """

    file: SplicedFile | None = None
    samples: int | None = None
    max_samples: int | None = None


@dataclass(frozen=True)
class Parts:
    """The parts of a recording one after the other, and why audio is missing even if all of them are decoded."""

    parts: tuple[Part, ...] = (Part(),)
    loss: str = ""


def mp3_parts(file: BinaryIO, frames: int | None) -> Parts | None:
    """Return the parts of an MP3: of files that were joined each one, without what is in front, between and behind.

    `frames` is the length in samples by libsndfile, None where libsndfile does not open the file as it is. Without a
    Xing header that length is an estimate; then all frames are counted. Returns None for a file without frames, and
    raises AudioError for one that has a length header alone.
    """
    mp3 = mp3_frames.find(file)
    if mp3 is None:
        return None
    if frames is not None and mp3.second_begin is None and mp3.is_length_trusted:
        named = mp3.named_samples
        if named is not None and abs(named - frames) <= LENGTH_TOLERANCE:
            return Parts((Part(max_samples=mp3.max_samples),))
    parts, losses = [], []
    while mp3 is not None:
        second = mp3.second_begin
        part, loss = _mp3_part(file, mp3 if second is None else replace(mp3, end=second))
        parts.append(part)
        losses.append(loss)
        mp3 = None if second is None else mp3_frames.find(file, second)
    if not any(part.samples != 0 for part in parts):
        raise AudioError("not readable as audio: an MP3 without a frame that holds sound")
    return Parts(tuple(parts), next(filter(None, losses), ""))


def _mp3_part(file: BinaryIO, mp3: Mp3) -> tuple[Part, str]:
    if mp3.is_length_trusted:
        return Part(SplicedFile(file, [range(mp3.begin, mp3.end)]), None, mp3.max_samples), ""
    # libmpg123 decodes a header that it does not know, to a frame of silence
    if mp3.length_header is None or not mp3.length_header.is_xing:
        mp3 = replace(mp3, sound_begin=mp3.begin)
    found = mp3_frames.count_samples(file, mp3)
    loss = ""
    if found.first_hole is not None:
        loss = f"damaged at {found.first_hole / mp3.sample_rate_hz:.3f} s: bytes that are no MP3 frames"
    elif mp3.length_header and (mp3.length_header.frames or 0) * mp3.samples_per_frame > 2 * found.samples:
        loss = (
            f"its header names more frames than the file holds, which are {found.samples / mp3.sample_rate_hz:.3f} s"
        )
    return Part(_frames_alone(file, found.spans), found.samples, found.samples), loss


def _frames_alone(file: BinaryIO, spans: tuple[tuple[int, int], ...]) -> SplicedFile:
    """Return a file of frames without a length header that libmpg123 reads to its end.

    libsndfile ends an MP3 where libmpg123 estimates its end, by the bit rate of the first frame and the size of the
    file. Bytes that the size counts and nobody can read make the estimate too long; libmpg123 takes its size only
    from files whose last 128 bytes it can read.
    """
    size = sum(stop - start for start, stop in spans)
    end = file.seek(0, io.SEEK_END)
    unreadable = range(end, end + UNREAD_FACTOR * size)
    return SplicedFile(file, [*(range(*span) for span in spans), unreadable, b"TAG".ljust(128, b"\0")])


def ogg_parts(file: BinaryIO, frames: int | None) -> Parts | None:
    """Return the parts of an Ogg file: its links, which are chained (RFC 3533, section 4).

    `frames` is None where libsndfile does not open the file as it is. Returns None for a file without streams; raises
    AudioError for codecs that are not read.
    """
    streams = ogg_pages.streams(file)
    links = [list(link) for _, link in groupby(streams, attrgetter("begin"))]
    if not links:
        return None
    audio = [next((stream for stream in link if stream.codec in _OGG_CODECS), None) for link in links]
    known = [stream for stream in audio if stream is not None]
    if not known or audio[0] is None or (frames is None and len(links[0]) > 1):
        codecs = " and ".join(stream.codec or "an unknown codec" for stream in links[0])
        raise AudioError(f"not readable as audio: Ogg with {codecs}, which is not read")
    if len(links) == 1 and known[0].codec != "FLAC":
        return Parts((Part(max_samples=known[0].max_samples),))
    loss = "" if len(known) == len(links) else f"{len(links)} streams are chained, of which {len(known)} are read"
    return Parts(tuple(_link(file, stream) for stream in known), loss)


def _link(file: BinaryIO, stream: OggStream) -> Part:
    if stream.codec == "FLAC":
        return Part(SplicedFile(file, list(_flac_in_ogg(file, stream))), None, stream.max_samples)
    return Part(SplicedFile(file, [range(stream.begin, stream.end)]), None, stream.max_samples)


def _flac_in_ogg(file: BinaryIO, stream: OggStream) -> Iterator[range]:
    """Yield the bytes of a stream that are FLAC: the content of its pages without the head of the first packet.

    Source: RFC 9639, section 10.1.
    """
    position = stream.begin
    while position < stream.end:
        file.seek(position)
        head = file.read(27 + 255)
        if not head.startswith(b"OggS"):
            return
        content = position + 27 + head[26]
        end = content + sum(head[27 : 27 + head[26]])
        mapping = 9 if position == stream.begin and head[27 + head[26] :].startswith(b"\x7fFLAC") else 0
        yield range(content + mapping, end)
        position = end


def wav_parts(file: BinaryIO, samples_bytes: int, file_bytes: int) -> Parts | None:
    """Return the part of a WAV file whose header names too few bytes; None for a file that is as its header names it.

    A recorder that crashed leaves the size 0. A size above 4 GiB wraps in its 32 bits. `samples_bytes` are those that
    libsndfile reads.
    """
    if file_bytes - samples_bytes <= MAX_UNNAMED_BYTES and samples_bytes:
        return None
    wav = riff.read(file)
    if wav is None or wav.data_bytes is None or not wav.block_align:
        return None
    unnamed = wav.bytes_there - wav.data_bytes
    if wav.data_bytes == riff.SIZE_IN_DS64:  # RF64 with an empty ds64 chunk, or a stream of any length
        data_bytes = wav.bytes_there
    elif wav.data_bytes == 0:
        file.seek(wav.data_begin)
        if file.read(4) in (b"LIST", b"bext", b"id3 ", b"iXML", b"cue ", b"fact", b"JUNK", b""):
            return None
        data_bytes = wav.bytes_there
    elif unnamed >= _WRAPS_AT - MAX_UNNAMED_BYTES:
        data_bytes = min(wav.bytes_there, wav.data_bytes + _WRAPS_AT * round(unnamed / _WRAPS_AT))
    else:
        return None
    data = range(wav.data_begin, wav.data_begin + data_bytes)
    return Parts((Part(SplicedFile(file, [_wav_header(file, wav.data_begin, data_bytes), data])),))


def named_wav_bytes(file: BinaryIO) -> int:
    """Return how many bytes of samples a WAV header names; 0 for the sizes that programs write before they know it."""
    wav = riff.read(file)
    return 0 if wav is None or not wav.data_bytes or wav.data_bytes >= _LEAST_PLACEHOLDER else wav.data_bytes


def _wav_header(file: BinaryIO, data_begin: int, data_bytes: int) -> bytes:
    """Return the header of a WAV file with the size `data_bytes`: RF64 (EBU Tech 3306) where 32 bits are too few."""
    file.seek(0)
    head = file.read(data_begin)
    order = ">" if head.startswith(b"RIFX") else "<"
    begin = head.index(b"fmt ", 12)
    (size,) = struct.unpack_from(f"{order}I", head, begin + 4)
    fmt = head[begin : begin + 8 + size]
    if order == ">" or data_bytes < _WRAPS_AT - len(fmt) - 64:
        data_bytes = min(data_bytes, _WRAPS_AT - len(fmt) - 64)
        name = b"RIFX" if order == ">" else b"RIFF"
        return b"".join((
            name, struct.pack(f"{order}I", 4 + len(fmt) + 8 + data_bytes), b"WAVE", fmt,
            b"data", struct.pack(f"{order}I", data_bytes),
        ))  # fmt: skip
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, 4 + 36 + len(fmt) + 8 + data_bytes, data_bytes, 0, 0)
    unknown = struct.pack("<I", 0xFFFFFFFF)
    return b"".join((b"RF64", unknown, b"WAVE", ds64, fmt, b"data", unknown))


def why_unreadable(file: BinaryIO, name: str, error: str) -> str:
    """Return what a file is that libsndfile does not open; `error` is what libsndfile says."""
    file.seek(0)
    kind = file_kind.describe(file.read(file_kind.HEAD_BYTES))
    suffix = PurePath(name).suffix.lower()
    if kind:
        return f"{kind} in a file named {suffix}" if suffix else kind
    wav = riff.read(file)
    return error if wav is None else _why_unreadable_wav(wav, error)


def _why_unreadable_wav(wav: riff.Wav, error: str) -> str:
    reasons = (
        (
            not wav.is_supported,
            f"WAV with the codec {wav.codec} (format tag 0x{wav.format_tag:04X}), which is not read",
        ),
        (not 0 < wav.sample_rate_hz < 2**31, f"its WAV header names a sample rate of {wav.sample_rate_hz} Hz"),
        (not 0 < wav.channels <= MAX_CHANNELS, f"its WAV header names {wav.channels} channels"),
        (wav.data_bytes is None, "a WAV file without a data chunk"),
        (error.startswith("Internal error"), "its WAV header contradicts itself, as one with two data chunks does"),
    )
    return next((reason for applies, reason in reasons if applies), error)
