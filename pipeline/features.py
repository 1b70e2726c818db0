"""MFCCs, equal to librosa's, computed block by block so that a recording's length costs no memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import librosa
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from pipeline.audio import Samples
from pipeline.config import FeatureConfig

Frames = NDArray[np.float32]

FRAMES_PER_BLOCK = 1024
"""Frames are computed in blocks of this many, counted from the recording's start: BLAS and FFT libraries may round
differently for arrays of other shapes, and the bits of a frame must depend on its recording alone."""

LOG_FLOOR = 1e-10


@dataclass(frozen=True)
class Extract:
    """MFCCs of a part of a recording, (frame, mfcc) float32, and how many frames the whole recording has."""

    mfcc: Frames
    recording_frames: int


@dataclass(frozen=True)
class _Tables:
    window: NDArray[np.float64]  # (n_fft,)
    mel: Frames  # (n_fft // 2 + 1, n_mels)


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
    parts = [_dct(np.maximum(log_mel, floor_db), config.n_mfcc) for log_mel in kept]
    skipped = start // FRAMES_PER_BLOCK * FRAMES_PER_BLOCK
    result = np.concatenate([np.zeros((0, config.n_mfcc), np.float32), *parts])
    return Extract(result[start - skipped : None if stop is None else stop - skipped], frames)


def log_mel_blocks(blocks: Iterable[Samples], config: FeatureConfig) -> Iterator[Frames]:
    """Yield the log-mel spectrogram in dB as (frame, n_mels) float32 blocks, without the floor below the peak."""
    tables = _tables(config)
    for windows in _windows(blocks, config):
        # in float64 as librosa does: float32 is off by more than 1e-3 where a loud tone stands in faint noise
        spectrum = scipy.fft.rfft(windows * tables.window, axis=1)
        power = np.square(spectrum.real) + np.square(spectrum.imag)  # (frame, n_fft // 2 + 1)
        log_mel = power.astype(np.float32) @ tables.mel
        np.maximum(log_mel, LOG_FLOOR, out=log_mel)
        np.log10(log_mel, out=log_mel)
        log_mel *= 10
        yield log_mel


def _windows(blocks: Iterable[Samples], config: FeatureConfig) -> Iterator[Frames]:
    """Cut samples into (frame, n_fft) views of at most FRAMES_PER_BLOCK frames, always at the same frames."""
    length, hop = config.n_fft, config.hop_length
    padding = np.zeros(length // 2 if config.center else 0, np.float32)
    span = (FRAMES_PER_BLOCK - 1) * hop + length
    step = FRAMES_PER_BLOCK * hop
    pending, samples = padding, 0
    for block in blocks:
        samples += len(block)
        pending = np.concatenate([pending, block])
        while len(pending) >= max(span, step):  # a hop longer than the window skips samples that must have come
            yield _strided(pending[:span], length, hop)
            pending = pending[step:]
    pending = np.concatenate([pending, padding])
    while samples and len(pending) >= length:
        yield _strided(pending[:span], length, hop)
        pending = pending[step:]


def _strided(samples: Samples, length: int, hop: int) -> Frames:
    return np.lib.stride_tricks.sliding_window_view(samples, length)[::hop]


def _dct(log_mel: Frames, n_mfcc: int) -> Frames:
    """Return the first coefficients; a float32 matrix product instead is off by more than 1e-3 for quiet speech."""
    mfcc: Frames = scipy.fft.dct(log_mel, axis=1, type=2, norm="ortho")[:, :n_mfcc]
    return mfcc


@lru_cache(maxsize=8)
def _tables(config: FeatureConfig) -> _Tables:
    mel = librosa.filters.mel(
        sr=config.sample_rate_hz, n_fft=config.n_fft, n_mels=config.n_mels, fmin=config.fmin_hz, fmax=config.fmax_hz
    )
    return _Tables(
        window=librosa.filters.get_window("hann", config.n_fft, fftbins=True).astype(np.float64),
        mel=np.ascontiguousarray(mel.T, np.float32),
    )
