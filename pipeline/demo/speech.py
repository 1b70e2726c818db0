"""The sounds of three invented languages, for a demonstration of spoken-language identification.

The languages have the same phones, equally frequent, and the same voices. They differ only in the order of the phones.
A single frame therefore carries no information about the language, whereas a sequence of frames does.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy  # loads scipy.signal at its first use
from numpy.typing import NDArray

from pipeline.config import DemoConfig

SAMPLE_RATE_HZ = 16_000
LANGUAGES = ("alba", "bero", "cino")
PHONE_COUNT = 7
# The phones lie on a circle; these are the steps from a phone to the next one. Each language has one of s and -s for
# s = 1, 2, 3 (a regular tournament). In every language, all phones are equally frequent, and so are all unordered
# pairs of neighbours; only the order within a pair differs.
STEPS = ((-1, 2, 3), (1, -2, 3), (1, 2, -3))
MIN_PHONE_S, MAX_PHONE_S = 0.050, 0.090
MIN_RATE, MAX_RATE = 0.9, 1.1
CROSSFADE_S = 0.010
# First part of the keys of random streams. SeedSequence pads keys with zeros, so keys of different lengths could be
# equal without it.
_VOICE_STREAM, _UTTERANCE_STREAM = 1, 2

Samples = NDArray[np.float64]


class Phone(NamedTuple):
    """Resonances of a phone for a vocal tract of scale 1, excited by the glottis if `voiced`, by noise if not."""

    formants_hz: tuple[float, ...]
    bandwidths_hz: tuple[float, ...]
    voiced: bool


# F1 to F3 of the vowels are the means of male speakers in Peterson and Barney (1952). The other values are of the
# order of those in Klatt (1980), and keep the phones distinct across vocal tracts.
PHONES = (
    Phone((270, 2290, 3010, 3700), (60, 90, 150, 250), True),  # i, as in heed
    Phone((730, 1090, 2440, 3500), (80, 90, 120, 250), True),  # a, as in hod
    Phone((5000, 6300), (500, 700), False),  # s
    Phone((300, 870, 2240, 3300), (60, 90, 120, 250), True),  # u, as in who'd
    Phone((660, 1720, 2410, 3500), (80, 100, 120, 250), True),  # ae, as in had
    Phone((2300, 3000), (300, 400), False),  # sh
    Phone((270, 1270, 2130, 3300), (100, 700, 700, 900), True),  # m
)


class Voice(NamedTuple):
    """The properties of a speaker, equal in all utterances."""

    pitch_hz: float
    formant_scale: float
    rate: float  # factor of the phones' durations
    breath_db: float  # level of the breath noise relative to the voiced source
    level_db: float  # RMS relative to full scale
    snr_db: float  # of the speech to the room noise
    noise_pole: float  # of the first-order filter that colours the room noise


def voice(config: DemoConfig, speaker: int) -> Voice:
    """Return the voice of a speaker.

    Speakers of the same number have the same voice in every language, so a voice carries no information about the
    language. This also holds within each split, because splits are by speaker name.
    """
    rng = np.random.default_rng([config.seed, _VOICE_STREAM, speaker])
    return Voice(
        pitch_hz=float(np.exp(rng.uniform(math.log(85.0), math.log(255.0)))),
        formant_scale=float(rng.uniform(0.85, 1.2)),
        rate=float(rng.uniform(MIN_RATE, MAX_RATE)),
        breath_db=float(rng.uniform(-30.0, -18.0)),
        level_db=float(rng.uniform(-32.0, -22.0)),
        snr_db=float(rng.uniform(18.0, 35.0)),
        noise_pole=float(rng.uniform(0.0, 0.9)),
    )


def phone_sequence(rng: np.random.Generator, language: int, count: int) -> NDArray[np.int64]:
    """Return the phones of a random walk of the language, (count,) int64 indices into PHONES.

    The first phone is uniformly distributed.
    """
    steps = rng.choice(np.array(STEPS[language], dtype=np.int64), size=count)
    steps[0] = rng.integers(PHONE_COUNT)
    return np.cumsum(steps) % PHONE_COUNT


def phone_durations_s(rng: np.random.Generator, rate: float, count: int) -> Samples:
    """Return durations (count,) in seconds, between MIN_PHONE_S and MAX_PHONE_S at every rate."""
    return rate * rng.uniform(MIN_PHONE_S / MIN_RATE, MAX_PHONE_S / MAX_RATE, size=count)


def resonator(frequency_hz: float, bandwidth_hz: float) -> Samples:
    """Return the digital resonator of Klatt (1980), with gain 1 at 0 Hz, as a second-order section (6,) of SciPy."""
    c = -math.exp(-2.0 * math.pi * bandwidth_hz / SAMPLE_RATE_HZ)
    b = 2.0 * math.sqrt(-c) * math.cos(2.0 * math.pi * frequency_hz / SAMPLE_RATE_HZ)
    return np.array([1.0 - b - c, 0.0, 0.0, 1.0, -b, -c])


def _unit_rms(samples: Samples) -> Samples:
    return samples / max(math.sqrt(float(np.mean(np.square(samples)))), 1e-12)


def voiced_source(rng: np.random.Generator, speaker_voice: Voice, size: int) -> Samples:
    """Return glottal pulses with drift and jitter of the pitch, and breath noise: (size,) samples with RMS near 1."""
    time_s = np.arange(size) / SAMPLE_RATE_HZ
    drift_hz, phases = rng.uniform(0.2, 1.5, size=2), rng.uniform(0.0, 2.0 * math.pi, size=2)
    cycles = time_s + sum(  # integral of a pitch that drifts by up to 8 %
        0.04 * np.sin(2.0 * math.pi * f * time_s + p) / (2.0 * math.pi * f)
        for f, p in zip(drift_hz, phases, strict=True)
    )
    cycles = speaker_voice.pitch_hz * (cycles - cycles[0])
    closures = np.arange(1.0, math.floor(cycles[-1]) + 1.0)
    closures += 0.01 * rng.standard_normal(closures.size)
    pulses = np.zeros(size)
    pulses[np.searchsorted(cycles, closures).clip(0, size - 1)] = 1.0
    # The glottal low-pass filter of Klatt (1980), and the radiation from the lips as a first difference.
    glottis = resonator(0.0, 100.0)
    glottis[1] = -glottis[0]
    source = _unit_rms(scipy.signal.sosfilt(glottis[np.newaxis], pulses))
    return source + math.pow(10.0, speaker_voice.breath_db / 20.0) * rng.standard_normal(size)


def phone_signals(rng: np.random.Generator, speaker_voice: Voice, size: int) -> list[Samples]:
    """Return every phone held for the whole utterance: for each of PHONES, (size,) samples with RMS 1.

    The filters run through, without transients at the boundaries of phones: a frame across a boundary does not reveal
    the order of its two phones.
    """
    glottal, noise = voiced_source(rng, speaker_voice, size), rng.standard_normal(size)
    held = []
    for phone in PHONES:
        sections = [
            resonator(speaker_voice.formant_scale * formant_hz, bandwidth_hz)
            for formant_hz, bandwidth_hz in zip(phone.formants_hz, phone.bandwidths_hz, strict=True)
        ]
        held.append(_unit_rms(scipy.signal.sosfilt(np.stack(sections), glottal if phone.voiced else noise)))
    return held


def crossfaded(held: list[Samples], phones: NDArray[np.int64], ends: NDArray[np.int64]) -> Samples:
    """Return an utterance (size,): each of `phones` (phone,) until its sample number in `ends`, crossfaded.

    `held` is the result of `phone_signals`. Crossfades are symmetric, and their gains sum to 1.
    """
    half = round(CROSSFADE_S * SAMPLE_RATE_HZ / 2)
    rise = np.sin(0.5 * math.pi * (np.arange(2 * half) + 0.5) / (2 * half)) ** 2
    mixed = np.zeros(held[0].size)
    starts = np.concatenate([[0], ends[:-1]])
    for phone, start, end in zip(phones, starts, ends, strict=True):
        gate = np.ones(end - start + 2 * half)
        gate[: 2 * half] = rise
        gate[-2 * half :] = rise[::-1]
        first, last = max(start - half, 0), min(end + half, held[0].size)
        if first < last:
            gate = gate[first - (start - half) :][: last - first]
            mixed[first:last] += gate * held[phone][first:last]
    return mixed


def room_noise(rng: np.random.Generator, pole: float, size: int) -> Samples:
    """Return stationary noise (size,) with RMS 1; the nearer `pole` is to 1, the less high frequencies it has."""
    return _unit_rms(scipy.signal.lfilter([1.0], [1.0, -pole], rng.standard_normal(size)))


def utterance(config: DemoConfig, language: int, speaker: int, number: int) -> NDArray[np.float32]:
    """Return the samples of an utterance at SAMPLE_RATE_HZ: (sample,) float32 within ±1.

    They depend on the arguments alone; `language` is an index into LANGUAGES.
    """
    rng = np.random.default_rng([config.seed, _UTTERANCE_STREAM, language, speaker, number])
    speaker_voice = voice(config, speaker)
    size = round(config.utterance_s * SAMPLE_RATE_HZ)
    count = math.ceil(config.utterance_s / MIN_PHONE_S) + 1  # sufficient if all phones have the minimum length
    phones = phone_sequence(rng, language, count)
    ends_s = np.cumsum(phone_durations_s(rng, speaker_voice.rate, count))
    ends = np.rint(ends_s * SAMPLE_RATE_HZ).astype(np.int64)
    noisy = _unit_rms(crossfaded(phone_signals(rng, speaker_voice, size), phones, ends))
    noisy += math.pow(10.0, -speaker_voice.snr_db / 20.0) * room_noise(rng, speaker_voice.noise_pole, size)
    noisy *= math.pow(10.0, speaker_voice.level_db / 20.0)
    noisy /= max(1.0, float(np.abs(noisy).max()))
    return noisy.astype(np.float32)
