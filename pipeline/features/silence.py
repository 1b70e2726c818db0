"""Recordings without sound, found from the range of their samples while these are decoded."""

import math
from typing import Final

import numpy as np

from pipeline.features.framing import Samples
from pipeline.schema import SILENT

SILENT_RANGE: Final = 2.0**-14
"""Samples that differ by no more than this are silent: two steps of 16 bits, which is dither."""
CANCELLED_RANGE: Final = 0.01
"""Channels whose mean has less than this part of their own range (-40 dB) cancel each other out."""
SOUND_RANGE: Final = 2.0 * CANCELLED_RANGE
"""A mean of this range is sound, however loud the channels are: full scale has the range 2."""


class SampleRange:
    """The range of a recording's samples, of its loudest channel and of the mean of its channels.

    A constant offset is no sound, and no matter: only differences between samples count.
    """

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf
        self._channel_lows, self._channel_highs = np.zeros(0), np.zeros(0)

    def add(self, block: Samples, mean: Samples) -> None:
        """Add a (sample, channel) block and the (sample,) mean of its channels.

        Nothing is done once there is sound, which most recordings have in their first block.
        """
        if self._high - self._low >= SOUND_RANGE:
            return
        low, high = float(mean.min()), float(mean.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        if block.shape[1] > 1 and self._high - self._low < SOUND_RANGE:
            lows, highs = block.min(axis=0), block.max(axis=0)
            known = len(self._channel_lows) > 0
            self._channel_lows = np.minimum(self._channel_lows, lows) if known else lows
            self._channel_highs = np.maximum(self._channel_highs, highs) if known else highs

    @property
    def silence(self) -> str:
        """Why the recording holds no sound; empty if it holds some, or no sample."""
        of_mean = self._high - self._low
        of_channels = float(np.max(self._channel_highs - self._channel_lows, initial=0.0))
        if of_channels > SILENT_RANGE and of_mean < CANCELLED_RANGE * of_channels:
            return f"{SILENT}its channels cancel each other out when their mean is taken"
        if 0 <= of_mean <= SILENT_RANGE:
            return f"{SILENT}{'its samples are almost equal' if of_mean else 'all of its samples are equal'}"
        return ""
