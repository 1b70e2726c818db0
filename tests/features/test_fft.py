"""The transform of eight windows: NumPy's power spectrum for any window length, and equal bits in every lane."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.features.fft import Transform, load_windows, power_spectrum
from pipeline.features.simd import CACHE_LINE_BYTES, LANES, empty_cache_aligned
from tests.conftest import noise


def spectra(samples: NDArray[np.float32], hop: int, window: NDArray[np.float64]) -> NDArray[np.float64]:
    """Powers of the first eight windows: (LANES, bin)."""
    tables = Transform.of(len(window))
    x, y = (empty_cache_aligned(2 * LANES * len(tables.roots)) for _ in range(2))
    out = empty_cache_aligned(LANES * (len(window) // 2 + 1))
    load_windows(samples, 0, hop, window, x)
    power_spectrum(x, y, len(window), tables.factors, tables.roots, tables.split, out)
    return out.reshape(-1, LANES).T.copy()


@settings(max_examples=150)
@given(st.integers(2, 1200), st.integers(1, 500))
def test_powers_equal_numpys(n_fft: int, hop: int) -> None:
    samples = noise("powers", (LANES - 1) * hop + n_fft).astype(np.float32)
    window = 0.5 + np.random.default_rng(n_fft).random(n_fft)
    frames = np.lib.stride_tricks.sliding_window_view(samples, n_fft)[::hop] * window
    expected = np.square(np.abs(np.fft.rfft(frames)))
    np.testing.assert_allclose(spectra(samples, hop, window), expected, rtol=1e-9, atol=1e-11 * expected.max())


@pytest.mark.parametrize("n_fft", [2, 4, 5, 6, 18, 25, 30, 400, 401])
def test_a_window_has_the_same_bits_in_every_lane(n_fft: int) -> None:
    period = noise("lanes", n_fft).astype(np.float32)
    found = spectra(np.tile(period, LANES), n_fft, np.hanning(n_fft + 1)[:n_fft])
    for lane in found:
        np.testing.assert_array_equal(lane, found[0])


@pytest.mark.parametrize("n_fft", [400, 512, 441, 2 * 3 * 5 * 7])
def test_factors_multiply_to_the_length_that_is_transformed(n_fft: int) -> None:
    tables = Transform.of(n_fft)
    assert np.prod(tables.factors) == len(tables.roots) == (n_fft if n_fft % 2 else n_fft // 2)


def test_buffers_begin_on_a_cache_line() -> None:
    assert [empty_cache_aligned(size).ctypes.data % CACHE_LINE_BYTES for size in (1, 7, 800)] == [0, 0, 0]
