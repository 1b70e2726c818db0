"""Silence, from the range of samples: digital silence, constant offsets, channels that cancel each other out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.features.silence import SampleRange
from tests.conftest import noise

SPEECH = noise("speech", 16_000).astype(np.float32)
EQUAL = "silent: all of its samples are equal"
ALMOST = "silent: its samples are almost equal"
CANCEL = "silent: its channels cancel each other out when their mean is taken"


def silence_of(channels: NDArray[np.float32], block: int = 5000) -> str:
    """The verdict on a (sample, channel) recording that comes in blocks."""
    found = SampleRange()
    for start in range(0, len(channels), block):
        part = channels[start : start + block]
        found.add(part, part.mean(axis=1))
    return found.silence


@pytest.mark.parametrize(
    ("channels", "reason"),
    [
        ([0 * SPEECH], EQUAL),
        ([0 * SPEECH + np.float32(0.3)], EQUAL),
        ([0 * SPEECH, 0 * SPEECH + np.float32(0.3)], EQUAL),
        ([np.round(2 * SPEECH) * np.float32(2**-15)], ALMOST),
        ([SPEECH, -SPEECH], CANCEL),
        ([SPEECH, np.float32(-0.999) * SPEECH], CANCEL),
        ([SPEECH * np.float32(1e-3)], ""),
        ([SPEECH + np.float32(0.3)], ""),
        ([SPEECH, 0 * SPEECH], ""),
        ([SPEECH, -np.roll(SPEECH, 1)], ""),
    ],
)
def test_what_is_silent(channels: list[NDArray[np.float32]], reason: str) -> None:
    assert silence_of(np.stack(channels, axis=1)) == reason


@given(offset=st.floats(-1, 1), block=st.integers(1, 1000), at=st.integers(0, 799))
def test_one_click_is_sound_wherever_it_is_and_however_blocks_are_cut(offset: float, block: int, at: int) -> None:
    samples = np.full((800, 1), offset, np.float32)
    assert silence_of(samples, block) == EQUAL
    samples[at] += np.float32(0.01)
    assert not silence_of(samples, block)


def test_recording_without_samples_is_not_silent() -> None:
    assert not SampleRange().silence
