"""Synthesis: what the languages share, how they differ, and that utterances are reproducible."""

import itertools

import numpy as np
import pydantic
import pytest
from numpy.typing import NDArray

from pipeline.config import DemoConfig
from pipeline.demo import speech

CONFIG = DemoConfig(speakers_per_language=2, utterances_per_speaker=2, utterance_s=0.5)
LANGUAGES = range(len(speech.LANGUAGES))


def _bigrams(language: int) -> NDArray[np.float64]:
    """Relative frequencies (phone, next phone) of a long walk."""
    phones = speech.phone_sequence(np.random.default_rng(language), language, 200_000)
    counts = np.zeros((speech.PHONE_COUNT, speech.PHONE_COUNT))
    np.add.at(counts, (phones[:-1], phones[1:]), 1)
    return counts / counts.sum()


@pytest.mark.parametrize("language", LANGUAGES)
def test_phones_and_neighbours_are_equally_frequent_in_every_language(language: int) -> None:
    bigrams = _bigrams(language)
    np.testing.assert_allclose(bigrams.sum(axis=1), 1 / 7, atol=0.005)
    unordered = (bigrams + bigrams.T)[np.triu_indices(7, k=1)]
    np.testing.assert_allclose(unordered, 1 / 21, atol=0.004)
    assert not bigrams.diagonal().any()


@pytest.mark.parametrize("language", LANGUAGES)
def test_first_phone_is_uniform(language: int) -> None:
    rng = np.random.default_rng(5)
    first = [speech.phone_sequence(rng, language, 2)[0] for _ in range(7000)]
    np.testing.assert_allclose(np.bincount(first, minlength=7) / 7000, 1 / 7, atol=0.02)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_pair_of_neighbours_has_one_order(language: int) -> None:
    bigrams = _bigrams(language)
    assert not ((bigrams > 0) & (bigrams.T > 0)).any()


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(LANGUAGES, 2)))
def test_languages_differ_in_order(one: int, other: int) -> None:
    # Two of the three steps of each are reversed in the other.
    assert np.abs(_bigrams(one) - _bigrams(other)).sum() == pytest.approx(4 / 3, abs=0.05)


@pytest.mark.parametrize("rate", [speech.MIN_RATE, 1.0, speech.MAX_RATE])
def test_durations_keep_their_bounds_at_every_rate(rate: float) -> None:
    durations_s = speech.phone_durations_s(np.random.default_rng(0), rate, 10_000)
    assert 0.050 <= durations_s.min() < durations_s.max() <= 0.090


def test_voices_are_within_bounds_and_differ() -> None:
    voices = [speech.voice(CONFIG, speaker) for speaker in range(100)]
    assert len(set(voices)) == 100
    for voice in voices:
        assert 85 <= voice.pitch_hz <= 255
        assert 0.85 <= voice.formant_scale <= 1.2
        assert speech.MIN_RATE <= voice.rate <= speech.MAX_RATE


def test_speaker_has_the_same_voice_in_every_language(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(rng: np.random.Generator, voice: speech.Voice, size: int) -> list[NDArray[np.float64]]:
        asked.append(voice)
        return [np.ones(size)] * speech.PHONE_COUNT

    monkeypatch.setattr(speech, "phone_signals", spy)
    for language in LANGUAGES:
        speech.utterance(CONFIG, language, 1, 0)
    assert asked == [speech.voice(CONFIG, 1)] * 3


def test_resonator_peaks_at_its_frequency() -> None:
    b, a = np.split(speech.resonator(1000.0, 50.0), 2)
    frequencies_hz = np.arange(0.0, 8000.0, 5.0)
    z = np.exp(-2j * np.pi * frequencies_hz / speech.SAMPLE_RATE_HZ)
    gain = np.abs((b[0] + b[1] * z + b[2] * z**2) / (a[0] + a[1] * z + a[2] * z**2))
    assert gain[0] == pytest.approx(1.0)
    assert frequencies_hz[gain.argmax()] == pytest.approx(1000.0, abs=10)


def test_phones_are_held_at_equal_level() -> None:
    held = speech.phone_signals(np.random.default_rng(0), speech.voice(CONFIG, 0), 8000)
    assert len(held) == speech.PHONE_COUNT
    np.testing.assert_allclose([np.sqrt(np.mean(x**2)) for x in held], 1.0)


def test_crossfades_sum_to_one_and_are_symmetric() -> None:
    # Held signals of value 1 show the sum of the gates; the last phone ends after the utterance.
    phones, ends = np.array([0, 1, 2]), np.array([1000, 2000, 3100])
    np.testing.assert_allclose(speech.crossfaded([np.ones(3000)] * 3, phones, ends)[80:], 1.0)
    gate = speech.crossfaded([np.zeros(3000), np.ones(3000), np.zeros(3000)], phones, ends)
    np.testing.assert_allclose(gate[:3000], gate[:3000][::-1], atol=1e-12)
    assert gate[1000 - 81] == 0
    assert gate[1000 + 80] == 1


def test_utterance_is_the_same_every_time() -> None:
    for language in LANGUAGES:
        first = speech.utterance(CONFIG, language, 1, 1)
        np.testing.assert_array_equal(first, speech.utterance(CONFIG, language, 1, 1))


def test_utterances_differ() -> None:
    keys = list(itertools.product(LANGUAGES, range(2), range(2)))
    made = {speech.utterance(CONFIG, *key).tobytes() for key in keys}
    made.add(speech.utterance(CONFIG.model_copy(update={"seed": 2}), 0, 0, 0).tobytes())
    assert len(made) == len(keys) + 1


@pytest.mark.parametrize("speaker", range(20))
def test_amplitude_is_bounded(speaker: int) -> None:
    samples = speech.utterance(CONFIG, speaker % 3, speaker, 0)
    assert samples.dtype == np.float32
    assert samples.shape == (8000,)
    assert 0.01 < np.abs(samples).max() <= 1.0
    assert np.sqrt(np.mean(np.square(samples))) > 0.01


@pytest.mark.parametrize("bad", [{"seed": -1}, {"utterance_s": 0.0}, {"speakers_per_language": 0}, {"h": 1}])
def test_config_refuses_what_cannot_be(bad: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError):
        DemoConfig.model_validate(bad)
