"""Audio files: reading headers, and decoding to mono float32 blocks at one sample rate."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Self

import numpy as np
import soxr

from pipeline.features.audio_file import AudioFile, audio_errors, open_audio, open_stream
from pipeline.features.audio_source import AudioError, AudioSource
from pipeline.features.framing import Samples
from pipeline.features.header import Header, quick_header
from pipeline.features.silence import SampleRange
from pipeline.features.sound_stream import Block, DecodersDisagreeError

__all__ = [
    "AudioError",
    "Blocks",
    "DecodersDisagreeError",
    "Header",
    "SegmentReader",
    "read",
    "read_blocks",
    "read_header",
    "resampled_length",
]

HELD_SAMPLES = 2**21
"""Decoded samples that a `SegmentReader` keeps for segments that overlap: 43 s at 48 kHz."""
RESAMPLED_AT_ONCE = 2**15
"""Samples that stay in the processor's cache on their way through soxr's filters."""
MAX_SAMPLE = 1e9
"""Full scale is 1, or 32,768 where a program forgot to scale. Larger values are damage, and their power overflows."""


def read_header(source: AudioSource, min_sample_rate_hz: int = 1) -> Header:
    """Read the header of a recording; raises AudioError if the file has none, or a sample rate below the minimum."""
    with open_stream(source) as (stream, path):
        header = quick_header(stream)
        if header is None:
            stream.seek(0)
            with closing(AudioFile(stream, path, source.container)) as file:
                _check_rate(file.sample_rate_hz, min_sample_rate_hz)
                header = Header(file.samples(), file.sample_rate_hz, file.channels)
    _check_rate(header.sample_rate_hz, min_sample_rate_hz)
    return Header(source.length(header.samples, header.sample_rate_hz), header.sample_rate_hz, header.channels)


def _check_rate(sample_rate_hz: int, minimum_hz: int) -> None:
    if sample_rate_hz < minimum_hz:
        raise AudioError(
            f"its header names a sample rate of {sample_rate_hz} Hz, below corpus.min_sample_rate_hz = {minimum_hz}"
        )


def resampled_length(samples: int, source_hz: int, target_hz: int) -> int:
    """Return how many samples librosa.resample makes of `samples` (same float expression, same rounding)."""
    return samples if source_hz == target_hz else math.ceil(samples * (float(target_hz) / source_hz))


class Blocks(Iterator[Samples]):
    """The (sample,) float32 blocks of a recording.

    After the last one, `loss` is why audio is missing ("damaged at 0.900 s: …"), and `silence` why the recording holds
    no sound; or empty.
    """

    def __init__(self, read: Callable[["Blocks"], Iterator[Samples]]) -> None:
        self.loss = ""
        self.range = SampleRange()
        self._blocks = read(self)

    def __next__(self) -> Samples:
        """Return the next block."""
        return next(self._blocks)

    @property
    def silence(self) -> str:
        """Why the blocks so far hold no sound, or empty."""
        return self.range.silence

    def close(self) -> None:
        """Close the file before its end."""
        self._blocks.close()  # type: ignore[attr-defined] # a generator

    def until_damage(self, blocks: Iterator[Samples], sample_rate_hz: int) -> Iterator[Samples]:
        """Yield `blocks`; an AudioError ends them and becomes the loss if it is permanent and samples came before."""
        samples = 0
        try:
            for block in blocks:
                yield block
                samples += len(block)
        except AudioError as error:
            if error.transient:
                raise
            reason = str(error).removeprefix("not readable as audio: ")
            self.loss = f"damaged at {samples / sample_rate_hz:.3f} s: {reason}"
            if not samples:
                raise AudioError(f"not readable as audio: {self.loss}") from error


def read_blocks(source: AudioSource, sample_rate_hz: int, *, careful: bool = False) -> Blocks:
    """Yield a recording as (sample,) float32 blocks: mono by mean of channels, resampled to `sample_rate_hz`.

    The joined blocks equal `librosa.load(container, sr=sample_rate_hz)`: soxr's stream gives the same bits as its
    one-shot call. Memory is a few blocks of BLOCK_S seconds, whatever the length. A recording that is damaged ends
    where the damage is. Raises AudioError for one of which nothing can be decoded, or that holds samples which are not
    finite or absurdly large. Raises DecodersDisagreeError at the end of a FLAC that has to be read again with
    `careful`. See `SegmentReader` for segments of longer audio.
    """

    def read(result: Blocks) -> Iterator[Samples]:
        if source.is_segment:
            with SegmentReader(source.whole) as reader:
                yield from reader.segment_blocks(source, sample_rate_hz, result)
            return
        with open_audio(source) as file:
            source_hz = file.sample_rate_hz
            sound = result.until_damage(_mono_blocks(file, result.range, careful=careful), source_hz)
            yield from _resampled(_checked(sound, source_hz), source_hz, sample_rate_hz)
            result.loss = result.loss or file.loss

    return Blocks(read)


def read(source: AudioSource, sample_rate_hz: int) -> Samples:
    """Return a whole recording as (sample,) float32, for recordings that fit in memory."""
    try:
        return np.concatenate([np.zeros(0, np.float32), *read_blocks(source, sample_rate_hz)])
    except DecodersDisagreeError:
        return np.concatenate([np.zeros(0, np.float32), *read_blocks(source, sample_rate_hz, careful=True)])


def _mono_blocks(file: AudioFile, range_: SampleRange | None, *, careful: bool) -> Iterator[Samples]:
    """Yield the (sample,) blocks of a file, and add them to `range_`; raises AudioError where it is damaged."""
    with audio_errors():
        for block in file.blocks(careful=careful):
            yield _mono(block, range_)


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
        self._file: AudioFile | None = None
        self._decoded: Iterator[Samples] = iter(())
        self._failure: AudioError | None = None
        self._held: deque[Samples] = deque()
        self._begin = self._end = 0  # samples of the file that are held: [begin, end)

    def reaches(self, segment: AudioSource) -> bool:
        """Whether `segment` is of this file, and begins after the samples that are no longer held."""
        if segment.whole != self.source:
            return False
        return self._file is None or segment.sample_range(self._file.sample_rate_hz)[0] >= self._begin

    def read_blocks(self, segment: AudioSource, sample_rate_hz: int) -> Blocks:
        """Yield the segment as the function `read_blocks` does; raises AudioError."""
        return Blocks(lambda result: self.segment_blocks(segment, sample_rate_hz, result))

    def segment_blocks(self, segment: AudioSource, sample_rate_hz: int, result: Blocks) -> Iterator[Samples]:
        """Yield the segment; `result` gets the reason why audio is missing."""
        if self._file is None:
            self._file = self._stack.enter_context(open_audio(self.source))
            self._decoded = _mono_blocks(self._file, None, careful=True)
        source_hz = self._file.sample_rate_hz
        mono = (_mono(block[:, None], result.range) for block in self._cut(*segment.sample_range(source_hz)))
        cut = result.until_damage(mono, source_hz)
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


def _mono(block: Block, range_: SampleRange | None) -> Samples:
    """Return the mean over the channels of a (sample, channel) block: (sample,); add both to `range_`."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean: Samples = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        if range_ is not None and len(mean):
            range_.add(block, mean)
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
