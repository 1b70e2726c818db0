"""How a recording is cut into overlapping frames, and what a front end returns for them."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.settings import Settings

Samples = NDArray[np.float32]
Frames = NDArray[np.float32]

FRAMES_PER_BLOCK = 256
"""Frames are computed in blocks of this size, counted from the recording's start. The buffers of a block fit into the
processor's cache."""


@dataclass(frozen=True)
class RecordingFeatures:
    """Features of a part of a recording.

    `values` is (frame, feature) float32; `recording_frames` is the number of frames of the whole recording.
    """

    values: Frames
    recording_frames: int


class Framing(Settings):
    """Settings that cut a recording into frames, with librosa's meaning and the unit in the key.

    With `center`, half a window of zeros is added at both ends of the recording, so that frame i is centred on sample
    i × hop_length.
    """

    sample_rate_hz: Annotated[int, Field(ge=1000, le=192_000)] = 16_000
    window_s: Annotated[float, Field(gt=0, le=1)] = 0.025
    hop_s: Annotated[float, Field(gt=0, le=1)] = 0.010
    center: bool = True

    @property
    def n_fft(self) -> int:
        """Samples per window, which is also the length of the Fourier transform."""
        return round(self.window_s * self.sample_rate_hz)

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""
        return round(self.hop_s * self.sample_rate_hz)

    @property
    def padding(self) -> int:
        """Zeros that are added at each end of a recording."""
        return self.n_fft // 2 if self.center else 0

    def frames(self, samples: int) -> int:
        """Return the number of frames of a recording of `samples` samples, as librosa counts them."""
        return max(0, 1 + (samples + 2 * self.padding - self.n_fft) // self.hop_length) if samples else 0

    @model_validator(mode="after")
    def _check_whole_samples(self) -> Self:
        if self.hop_length < 1 or self.n_fft <= 1:
            raise ValueError("window_s must hold at least 2 samples and hop_s at least 1")
        if not math.isclose(self.hop_s * self.sample_rate_hz, self.hop_length, rel_tol=1e-6):
            nearest_s = self.hop_length / self.sample_rate_hz
            raise ValueError(f"hop_s {self.hop_s} is not a whole number of samples; the nearest is {nearest_s:.9g}")
        return self


def frame_blocks(blocks: Iterable[Samples], framing: Framing) -> Iterator[tuple[Samples, int]]:
    """Cut a recording, given as (sample,) float32 blocks of any length, into blocks of frames.

    Yields a buffer and the number of its frames: FRAMES_PER_BLOCK, fewer in the last block. Frame i of a buffer is
    `buffer[i * hop_length :][:n_fft]`. A buffer has room for a full block, and is valid until the next one is
    requested. The blocks begin at the same frames however the samples are cut.
    """
    length, hop = framing.n_fft, framing.hop_length
    padding = np.zeros(framing.padding, np.float32)
    step = FRAMES_PER_BLOCK * hop
    # with a hop longer than the window, the samples between two windows are needed to know that they exist
    held = np.zeros(max(step - hop + length, step), np.float32)
    filled = samples = 0
    for block in itertools.chain([padding], blocks, [padding]):
        samples += len(block)
        taken = 0
        while taken < len(block):
            part = block[taken : taken + len(held) - filled]
            held[filled : filled + len(part)] = part
            filled, taken = filled + len(part), taken + len(part)
            if filled == len(held):
                yield held, FRAMES_PER_BLOCK
                filled -= step
                held[:filled] = held[step:].copy()
    if samples > 2 * len(padding) and filled >= length:
        yield held, min(FRAMES_PER_BLOCK, 1 + (filled - length) // hop)
