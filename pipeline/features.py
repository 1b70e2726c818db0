"""MFCCs, equal to librosa's, computed block by block so that a recording's length costs no memory."""

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import ducc0
import librosa
import numpy as np
from numpy.typing import NDArray

from pipeline.audio import Samples
from pipeline.config import FeatureConfig

Frames = NDArray[np.float32]
Windows = NDArray[np.float64]

FRAMES_PER_BLOCK = 256
"""Frames are computed in blocks of this many, counted from the recording's start: BLAS and FFT libraries may round
differently for arrays of other shapes, and the bits of a frame must depend on its recording alone."""

BANDS_PER_BLOCK = 16
LOG_FLOOR = np.float32(1e-10)


@dataclass(frozen=True)
class Extract:
    """MFCCs of a part of a recording, (frame, mfcc) float32, and how many frames the whole recording has."""

    mfcc: Frames
    recording_frames: int


class _Workspace:
    """Tables of a configuration, and buffers for one block of frames, used again for every block.

    Fresh arrays of this size would cost more in page faults than the arithmetic.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self.window = librosa.filters.get_window("hann", config.n_fft, fftbins=True).astype(np.float64)
        self.bands = _band_blocks(config)
        self.spectrum = np.empty((FRAMES_PER_BLOCK, config.n_fft), np.float64)
        self.squares = np.empty((FRAMES_PER_BLOCK, config.n_fft), np.float32)
        self.log_mel = np.empty((FRAMES_PER_BLOCK, config.n_mels), np.float32)


@dataclass(frozen=True)
class _BandBlock:
    """Neighbouring mel bands, and the columns of `squares` that any of them weighs: `weights` is (column, band)."""

    bands: slice
    columns: slice
    weights: Frames


def mfcc(blocks: Iterable[Samples], config: FeatureConfig, start: int = 0, stop: int | None = None) -> Extract:
    """Return frames [start, stop) of the MFCCs of a recording given as (sample,) float32 blocks.

    Equal within 1e-3 to `librosa.feature.mfcc(y=y, sr=…, n_mfcc=…, n_fft=…, hop_length=…).T`: power spectrum of
    periodic Hann windows, Slaney mel bands (librosa.filters.mel), 10·log10 with a floor of 1e-10 and a floor of
    `top_db` below the recording's own peak (librosa.power_to_db), orthonormal DCT-II (scipy.fft.dct). All of the
    recording is read, because its peak may lie anywhere; only the frames asked for are kept. Fewer frames come
    back where the recording ends before `stop`.
    """
    kept: list[Frames] = []
    peak_db, frames = -np.inf, 0
    for log_mel in log_mel_blocks(blocks, config):
        peak_db = max(peak_db, float(log_mel.max()))
        if frames + len(log_mel) > start and (stop is None or frames < stop):
            kept.append(log_mel)
        frames += len(log_mel)
    floor_db = np.float32(-np.inf if config.top_db is None else peak_db - config.top_db)
    skipped = start // FRAMES_PER_BLOCK * FRAMES_PER_BLOCK
    result = np.empty((sum(map(len, kept)), config.n_mfcc), np.float32)
    for i, log_mel in enumerate(kept):
        np.maximum(log_mel, floor_db, out=log_mel)
        place = i * FRAMES_PER_BLOCK
        # the fast transform: a float32 matrix product is off by more than 1e-3 for quiet speech
        cepstrum = ducc0.fft.dct(log_mel, type=2, axes=(1,), inorm=1, out=log_mel, nthreads=1)
        result[place : place + len(log_mel)] = cepstrum[:, : config.n_mfcc]
    return Extract(result[start - skipped : None if stop is None else stop - skipped], frames)


def log_mel_blocks(blocks: Iterable[Samples], config: FeatureConfig) -> Iterator[Frames]:
    """Yield the log-mel spectrogram in dB as (frame, n_mels) float32 blocks, without the floor below the peak."""
    space = _workspace(config, threading.get_ident())
    for windows in _windows(blocks, config):
        yield _log_mel(windows, space).copy()


def _log_mel(windows: Windows, space: _Workspace) -> Frames:
    """Compute a block (frame, n_mels) from windows (frame, n_fft), in the workspace's buffers."""
    n = len(windows)
    spectrum, squares, log_mel = space.spectrum[:n], space.squares[:n], space.log_mel[:n]
    # in float64 as librosa does: float32 is off by more than 1e-3 where a loud tone stands in faint noise
    np.multiply(windows, space.window, out=spectrum)
    # in place; real and imaginary parts come side by side, and the mel filters add their squares
    ducc0.fft.r2r_fftpack(spectrum, axes=(1,), real2hermitian=True, forward=True, out=spectrum, nthreads=1)
    np.copyto(squares, spectrum, casting="same_kind")
    np.square(squares, out=squares)
    for block in space.bands:
        np.matmul(squares[:, block.columns], block.weights, out=log_mel[:, block.bands])
    np.maximum(log_mel, LOG_FLOOR, out=log_mel)
    np.log10(log_mel, out=log_mel)
    return np.multiply(log_mel, np.float32(10), out=log_mel)


def _windows(blocks: Iterable[Samples], config: FeatureConfig) -> Iterator[Windows]:
    """Cut samples into (frame, n_fft) float64 views of at most FRAMES_PER_BLOCK frames, always at the same frames.

    A view is valid until the next one is asked for.
    """
    length, hop = config.n_fft, config.hop_length
    padding = np.zeros(length // 2 if config.center else 0, np.float32)
    step = FRAMES_PER_BLOCK * hop
    # a hop longer than the window skips samples that must have come
    held = np.empty(max((FRAMES_PER_BLOCK - 1) * hop + length, step), np.float64)
    filled = samples = 0
    for block in itertools.chain([padding], blocks, [padding]):
        samples += len(block)
        taken = 0
        while taken < len(block):
            part = block[taken : taken + len(held) - filled]
            held[filled : filled + len(part)] = part
            filled, taken = filled + len(part), taken + len(part)
            if filled == len(held):
                yield _strided(held[: (FRAMES_PER_BLOCK - 1) * hop + length], length, hop)
                filled -= step
                held[:filled] = held[step:].copy()
    if samples > 2 * len(padding) and filled >= length:
        yield _strided(held[:filled][: (FRAMES_PER_BLOCK - 1) * hop + length], length, hop)


def _strided(samples: NDArray[np.float64], length: int, hop: int) -> Windows:
    return np.lib.stride_tricks.sliding_window_view(samples, length)[::hop]


@lru_cache(maxsize=16)
def _workspace(config: FeatureConfig, thread: int) -> _Workspace:  # noqa: ARG001 buffers belong to one thread
    return _Workspace(config)


def _band_blocks(config: FeatureConfig) -> tuple[_BandBlock, ...]:
    """Cut the mel filters, of which 98 % are zero, into dense blocks along the diagonal."""
    mel = librosa.filters.mel(
        sr=config.sample_rate_hz, n_fft=config.n_fft, n_mels=config.n_mels, fmin=config.fmin_hz, fmax=config.fmax_hz
    ).T  # (bin, band)
    # the transform's columns are r0, r1, i1, r2, i2, …
    weights = mel[(np.arange(config.n_fft) + 1) // 2].astype(np.float32)  # (column, band)
    blocks = []
    for first in range(0, config.n_mels, BANDS_PER_BLOCK):
        bands = slice(first, min(first + BANDS_PER_BLOCK, config.n_mels))
        used = np.flatnonzero(weights[:, bands].any(axis=1))
        columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        blocks.append(_BandBlock(bands, columns, np.ascontiguousarray(weights[columns, bands])))
    return tuple(blocks)
