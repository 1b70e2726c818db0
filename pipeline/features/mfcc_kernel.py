"""Computing MFCCs equal to librosa's, block by block, so that memory does not grow with the recording.

Eight frames are computed at a time (`pipeline.features.simd`), 3 to 5 times faster than librosa. Numba compiles the
loops at the first call and keeps them on disk.
"""

import itertools
import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import librosa
import numpy as np
import scipy.fft

from pipeline.features.fft import Floats, Integers, Transform, load_windows, power_spectrum
from pipeline.features.framing import FRAMES_PER_BLOCK, Frames, RecordingFeatures, Samples, frame_blocks
from pipeline.features.jit import njit
from pipeline.features.simd import LANES, empty_cache_aligned, load, maximum, scatter, splat, store

if TYPE_CHECKING:
    from pipeline.features.mfcc import Mfcc

LOG_FLOOR = np.float32(1e-10)
COEFFICIENTS_AT_ONCE = 4


class _Workspace:
    """The tables of a configuration, and the buffers of eight frames, which all blocks use in turn.

    `bands` is (n_mels, 2): the first bin of each mel filter and the number of its bins; `weights` holds the weights of
    these bins, band after band. `basis` is the DCT in the layout of `_cosines`.
    """

    def __init__(self, config: "Mfcc") -> None:
        self.window: Floats = librosa.filters.get_window("hann", config.n_fft, fftbins=True).astype(np.float64)
        self.transform = Transform.of(config.n_fft)
        self.bands, self.weights = _mel_bands(config)
        self.basis = _cosines(config.n_mels, config.n_mfcc)
        values = 2 * LANES * len(self.transform.roots)
        self.complex = empty_cache_aligned(values), empty_cache_aligned(values)
        self.power = empty_cache_aligned(LANES * (config.n_fft // 2 + 1))
        self.folded = empty_cache_aligned(LANES * 2 * ((config.n_mels + 1) // 2))


def extract(blocks: Iterable[Samples], config: "Mfcc", start: int, stop: int | None) -> RecordingFeatures:
    """Return the MFCCs of frames [start, stop) of a recording given as (sample,) float32 blocks.

    The whole recording is read, because its peak may lie anywhere; the log-mel spectrogram of the frames is held until
    the peak is known.
    """
    kept: list[tuple[Frames, int]] = []
    peak_db, frames = -np.inf, 0
    for log_mel, count in log_mel_blocks(blocks, config):
        peak_db = max(peak_db, float(log_mel[:, :count].max()))
        if frames + count > start and (stop is None or frames < stop):
            kept.append((log_mel, count))
        frames += count
    skipped = start // FRAMES_PER_BLOCK * FRAMES_PER_BLOCK
    result = np.empty((sum(count for _, count in kept), config.n_mfcc), np.float32)
    for i, (log_mel, count) in enumerate(kept):
        place = i * FRAMES_PER_BLOCK
        result[place : place + count] = _cepstra(log_mel, peak_db, config)[:count]
    return RecordingFeatures(result[start - skipped : None if stop is None else stop - skipped], frames)


def peak(blocks: Iterable[Samples], config: "Mfcc") -> tuple[float, int]:
    """Return the largest value of a recording's log-mel spectrogram in dB, and the number of its frames."""
    peak_db, frames = -np.inf, 0
    for log_mel, count in log_mel_blocks(blocks, config):
        peak_db, frames = max(peak_db, float(log_mel[:, :count].max())), frames + count
    return peak_db, frames


def stream(blocks: Iterable[Samples], config: "Mfcc", peak_db: float, start: int) -> Iterator[Frames]:
    """Yield the MFCCs of a recording from frame `start` on as (frame, mfcc) float32 blocks.

    `peak_db` is the result of `peak` for the recording. The bits are those of `extract`.
    """
    place = start // FRAMES_PER_BLOCK * FRAMES_PER_BLOCK
    for log_mel, count in log_mel_blocks(blocks, config, place // FRAMES_PER_BLOCK):
        yield _cepstra(log_mel, peak_db, config)[max(0, start - place) : count]
        place += FRAMES_PER_BLOCK


def log_mel_blocks(blocks: Iterable[Samples], config: "Mfcc", skipped: int = 0) -> Iterator[tuple[Frames, int]]:
    """Yield the log-mel spectrogram in dB, without the floor below the peak, block by block.

    Yields an (n_mels, frame) float32 array and the number of its frames: FRAMES_PER_BLOCK, or fewer in the last block,
    whose array is padded to a multiple of LANES frames. The first `skipped` blocks are neither computed nor yielded.
    """
    space = _workspace(config, threading.get_ident())
    transform = space.transform
    for samples, frames in itertools.islice(frame_blocks(blocks, config), skipped, None):
        log_mel = np.empty((config.n_mels, -(-frames // LANES) * LANES), np.float32)
        _mel_power(
            samples, config.hop_length, space.window, *space.complex, transform.factors, transform.roots,
            transform.split, space.power, space.bands, space.weights, log_mel.reshape(-1),
        )  # fmt: skip
        np.maximum(log_mel, LOG_FLOOR, out=log_mel)
        np.log10(log_mel, out=log_mel)
        yield np.multiply(log_mel, np.float32(10), out=log_mel), frames


def _cepstra(log_mel: Frames, peak_db: float, config: "Mfcc") -> Frames:
    """Return the MFCCs (frame, mfcc) float32 of an (n_mels, frame) block of `log_mel_blocks`."""
    space = _workspace(config, threading.get_ident())
    floor_db = -np.inf if config.top_db is None else float(np.float32(peak_db - config.top_db))
    result = np.empty((log_mel.shape[1], config.n_mfcc), np.float32)
    _multiply_cosines(log_mel.reshape(-1), floor_db, space.folded, space.basis, result.reshape(-1), config.n_mels)
    return result


@njit(cache=True, error_model="numpy")
def _mel_power(
    samples: Samples, hop: int, window: Floats, x: Floats, y: Floats, factors: Integers, roots: Floats,
    split: Floats, power: Floats, bands: Integers, weights: Floats, out: Frames,
) -> None:  # fmt: skip
    """Write the mel spectrogram of a block of frames, a multiple of LANES, into `out`, (n_mels × frame,) float32.

    The arithmetic is float64 up to the sum over a band: in float32 the error exceeds 1e-3 for a loud tone in faint
    noise. `x`, `y` and `power` are buffers for eight frames.
    """
    frames = len(out) // len(bands)
    for frame in range(0, frames, LANES):
        load_windows(samples, frame * hop, hop, window, x)
        power_spectrum(x, y, len(window), factors, roots, split, power)
        used = 0
        for band in range(len(bands)):
            place, count = bands[band, 0] * LANES, bands[band, 1]
            total = weights[used] * load(power, place)
            for i in range(1, count):
                total = total + weights[used + i] * load(power, place + i * LANES)
            used += count
            store(out, band * frames + frame, total)


@njit(cache=True, error_model="numpy")
def _multiply_cosines(
    log_mel: Frames, floor_db: float, folded: Floats, basis: Floats, out: Frames, n_mels: int
) -> None:
    """Write the MFCCs of a block of frames into `out`, (frame × n_mfcc,) float32; `log_mel` is (n_mels × frame,).

    The cosines of an even coefficient are symmetric about the middle band, those of an odd one antisymmetric. The sums
    and differences of bands at equal distance from the middle are multiplied, which halves the work. The arithmetic is
    float64: the error of a float32 matrix product exceeds 1e-3 for quiet speech. `folded` is a buffer for eight
    frames.
    """
    frames = len(log_mel) // n_mels
    n_mfcc, half = len(out) // frames, (n_mels + 1) // 2
    for frame in range(0, frames, LANES):
        for i in range(half):
            low = maximum(load(log_mel, i * frames + frame), splat(floor_db))
            high = maximum(load(log_mel, (n_mels - 1 - i) * frames + frame), splat(floor_db))
            store(folded, i * LANES, low + high)
            store(folded, (half + i) * LANES, low - high)
        for group in range(basis.shape[0]):
            odd = group % 2
            c0, c1, c2, c3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
            for i in range(half):
                value = load(folded, (odd * half + i) * LANES)
                c0, c1 = c0 + basis[group, i, 0] * value, c1 + basis[group, i, 1] * value
                c2, c3 = c2 + basis[group, i, 2] * value, c3 + basis[group, i, 3] * value
            k = group // 2 * 2 * COEFFICIENTS_AT_ONCE + odd
            if k < n_mfcc:
                scatter(out, frame * n_mfcc + k, n_mfcc, c0)
            if k + 2 < n_mfcc:
                scatter(out, frame * n_mfcc + k + 2, n_mfcc, c1)
            if k + 4 < n_mfcc:
                scatter(out, frame * n_mfcc + k + 4, n_mfcc, c2)
            if k + 6 < n_mfcc:
                scatter(out, frame * n_mfcc + k + 6, n_mfcc, c3)


@lru_cache(maxsize=16)
def _workspace(config: "Mfcc", thread: int) -> _Workspace:  # noqa: ARG001 each thread has its own buffers
    return _Workspace(config)


def _mel_bands(config: "Mfcc") -> tuple[Integers, Floats]:
    """Return librosa's mel filters without their zeros (98 % of the weights), as `_Workspace` describes them."""
    mel = librosa.filters.mel(
        sr=config.sample_rate_hz, n_fft=config.n_fft, n_mels=config.n_mels, fmin=config.fmin_hz, fmax=config.fmax_hz
    )  # (n_mels, bin)
    bands, weights = [], []
    for filter_ in mel:
        used = np.flatnonzero(filter_)
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        bands.append((first, last + 1 - first))
        weights.append(filter_[first : last + 1])
    return np.array(bands, np.int64), np.concatenate(weights).astype(np.float64)


def _cosines(n_mels: int, n_mfcc: int) -> Floats:
    """Return the orthonormal DCT-II for folded bands: (group, band, COEFFICIENTS_AT_ONCE) float64.

    Even groups hold even coefficients, odd groups odd ones: 0 2 4 6, 1 3 5 7, 8 10 12 14 and so on.
    """
    half = (n_mels + 1) // 2
    cosines = scipy.fft.dct(np.eye(n_mels), type=2, norm="ortho", axis=1)[:half]  # (band, coefficient)
    if n_mels % 2:
        cosines[half - 1] /= 2  # the middle band is added to itself
    step = 2 * COEFFICIENTS_AT_ONCE
    groups = -(-n_mfcc // step)
    padded = np.zeros((half, groups * step))
    padded[:, :n_mfcc] = cosines[:, :n_mfcc]
    grouped = padded.reshape(half, groups, COEFFICIENTS_AT_ONCE, 2).transpose(1, 3, 0, 2)
    return np.ascontiguousarray(grouped.reshape(2 * groups, half, COEFFICIENTS_AT_ONCE))
