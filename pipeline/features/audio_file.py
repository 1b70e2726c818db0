"""Audio files: opened, their length proved, and decoded to blocks of samples."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import Any, BinaryIO

import soundfile
from upath import UPath

from pipeline.features import ogg_pages
from pipeline.features.audio_parts import (
    LENGTH_TOLERANCE,
    Part,
    Parts,
    mp3_parts,
    named_wav_bytes,
    ogg_parts,
    wav_parts,
    why_unreadable,
)
from pipeline.features.audio_source import AudioError, AudioSource
from pipeline.features.decoder_messages import without_decoder_messages
from pipeline.features.opus_pitfalls import first_pitfall
from pipeline.features.sound_stream import Block, SoundStream, decoded, flac_blocks
from pipeline.features.spliced_file import SplicedFile
from pipeline.object_stores import cause_of, file_errors
from pipeline.storage import is_local

MAX_SAMPLE_RATE_HZ = 1_000_000
MAX_SOUNDLESS_BYTES = 2**14
"""A larger file of which libsndfile reads no samples has a wrong header."""
UNKNOWN_LENGTH = 2**62
"""libsndfile returns 2^63 - 1 for a length that it does not know."""
MAX_COMPRESSION = 8
"""A file that is smaller by more than this factor than its samples is decoded to know its length."""
MAX_SAMPLES_PER_BYTE = 2**13
"""More than any codec makes of a byte: FLAC 6,000 samples of silence, Opus 2,880, Vorbis 2,048."""

WAV_FORMATS = ("WAV", "WAVEX", "RF64")


class AudioFile:
    """An open audio file: a number of parts with one sample rate, decoded one after the other from the beginning.

    `loss` is why audio is missing although everything was decoded, or empty.
    """

    def __init__(self, stream: BinaryIO, path: str | None, name: str) -> None:
        self._stream, self._path = stream, path
        self._head = stream.read(22)
        if not self._head:
            raise AudioError("the file is empty")
        self._size_bytes = stream.seek(0, io.SEEK_END)
        is_mp3_in_wav = self._head[20:22] == b"\x55\x00"
        self._may_be_mp3 = is_mp3_in_wav or not self._head.startswith((b"OggS", b"fLaC", b"RIFF"))
        self._first, parts = self._open(name)
        self._parts, self.loss, self._decoded = parts.parts, parts.loss, 0
        self.sample_rate_hz: int = self._first.samplerate
        self.channels: int = self._first.channels
        if not 0 < self.sample_rate_hz <= MAX_SAMPLE_RATE_HZ:
            raise AudioError(
                f"its header names a sample rate of {self.sample_rate_hz} Hz, above {MAX_SAMPLE_RATE_HZ:,} Hz"
            )

    def close(self) -> None:
        """Close the file for libsndfile; the stream stays open."""
        self._first.close()

    def _open(self, name: str) -> tuple[SoundStream, Parts]:
        """Open the first part, and return it with all parts."""
        is_ogg = self._head.startswith(b"OggS")
        try:
            first = self._sound(Part())
        except soundfile.LibsndfileError as error:
            found = self._parts_of_unopened(name, is_ogg)
            if found is None:
                reason = why_unreadable(self._stream, name, _words(error))
                raise AudioError(f"not readable as audio: {reason}") from error
            return self._sound(found.parts[0]), found
        if first.container == "FLAC" and not is_ogg:
            return first, Parts()
        position = self._stream.tell()
        parts = self._parts_of(first, is_ogg) or Parts()
        if parts.parts[0].file is None:
            self._stream.seek(position)  # libsndfile goes on there
            return first, parts
        first.close()
        return self._sound(parts.parts[0]), parts

    def _parts_of(self, first: SoundStream, is_ogg: bool) -> Parts | None:
        if is_ogg:
            return ogg_parts(self._stream, first.frames)
        if first.container == "MP3":
            return mp3_parts(self._stream, first.frames)
        if first.sample_bytes and first.container in WAV_FORMATS:
            return wav_parts(self._stream, first.frames * first.sample_bytes * first.channels, self._size_bytes)
        return None

    def _parts_of_unopened(self, name: str, is_ogg: bool) -> Parts | None:
        """Return the parts of a file that libsndfile does not open as it is; like libsndfile, look at the name."""
        if is_ogg:
            return ogg_parts(self._stream, None)
        looks_like_mp3 = re.match(rb"ID3|\xff[\xe0-\xff]", self._head)
        return mp3_parts(self._stream, None) if looks_like_mp3 or name.lower().endswith(".mp3") else None

    def _sound(self, part: Part) -> SoundStream:
        """Open a part, from its beginning. A whole file on this machine is read by its descriptor."""
        target = part.file or self._stream
        target.seek(0)
        with without_decoder_messages() if self._may_be_mp3 else nullcontext():
            return SoundStream(self._stream.fileno() if part.file is None and self._path else target)

    def samples(self) -> int:
        """Return the number of samples per channel that can be decoded: as the headers name it where that is possible.

        Where a header names none, an impossible one, or one that is large for the bytes of the file, the file is
        decoded; that work is bounded by its size.
        """
        total = 0
        try:
            for sound, part in self._sounds():
                total += self._length(sound, part)
        except (AudioError, soundfile.LibsndfileError):
            if not total:  # else a later part is damaged
                raise
        if not total and self._size_bytes > MAX_SOUNDLESS_BYTES:
            raise AudioError(f"its header is wrong: it gives no samples, but the file has {self._size_bytes:,} bytes")
        return total

    def blocks(self, *, careful: bool = False) -> Iterator[Block]:
        """Yield (sample, channel) float32 blocks of BLOCK_S; raises AudioError after the last sound one.

        FLAC files on this machine are decoded by dr_flac, which is faster and gives libsndfile's samples, but skips
        damage; DecodersDisagreeError is raised at the end of a file with damage. With `careful`, libsndfile decodes
        them, which stops at damage.
        """
        first = self._first
        is_plain_flac = first.container == "FLAC" and self._path is not None and self._parts[0].file is None
        if is_plain_flac and not careful and self._is_possible(first, Part()):
            yield from flac_blocks(first, str(self._path))
            return
        for sound, part in self._sounds():
            for block in self._decode(sound, part):
                self._decoded += len(block)
                yield block
        if len(self._parts) == 1 and self._parts[0].samples is None:
            named = self._named_samples()
            if self._decoded + LENGTH_TOLERANCE < named < UNKNOWN_LENGTH:
                self.loss = self.loss or (
                    f"ends at {self._decoded / self.sample_rate_hz:.3f} s, its header names "
                    f"{named / self.sample_rate_hz:,.3f} s"
                )

    def _decode(self, sound: SoundStream, part: Part) -> Iterator[Block]:
        """Yield the blocks of a part; raises AudioError where libsndfile would return samples it never decoded."""
        file: Any = part.file or self._stream
        end = first_pitfall(file) if sound.codec == "OPUS" else None
        if end is None:
            yield from decoded(sound)
            return
        before = Part(SplicedFile(file, [range(end)]))
        with suppress(soundfile.LibsndfileError), self._sound(before) as cut:
            yield from decoded(cut)
        raise AudioError("a page of Opus is missing or damaged, and the next one contradicts those before")

    def _named_samples(self) -> int:
        """Return the samples that the header names; libsndfile names those of a WAV file that are there."""
        first: SoundStream = self._first
        if first.container not in WAV_FORMATS or not first.sample_bytes or self._parts[0].file is not None:
            return int(first.frames)
        named: int = named_wav_bytes(self._stream) // (first.sample_bytes * first.channels)
        return max(int(first.frames), named)

    def _sounds(self) -> Iterator[tuple[SoundStream, Part]]:
        """Yield the parts, opened; up to one with another sample rate or number of channels."""
        yield self._first, self._parts[0]
        for part in self._parts[1:]:
            with self._sound(part) as sound:
                if (sound.samplerate, sound.channels) != (self.sample_rate_hz, self.channels):
                    self.loss = (
                        f"ends at {self._decoded / self.sample_rate_hz:.3f} s: {len(self._parts)} streams are "
                        f"chained, and the next one has {sound.samplerate} Hz and {sound.channels} channels"
                    )
                    return
                yield sound, part

    def _length(self, sound: SoundStream, part: Part) -> int:
        if part.samples is not None:
            return part.samples
        frames: int = sound.frames
        if sound.sample_bytes:
            most = self._size_bytes // (sound.sample_bytes * sound.channels)
            return frames if part.file is not None else min(frames, most)
        if self._is_possible(sound, part):
            return frames
        most = MAX_SAMPLES_PER_BYTE * self._size_bytes
        samples = 0
        try:
            for block in self._decode(sound, part):
                samples += len(block)
                if samples > most:
                    raise AudioError(f"not readable as audio: its {self._size_bytes} bytes decode without an end")
        except (AudioError, soundfile.LibsndfileError):
            if not 0 < samples <= most:
                raise
        return samples

    def _is_possible(self, sound: SoundStream, part: Part) -> bool:
        """Whether the bytes can hold the length that libsndfile returns, and are not very few for it."""
        if part.max_samples is not None and sound.container != "FLAC":
            # a length of Opus counts at the rate of the encoder's input, its packets at 48 kHz
            rate_hz = ogg_pages.OPUS_RATE_HZ if sound.codec == "OPUS" else sound.samplerate
            return bool(0 < sound.frames * rate_hz <= part.max_samples * sound.samplerate)
        sample_bytes = 2 if sound.container == "FLAC" else 1
        return bool(0 < sound.frames * sound.channels * sample_bytes <= MAX_COMPRESSION * self._size_bytes)


@contextmanager
def open_stream(source: AudioSource) -> Iterator[tuple[BinaryIO, str | None]]:
    """Open the file of a recording; its path is None for one behind a URL. Raises AudioError for one that fails."""
    if source.member is not None:
        raise AudioError(f"cannot be opened: reading {source.member} inside {source.container} is not supported")
    # Python opens the file because libsndfile gives no cause when a path cannot be opened. Unbuffered, because
    # libsndfile continues where the descriptor stands.
    with audio_errors():
        path = _local_path(source.container)
        stream: Any = io.FileIO(path) if path else io.BytesIO(UPath(source.container).read_bytes())
        with stream:
            yield stream, path


@contextmanager
def open_audio(source: AudioSource) -> Iterator[AudioFile]:
    """Open an audio file on this machine or behind a URL; raises AudioError for one that is not read."""
    with open_stream(source) as (stream, path), closing(AudioFile(stream, path, source.container)) as file:
        yield file


@contextmanager
def audio_errors() -> Iterator[None]:
    """Raise the errors of libsndfile, of the file system and of fsspec as AudioError."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise AudioError(f"not readable as audio: {_words(error)}") from error
    except file_errors() as error:
        raise AudioError(f"cannot be opened: {cause_of(error)}", transient=True) from error
    except (ImportError, ValueError) as error:  # a URL that no installed package opens
        raise AudioError(f"cannot be opened: {error}") from error


def _words(error: soundfile.LibsndfileError) -> str:
    """Return the cause by libsndfile, which says of some MP3s that they do not exist, in words that are true."""
    text: str = error.error_string.rstrip(".").removeprefix("Error : ")
    if "not a regular file" in text or "Unspecified internal error" in text:
        return "the decoder gives up"
    return "its header contradicts itself" if "SF_INFO" in text else text


def _local_path(container: str) -> str | None:
    """Return the path of a file on this machine, None for a file elsewhere."""
    if container.startswith(os.sep):  # nothing to parse; parsing would take longer than reading a header
        return container
    path = UPath(container)
    return str(path) if is_local(path) else None
