"""Open audio streams: what libsndfile finds in them, and their samples block by block."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import miniaudio
import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.features.decoder_messages import without_decoder_messages

BLOCK_S = 10.0
"""Seconds of audio that are decoded at a time."""
MAX_BLOCK_VALUES = 2**20
"""Values, samples × channels, that are decoded at a time: a header that names a large rate allocates no more."""
_SAMPLE_BYTES = {
    "PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip

Block = NDArray[np.float32]
"""(sample, channel)"""


class DecodersDisagreeError(Exception):
    """The fast decoder of FLAC skipped damage, or decodes a file wrongly: it has to be decoded by libsndfile."""


class SoundStream(soundfile.SoundFile):  # type: ignore[misc] # the library has no types
    """A file that is read from its beginning to its end.

    A SoundFile that can seek does so after every read, to the place where it already is. An Opus decoder that starts
    anew there returns other samples, an MP3 decoder slightly other ones.

    `container` and `codec` are soundfile's names of format and subtype, which soundfile looks up each time.
    `sample_bytes` is the size of a sample that is stored uncompressed, or 0.
    """

    def __init__(self, target: Any) -> None:
        super().__init__(target, closefd=False)
        self.container: str = self.format
        self.codec: str = "" if self.container in ("FLAC", "MP3") else self.subtype
        self.sample_bytes = _SAMPLE_BYTES.get(self.codec, 0) if self.container not in ("FLAC", "OGG") else 0

    def seekable(self) -> bool:
        """Return False."""
        return False


def _block_samples(sample_rate_hz: int, channels: int) -> int:
    return max(1, min(int(BLOCK_S * sample_rate_hz), MAX_BLOCK_VALUES // channels))


def decoded(sound: SoundStream) -> Iterator[Block]:
    """Yield (sample, channel) float32 blocks, decoded by libsndfile; raises its errors after the samples before."""
    shape = _block_samples(sound.samplerate, sound.channels), sound.channels
    # libsndfile takes ten times as long as NumPy to convert 16-bit samples
    dtype = "int16" if sound.container in ("WAV", "WAVEX") and sound.codec == "PCM_16" else "float32"
    is_mp3 = sound.container == "MP3" or sound.codec == "MPEG_LAYER_III"
    while True:
        # zeros, because libsndfile counts samples of a damaged file that it did not write
        block = np.zeros(shape, dtype)
        try:
            with without_decoder_messages() if is_mp3 else nullcontext():
                count = len(sound.read(out=block))
        except soundfile.LibsndfileError:
            # how many samples there are is not returned: those up to the last that is not zero
            count = int(np.flatnonzero(block.any(axis=1))[-1]) + 1 if block.any() else 0
            if count:
                yield _scaled(block[:count])
            raise
        if not count:
            return
        yield _scaled(block[:count])


def _scaled(block: NDArray[Any]) -> Block:
    return block if block.dtype == np.float32 else np.multiply(block, np.float32(2**-15), dtype=np.float32)


def flac_blocks(sound: SoundStream, path: str) -> Iterator[Block]:
    """Yield (sample, channel) float32 blocks, decoded by dr_flac.

    dr_flac skips damaged parts silently, so the number of decoded samples is compared with the header.
    """
    samples = 0
    count = _block_samples(sound.samplerate, sound.channels)
    try:
        stream = miniaudio.stream_file(path, miniaudio.SampleFormat.FLOAT32, sound.channels, sound.samplerate, count)
        for values in stream:
            block = np.frombuffer(values, np.float32).reshape(-1, sound.channels)
            samples += len(block)
            yield block
    except miniaudio.DecodeError:
        raise DecodersDisagreeError from None
    if samples != sound.frames:
        raise DecodersDisagreeError
