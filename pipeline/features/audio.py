"""Audio files: reading headers, and decoding to mono float32 blocks at one sample rate."""

import io
import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

import miniaudio
import numpy as np
import soundfile
import soxr
from upath import UPath

from pipeline.features.audio_source import AudioSource
from pipeline.features.framing import Samples
from pipeline.storage import is_local

BLOCK_S = 10.0
"""Seconds of audio that are decoded at a time."""
HELD_SAMPLES = 2**21
"""Decoded samples that a `SegmentReader` keeps for segments that overlap: 43 s at 48 kHz."""
RESAMPLED_AT_ONCE = 2**15
"""Samples that stay in the processor's cache on their way through soxr's filters."""
MAX_SAMPLE = 1e9
"""Full scale is 1, or 32,768 where a program forgot to scale. Larger values are damage, and their power overflows."""


class AudioError(Exception):
    """A recording that cannot be used; the message is the reason in the ledger.

    `transient` is true where the file system is the cause: the same file may be readable later.
    """

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


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


def read_header(source: AudioSource, min_sample_rate_hz: int = 1) -> Header:
    """Read the header of a recording; raises AudioError if the file has none, or a sample rate below the minimum."""
    with _audio_errors(), _open(source) as file:
        if file.samplerate < min_sample_rate_hz:
            raise AudioError(
                f"its header names a sample rate of {file.samplerate} Hz, below corpus.min_sample_rate_hz = "
                f"{min_sample_rate_hz}"
            )
        return Header(source.length(file.frames, file.samplerate), file.samplerate, file.channels)


def resampled_length(samples: int, source_hz: int, target_hz: int) -> int:
    """Return how many samples librosa.resample makes of `samples` (same float expression, same rounding)."""
    return samples if source_hz == target_hz else int(np.ceil(samples * (float(target_hz) / source_hz)))


def read_blocks(source: AudioSource, sample_rate_hz: int) -> Iterator[Samples]:
    """Yield a recording as (sample,) float32 blocks: mono by mean of channels, resampled to `sample_rate_hz`.

    The joined blocks equal `librosa.load(container, sr=sample_rate_hz)`: soxr's stream gives the same bits as its
    one-shot call. Memory is a few blocks of BLOCK_S seconds, whatever the length. Raises AudioError for a recording
    that cannot be decoded, or that holds samples which are not finite or absurdly large. See `SegmentReader` for
    segments of longer audio.
    """
    if source.is_segment:
        with SegmentReader(source.whole) as reader:
            yield from reader.read_blocks(source, sample_rate_hz)
        return
    with _audio_errors(), _open(source) as file:
        decoded = _flac_blocks(file, path) if (path := _path_of_flac(file, source)) else _decoded_blocks(file)
        yield from _resampled(_checked(map(_mono, decoded), file.samplerate), file.samplerate, sample_rate_hz)


def read(source: AudioSource, sample_rate_hz: int) -> Samples:
    """Return a whole recording as (sample,) float32, for recordings that fit in memory."""
    return np.concatenate([np.zeros(0, np.float32), *read_blocks(source, sample_rate_hz)])


class SegmentReader:
    """Reads segments of one audio file from one decoding of it; a context manager that closes the file.

    A segment holds the same samples whichever segments were read before it. Decoding therefore starts at the
    beginning of the file and never seeks: after a jump, MP3, Opus and Vorbis decoders may return other samples. FLAC
    is decoded by libsndfile, which reports damage where it is. dr_flac is faster, but it skips damage, which moves all
    later samples.

    The file is read forwards. HELD_SAMPLES decoded samples are kept, so that a segment may begin before the end of
    the one before; `reaches` is false for a segment that begins earlier still.
    """

    def __init__(self, source: AudioSource) -> None:
        self.source = source
        self._stack = ExitStack()
        self._file: soundfile.SoundFile | None = None
        self._decoded: Iterator[Samples] = iter(())
        self._failure: AudioError | None = None
        self._held: deque[Samples] = deque()
        self._begin = self._end = 0  # samples of the file that are held: [begin, end)

    def reaches(self, segment: AudioSource) -> bool:
        """Whether `segment` is of this file, and begins after the samples that are no longer held."""
        if segment.whole != self.source:
            return False
        return self._file is None or segment.sample_range(self._file.samplerate)[0] >= self._begin

    def read_blocks(self, segment: AudioSource, sample_rate_hz: int) -> Iterator[Samples]:
        """Yield the segment as the function `read_blocks` does; raises AudioError."""
        if self._file is None:
            with _audio_errors():
                self._file = self._stack.enter_context(_open(self.source))
            self._decoded = map(_mono, _decoded_blocks(self._file))
        source_hz = self._file.samplerate
        cut = self._cut(*segment.sample_range(source_hz))
        yield from _resampled(_checked(cut, source_hz), source_hz, sample_rate_hz)

    def _cut(self, start: int, stop: int | None) -> Iterator[Samples]:
        position = start
        while stop is None or position < stop:
            block = self._from(position)[: None if stop is None else stop - position]
            if not len(block):
                return
            yield block
            position += len(block)

    def _from(self, position: int) -> Samples:
        """Return the decoded samples from `position` to the end of a block; none past the end of the file."""
        while self._end <= position:
            decoded = self._decode()
            if decoded is None:
                return np.zeros(0, np.float32)
            self._held.append(decoded)
            self._end += len(decoded)
            while self._end - self._begin - len(self._held[0]) >= HELD_SAMPLES:
                self._begin += len(self._held.popleft())
        if position < self._begin:
            raise ValueError(f"sample {position} of {self.source.container} is no longer held")
        begin = self._begin
        for block in self._held:
            if position < begin + len(block):
                break
            begin += len(block)
        return block[position - begin :]

    def _decode(self) -> Samples | None:
        """Return the next block of the file, None at its end; a file that failed fails again."""
        if self._failure:
            raise AudioError(str(self._failure), transient=self._failure.transient)
        try:
            with _audio_errors():
                return next(self._decoded, None)
        except AudioError as error:
            self._failure = error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


class _Stream(soundfile.SoundFile):  # type: ignore[misc] # the library has no types
    """A file that is read from its beginning to its end.

    A SoundFile that can seek does so after every read, to the place where it already is. An Opus decoder that starts
    anew there returns other samples, an MP3 decoder slightly other ones.
    """

    def seekable(self) -> bool:
        """Return False."""
        return False


@contextmanager
def _audio_errors() -> Iterator[None]:
    """Raise the errors of libsndfile, of the file system and of fsspec as AudioError."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise AudioError(f"not readable as audio: {error.error_string.rstrip('.')}") from error
    except OSError as error:
        raise AudioError(f"cannot be opened: {error.strerror or error}", transient=True) from error
    except (ImportError, ValueError) as error:  # a URL that no installed package opens
        raise AudioError(f"cannot be opened: {error}") from error


@contextmanager
def _open(source: AudioSource) -> Iterator[soundfile.SoundFile]:
    if source.member is not None:
        raise AudioError(f"cannot be opened: reading {source.member} inside {source.container} is not supported")
    path = _local_path(source.container)
    # Python opens the file because libsndfile gives no cause when a path cannot be opened. Unbuffered, because
    # libsndfile continues where the descriptor stands.
    with io.FileIO(path) if path else io.BytesIO(UPath(source.container).read_bytes()) as stream:
        if not stream.seek(0, io.SEEK_END):
            raise AudioError("the file is empty")
        stream.seek(0)
        with _Stream(stream.fileno() if path else stream, closefd=False) as file:
            yield file


def _local_path(container: str) -> str | None:
    """Return the path of a file on this machine, None for a file elsewhere."""
    if container.startswith(os.sep):  # nothing to parse; parsing would take longer than reading a header
        return container
    path = UPath(container)
    return str(path) if is_local(path) else None


def _path_of_flac(file: soundfile.SoundFile, source: AudioSource) -> str | None:
    """Return the path of a FLAC file on this machine, None for any other file."""
    return _local_path(source.container) if file.format == "FLAC" else None


def _decoded_blocks(file: soundfile.SoundFile) -> Iterator[Samples]:
    """Yield (sample, channel) float32 blocks of BLOCK_S, decoded by libsndfile."""
    count = int(BLOCK_S * file.samplerate)
    # libsndfile takes ten times as long as NumPy to convert 16-bit samples
    dtype = "int16" if file.format in ("WAV", "WAVEX") and file.subtype == "PCM_16" else "float32"
    # not SoundFile.blocks: where a file ends before its header says, it yields uninitialised memory
    while len(block := file.read(count, dtype=dtype, always_2d=True)):
        yield block * np.float32(2**-15) if dtype == "int16" else block


def _flac_blocks(file: soundfile.SoundFile, path: str) -> Iterator[Samples]:
    """Yield (sample, channel) float32 blocks of BLOCK_S, decoded by dr_flac: faster, with libsndfile's samples.

    dr_flac skips damaged parts silently, so the number of decoded samples is compared with the header.
    """
    decoded = 0
    try:
        stream = miniaudio.stream_file(
            path, miniaudio.SampleFormat.FLOAT32, file.channels, file.samplerate, int(BLOCK_S * file.samplerate)
        )
        for samples in stream:
            block = np.frombuffer(samples, np.float32).reshape(-1, file.channels)
            decoded += len(block)
            yield block
    except miniaudio.DecodeError as error:
        raise AudioError(f"not readable as audio: {error}") from error
    if decoded != file.frames:
        raise AudioError(
            f"not readable as audio: {decoded / file.samplerate:.3f} s can be decoded, the header says "
            f"{file.frames / file.samplerate:.3f} s"
        )


def _mono(block: Samples) -> Samples:
    """Return the mean over the channels of a (sample, channel) block: (sample,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean: Samples = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    return mean


def _checked(blocks: Iterator[Samples], sample_rate_hz: int) -> Iterator[Samples]:
    """Yield (sample,) blocks unchanged; raises AudioError at the first sample that cannot be sound."""
    samples = 0
    for block in blocks:
        if not -MAX_SAMPLE <= block.min() <= block.max() <= MAX_SAMPLE:  # also false for NaN
            first = int(np.argmin(np.abs(block) <= MAX_SAMPLE))
            what = "larger than any sound" if np.isfinite(block[first]) else "not a finite number"
            raise AudioError(f"a sample is {what}, first at {(samples + first) / sample_rate_hz:.3f} s")
        samples += len(block)
        yield block


def _resampled(blocks: Iterator[Samples], source_hz: int, target_hz: int) -> Iterator[Samples]:
    if source_hz == target_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(source_hz, target_hz, 1, dtype="float32", quality="HQ")
    taken = given = 0
    for block in blocks:
        taken += len(block)
        for start in range(0, len(block), RESAMPLED_AT_ONCE):
            resampled = stream.resample_chunk(block[start : start + RESAMPLED_AT_ONCE])
            given += len(resampled)
            yield resampled
    # soxr rounds the length, librosa takes the ceiling: cut, or pad with zeros
    tail = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    missing = resampled_length(taken, source_hz, target_hz) - given
    yield np.pad(tail[:missing], (0, max(0, missing - len(tail))))
