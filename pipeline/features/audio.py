"""Recordings: reading headers, and decoding to mono float32 blocks at one sample rate."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import miniaudio
import numpy as np
import soundfile
import soxr
from upath import UPath

from pipeline.features.framing import Samples
from pipeline.storage import is_local

BLOCK_S = 10.0
RESAMPLED_AT_ONCE = 2**15
"""Samples that stay in the processor's cache on their way through soxr's filters."""
LARGEST_SAMPLE = 1e9
"""Full scale is 1, or 32,768 where a program forgot to scale; far larger is damage, and its power overflows."""


class AudioError(Exception):
    """A recording that cannot be used; the message is the reason that the ledger gives."""


@dataclass(frozen=True)
class Header:
    """What a recording's header says."""

    samples: int
    sample_rate_hz: int
    channels: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples / self.sample_rate_hz


def read_header(uri: str) -> Header:
    """Read the header of the recording at `uri`, a path or a URL; raises AudioError if it has none."""
    with _open(uri) as file:
        return Header(file.frames, file.samplerate, file.channels)


def resampled_length(samples: int, source_hz: int, target_hz: int) -> int:
    """Return how many samples librosa.resample makes of `samples` (same float expression, same rounding)."""
    return samples if source_hz == target_hz else int(np.ceil(samples * (float(target_hz) / source_hz)))


def read_blocks(uri: str, sample_rate_hz: int) -> Iterator[Samples]:
    """Yield the recording at `uri` as (sample,) float32 blocks: mono by mean of channels, resampled.

    The blocks joined equal `librosa.load(uri, sr=sample_rate_hz)`; soxr's stream gives the same bits as its
    one-shot call. Memory is a few blocks of BLOCK_S seconds, whatever the recording's length. Raises
    AudioError for a recording that cannot be decoded or that holds samples which are not finite or absurdly large.
    """
    with _open(uri) as file:
        blocks = _mono_blocks(_decoded(file, uri), file.samplerate)
        if file.samplerate == sample_rate_hz:
            yield from blocks
        else:
            yield from _resampled(blocks, file.samplerate, sample_rate_hz)


def read(uri: str, sample_rate_hz: int) -> Samples:
    """Return a whole recording as (sample,) float32; for short ones and for looking at."""
    return np.concatenate([np.zeros(0, np.float32), *read_blocks(uri, sample_rate_hz)])


class _Stream(soundfile.SoundFile):  # type: ignore[misc] # the library has no types
    """A recording read from its beginning to its end.

    A SoundFile that can seek does so after every read, to where it is already: an Opus decoder that starts anew there
    gives other samples, an MP3 decoder slightly other ones.
    """

    def seekable(self) -> bool:
        """Return False."""
        return False


@contextmanager
def _open(uri: str) -> Iterator[soundfile.SoundFile]:
    """Open a recording, and give libsndfile's and the file system's errors the one form."""
    try:
        local = _local_path(uri)
        # libsndfile names no cause when a path cannot be opened, so Python opens it
        # without a buffer, for libsndfile continues where the descriptor stands
        with io.FileIO(local) if local else io.BytesIO(UPath(uri).read_bytes()) as stream:
            if not stream.seek(0, io.SEEK_END):
                raise AudioError("the file is empty")
            stream.seek(0)
            with _Stream(stream.fileno() if local else stream, closefd=False) as file:
                yield file
    except soundfile.LibsndfileError as error:
        raise AudioError(f"not readable as audio: {error.error_string.rstrip('.')}") from error
    except OSError as error:
        raise AudioError(f"cannot be opened: {error.strerror or error}") from error
    except (ImportError, ValueError) as error:  # of a URL that no package here opens
        raise AudioError(f"cannot be opened: {error}") from error


def _local_path(uri: str) -> str | None:
    """Return the path of a recording on this machine, None of one elsewhere."""
    if uri.startswith(os.sep):  # there is nothing to parse, which would take longer than to read a header
        return uri
    path = UPath(uri)
    return str(path) if is_local(path) else None


def _decoded(file: soundfile.SoundFile, uri: str) -> Iterator[Samples]:
    """Yield (sample, channel) float32 blocks of BLOCK_S, by the fastest decoder that gives libsndfile's samples."""
    if file.format == "FLAC" and (path := _local_path(uri)):
        yield from _flac_blocks(file, path)
        return
    count = int(BLOCK_S * file.samplerate)
    # libsndfile takes ten times as long to convert 16-bit samples as NumPy
    dtype = "int16" if file.format in ("WAV", "WAVEX") and file.subtype == "PCM_16" else "float32"
    # not SoundFile.blocks: where a file ends before its header says, that yields memory nobody wrote
    while len(block := file.read(count, dtype=dtype, always_2d=True)):
        yield block * np.float32(2**-15) if dtype == "int16" else block


def _flac_blocks(file: soundfile.SoundFile, path: str) -> Iterator[Samples]:
    """Decode a FLAC file by dr_flac, which skips damaged parts without a word: only the length tells."""
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
            f"not readable as audio: {decoded / file.samplerate:.3f} s of it can be decoded, its header names "
            f"{file.frames / file.samplerate:.3f} s"
        )


def _mono_blocks(blocks: Iterator[Samples], sample_rate_hz: int) -> Iterator[Samples]:
    samples = 0
    for block in blocks:
        with np.errstate(over="ignore", invalid="ignore"):
            mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        if not -LARGEST_SAMPLE <= mono.min() <= mono.max() <= LARGEST_SAMPLE:  # nor where one is not a number
            first = int(np.argmin(np.abs(mono) <= LARGEST_SAMPLE))
            what = "larger than any sound" if np.isfinite(mono[first]) else "not a finite number"
            raise AudioError(f"a sample is {what}, first at {(samples + first) / sample_rate_hz:.3f} s")
        samples += len(mono)
        yield mono


def _resampled(blocks: Iterator[Samples], source_hz: int, target_hz: int) -> Iterator[Samples]:
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
