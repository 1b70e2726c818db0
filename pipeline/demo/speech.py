"""Three invented languages for a demonstration of spoken-language identification.

The languages share their phones, the frequencies of these and their voices; they differ only in which phone
follows which. A single frame therefore says nothing about the language, whereas a sequence of frames does.
"""

import math
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy  # which loads scipy.signal when it is asked for
import soundfile
from numpy.typing import NDArray

from pipeline.config import DemoConfig

SAMPLE_RATE_HZ = 16_000
LANGUAGES = ("alba", "bero", "cino")
PHONE_COUNT = 7
# Steps round the circle of phones. Each language takes one of s and -s for s = 1, 2, 3, a regular tournament:
# its phones are uniformly distributed, and neighbours {p, q} equally frequent, whichever language it is.
STEPS = ((-1, 2, 3), (1, -2, 3), (1, 2, -3))
MIN_PHONE_S, MAX_PHONE_S = 0.050, 0.090
MIN_RATE, MAX_RATE = 0.9, 1.1
CROSSFADE_S = 0.010
# Streams of random numbers: a seed sequence pads with zeros, so lengths alone would not keep keys apart.
_VOICE_STREAM, _UTTERANCE_STREAM = 1, 2

Samples = NDArray[np.float64]


class Phone(NamedTuple):
    """Resonances of a phone for a vocal tract of scale 1, and whether the glottis or noise excites them."""

    formants_hz: tuple[float, ...]
    bandwidths_hz: tuple[float, ...]
    voiced: bool


# F1 to F3 of vowels: means of men by Peterson and Barney (1952). The rest is chosen, of the order of Klatt
# (1980), so that phones stay apart across vocal tracts.
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
    """What a speaker keeps from utterance to utterance."""

    pitch_hz: float
    formant_scale: float
    rate: float  # scale of durations
    breath_db: float  # of breath noise relative to the voiced source
    level_db: float  # RMS relative to full scale
    snr_db: float
    noise_pole: float  # of the first-order filter that colours the room noise


class Recording(NamedTuple):
    """One file of the corpus; `language` indexes LANGUAGES, `path` is relative to the corpus."""

    language: int
    speaker: int
    number: int
    path: pathlib.Path


def voice(config: DemoConfig, speaker: int) -> Voice:
    """Voice of the speaker of this number, who speaks every language, so that voices say nothing about languages.

    A split by speaker name keeps it so: it has the same voices in every language.
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
    """Phones (phone,) of a random walk of the language, beginning at any phone with equal probability."""
    steps = rng.choice(np.array(STEPS[language], dtype=np.int64), size=count)
    steps[0] = rng.integers(PHONE_COUNT)
    return np.cumsum(steps) % PHONE_COUNT


def phone_durations_s(rng: np.random.Generator, rate: float, count: int) -> Samples:
    """Durations (phone,) in seconds, MIN_PHONE_S to MAX_PHONE_S at every rate, whatever phone or language."""
    return rate * rng.uniform(MIN_PHONE_S / MIN_RATE, MAX_PHONE_S / MAX_RATE, size=count)


def resonator(frequency_hz: float, bandwidth_hz: float) -> Samples:
    """Second-order section (6,) of the digital resonator of Klatt (1980), of gain 1 at 0 Hz."""
    c = -math.exp(-2.0 * math.pi * bandwidth_hz / SAMPLE_RATE_HZ)
    b = 2.0 * math.sqrt(-c) * math.cos(2.0 * math.pi * frequency_hz / SAMPLE_RATE_HZ)
    return np.array([1.0 - b - c, 0.0, 0.0, 1.0, -b, -c])


def _unit_rms(samples: Samples) -> Samples:
    return samples / max(math.sqrt(float(np.mean(np.square(samples)))), 1e-12)


def voiced_source(rng: np.random.Generator, speaker_voice: Voice, size: int) -> Samples:
    """Glottal pulses with drift and jitter of pitch, and breath noise: (size,) samples of RMS near 1."""
    time_s = np.arange(size) / SAMPLE_RATE_HZ
    drift_hz, phases = rng.uniform(0.2, 1.5, size=2), rng.uniform(0.0, 2.0 * math.pi, size=2)
    cycles = time_s + sum(  # the integral of a pitch that drifts by up to 8 %
        0.04 * np.sin(2.0 * math.pi * f * time_s + p) / (2.0 * math.pi * f)
        for f, p in zip(drift_hz, phases, strict=True)
    )
    cycles = speaker_voice.pitch_hz * (cycles - cycles[0])
    closures = np.arange(1.0, math.floor(cycles[-1]) + 1.0)
    closures += 0.01 * rng.standard_normal(closures.size)
    pulses = np.zeros(size)
    pulses[np.searchsorted(cycles, closures).clip(0, size - 1)] = 1.0
    # Glottal low pass of Klatt (1980), then radiation from the lips as a first difference.
    glottis = resonator(0.0, 100.0)
    glottis[1] = -glottis[0]
    source = _unit_rms(scipy.signal.sosfilt(glottis[np.newaxis], pulses))
    return source + math.pow(10.0, speaker_voice.breath_db / 20.0) * rng.standard_normal(size)


def phone_signals(rng: np.random.Generator, speaker_voice: Voice, size: int) -> list[Samples]:
    """Every phone held for the whole utterance, each (size,) of RMS 1.

    Filters that never start or stop ring alike before and after a boundary, so that no frame across one tells
    in which order its two phones came.
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
    """Join phones (phone,), each until its sample number of `ends`, by symmetric crossfades: (sample,)."""
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
    """Stationary noise (size,) of RMS 1, falling with frequency the more the nearer the pole is to 1."""
    return _unit_rms(scipy.signal.lfilter([1.0], [1.0, -pole], rng.standard_normal(size)))


def utterance(config: DemoConfig, language: int, speaker: int, number: int) -> NDArray[np.float32]:
    """Return samples (sample,) at 16 kHz, |x| <= 1, a pure function of the config and the three numbers."""
    rng = np.random.default_rng([config.seed, _UTTERANCE_STREAM, language, speaker, number])
    speaker_voice = voice(config, speaker)
    size = round(config.utterance_s * SAMPLE_RATE_HZ)
    count = math.ceil(config.utterance_s / MIN_PHONE_S) + 1  # enough even if every phone is short
    phones = phone_sequence(rng, language, count)
    ends_s = np.cumsum(phone_durations_s(rng, speaker_voice.rate, count))
    ends = np.rint(ends_s * SAMPLE_RATE_HZ).astype(np.int64)
    noisy = _unit_rms(crossfaded(phone_signals(rng, speaker_voice, size), phones, ends))
    noisy += math.pow(10.0, -speaker_voice.snr_db / 20.0) * room_noise(rng, speaker_voice.noise_pole, size)
    noisy *= math.pow(10.0, speaker_voice.level_db / 20.0)
    noisy /= max(1.0, float(np.abs(noisy).max()))
    return noisy.astype(np.float32)


def recordings(config: DemoConfig) -> Iterator[Recording]:
    """Every file of the corpus, by language, speaker and number."""
    for language, name in enumerate(LANGUAGES):
        for speaker in range(config.speakers_per_language):
            folder = pathlib.Path(name, f"speaker_{speaker:02d}")
            for number in range(config.utterances_per_speaker):
                yield Recording(language, speaker, number, folder / f"utterance_{number:03d}.flac")


def write(root: pathlib.Path, config: DemoConfig, recording: Recording) -> None:
    """Write a recording below `root` as 16-bit FLAC; a file of its final name is always complete."""
    samples = utterance(config, recording.language, recording.speaker, recording.number)
    path = root / recording.path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    soundfile.write(temporary, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    temporary.replace(path)
