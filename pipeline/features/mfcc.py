"""MFCCs, equal to librosa's, computed block by block so that a recording's length costs no memory."""

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import librosa
import numpy as np
import scipy.fft
from numba import njit
from numpy.typing import NDArray

from pipeline.config import FeatureConfig
from pipeline.features.audio import Samples
from pipeline.features.fft import Floats, Integers, Transform, load_windows, power_spectrum
from pipeline.features.simd import LANES, aligned, load, maximum, scatter, splat, store

Frames = NDArray[np.float32]

FRAMES_PER_BLOCK = 256
"""Frames are computed in blocks of this many, counted from the recording's start, so that a block's buffers stay in
the processor's cache."""

LOG_FLOOR = np.float32(1e-10)
COEFFICIENTS_AT_ONCE = 4


@dataclass(frozen=True)
class RecordingFeatures:
    """MFCCs of a part of a recording, (frame, mfcc) float32, and how many frames the whole recording has."""

    mfcc: Frames
    recording_frames: int


class _Workspace:
    """Tables of a configuration, and buffers for eight frames, used again for all.

    `bands` is (n_mels, 2): the first bin of each mel filter and how many it weighs; `weights` are these weights one
    after the other. `basis` is the transform to MFCCs as `_multiply_cosines` reads it.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self.window: Floats = librosa.filters.get_window("hann", config.n_fft, fftbins=True).astype(np.float64)
        self.transform = Transform.of(config.n_fft)
        self.bands, self.weights = _mel_bands(config)
        self.basis = _cosines(config.n_mels, config.n_mfcc)
        values = 2 * LANES * len(self.transform.roots)
        self.complex = aligned(values), aligned(values)
        self.power = aligned(LANES * (config.n_fft // 2 + 1))
        self.folded = aligned(LANES * 2 * ((config.n_mels + 1) // 2))


def mfcc(
    blocks: Iterable[Samples], config: FeatureConfig, start: int = 0, stop: int | None = None
) -> RecordingFeatures:
    """Return frames [start, stop) of the MFCCs of a recording given as (sample,) float32 blocks.

    Equal within 1e-3 to `librosa.feature.mfcc(y=y, sr=…, n_mfcc=…, n_fft=…, hop_length=…).T`: power spectrum of
    periodic Hann windows, Slaney mel bands (librosa.filters.mel), 10·log10 with a floor of 1e-10 and a floor of
    `top_db` below the recording's own peak (librosa.power_to_db), orthonormal DCT-II (scipy.fft.dct). All of the
    recording is read, because its peak may lie anywhere; only the frames asked for are kept. Fewer frames come
    back where the recording ends before `stop`.
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


def mfcc_blocks(blocks: Iterable[Samples], config: FeatureConfig, peak_db: float, start: int = 0) -> Iterator[Frames]:
    """Yield the MFCCs of a recording from frame `start` on as (frame, mfcc) float32 blocks, as they can be computed.

    `peak_db` is what `peak` returned for the recording. The bits are those of `mfcc`.
    """
    place = start // FRAMES_PER_BLOCK * FRAMES_PER_BLOCK
    for log_mel, count in log_mel_blocks(blocks, config, place // FRAMES_PER_BLOCK):
        yield _cepstra(log_mel, peak_db, config)[max(0, start - place) : count]
        place += FRAMES_PER_BLOCK


def peak(blocks: Iterable[Samples], config: FeatureConfig) -> tuple[float, int]:
    """Return the largest value of a recording's log-mel spectrogram in dB, and how many frames it has."""
    peak_db, frames = -np.inf, 0
    for log_mel, count in log_mel_blocks(blocks, config):
        peak_db, frames = max(peak_db, float(log_mel[:, :count].max())), frames + count
    return peak_db, frames


def log_mel_blocks(blocks: Iterable[Samples], config: FeatureConfig, skipped: int = 0) -> Iterator[tuple[Frames, int]]:
    """Yield the log-mel spectrogram in dB, without the floor below the peak, block by block.

    A block is (n_mels, frame) float32 and the number of its frames: FRAMES_PER_BLOCK, but of the last block, which is
    filled up to a multiple of LANES. The first `skipped` blocks are not computed.
    """
    space = _workspace(config, threading.get_ident())
    transform = space.transform
    for samples, frames in itertools.islice(_frames(blocks, config), skipped, None):
        log_mel = np.empty((config.n_mels, -(-frames // LANES) * LANES), np.float32)
        _mel_power(
            samples, config.hop_length, space.window, *space.complex, transform.factors, transform.roots,
            transform.split, space.power, space.bands, space.weights, log_mel.reshape(-1),
        )  # fmt: skip
        np.maximum(log_mel, LOG_FLOOR, out=log_mel)
        np.log10(log_mel, out=log_mel)
        yield np.multiply(log_mel, np.float32(10), out=log_mel), frames


def _cepstra(log_mel: Frames, peak_db: float, config: FeatureConfig) -> Frames:
    """Return the MFCCs (frame, mfcc) float32 of a (n_mels, frame) block that `log_mel_blocks` yielded."""
    space = _workspace(config, threading.get_ident())
    floor_db = -np.inf if config.top_db is None else float(np.float32(peak_db - config.top_db))
    result = np.empty((log_mel.shape[1], config.n_mfcc), np.float32)
    _multiply_cosines(log_mel.reshape(-1), floor_db, space.folded, space.basis, result.reshape(-1), config.n_mels)
    return result


@njit(cache=True, error_model="numpy")
def _mel_power(
    samples: NDArray[np.float32], hop: int, window: Floats, x: Floats, y: Floats, factors: Integers, roots: Floats,
    split: Floats, power: Floats, bands: Integers, weights: Floats, out: Frames,
) -> None:  # fmt: skip
    """Write the mel spectrogram of a block of frames, a multiple of LANES, into `out`, (n_mels × frame,) float32.

    In float64 up to the sum over a band: float32 is off by more than 1e-3 where a loud tone stands in faint noise.
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

    The cosines of an even coefficient are the same from either end, those of an odd one change their sign; so sums
    and differences of bands from both ends are multiplied, half as many. In float64: a float32 matrix product is off
    by more than 1e-3 for quiet speech.
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


def _frames(blocks: Iterable[Samples], config: FeatureConfig) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Cut samples into blocks of at most FRAMES_PER_BLOCK frames, always at the same frames.

    Yields (samples, frames): a buffer, valid until the next one is asked for, that begins with the first frame's
    first sample and has room for all frames of a block, and how many frames it holds.
    """
    length, hop = config.n_fft, config.hop_length
    padding = np.zeros(length // 2 if config.center else 0, np.float32)
    step = FRAMES_PER_BLOCK * hop
    # a hop longer than the window skips samples that must have come
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


@lru_cache(maxsize=16)
def _workspace(config: FeatureConfig, thread: int) -> _Workspace:  # noqa: ARG001 buffers belong to one thread
    return _Workspace(config)


def _mel_bands(config: FeatureConfig) -> tuple[Integers, Floats]:
    """Return the mel filters, of which 98 % are zero, as (band, (first bin, bins)) and the weights of these bins."""
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
    """Return the DCT for folded bands: (group, band, COEFFICIENTS_AT_ONCE), groups of even and odd ones in turn."""
    half = (n_mels + 1) // 2
    cosines = scipy.fft.dct(np.eye(n_mels), type=2, norm="ortho", axis=1)[:half]  # (band, coefficient)
    if n_mels % 2:
        cosines[half - 1] /= 2  # the band in the middle is added to itself
    step = 2 * COEFFICIENTS_AT_ONCE
    groups = -(-n_mfcc // step)
    padded = np.zeros((half, groups * step))
    padded[:, :n_mfcc] = cosines[:, :n_mfcc]
    grouped = padded.reshape(half, groups, COEFFICIENTS_AT_ONCE, 2).transpose(1, 3, 0, 2)
    return np.ascontiguousarray(grouped.reshape(2 * groups, half, COEFFICIENTS_AT_ONCE))
