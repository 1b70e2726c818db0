"""MFCCs: equal to librosa's, equal bits for every division into blocks, and signals with known features."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.features import mfcc_kernel
from pipeline.features.framing import FRAMES_PER_BLOCK, Samples
from pipeline.features.mfcc import Mfcc
from pipeline.features.mfcc_kernel import LOG_FLOOR
from tests.conftest import noise

# librosa warns about every recording shorter than a window, and pads it as the contract requires
SHORT = "ignore:n_fft=.* is too large for input signal:UserWarning"
# librosa and the kernel use the same filters; a band without a bin is at the floor in both
EMPTY = "ignore:Empty filters detected in mel frequency basis:UserWarning"

DEFAULT = Mfcc()
SMALL = Mfcc(sample_rate_hz=8000, window_s=0.004, hop_s=0.001, n_mels=6, n_mfcc=4)
ODD = Mfcc(sample_rate_hz=8000, window_s=33 / 8000, hop_s=7 / 8000, n_mels=6, n_mfcc=4)
GAPS = Mfcc(sample_rate_hz=8000, window_s=0.004, hop_s=0.005, n_mels=6, n_mfcc=4)
NOT_CENTRED = SMALL.model_copy(update={"center": False})
CUT_CONFIGS = {"small": SMALL, "odd window": ODD, "hop beyond window": GAPS, "not centred": NOT_CENTRED}


def features_of(samples: Samples, config: Mfcc = DEFAULT) -> NDArray[np.float32]:
    """Features of a recording in one block: (frame, mfcc) float32."""
    return config.extract([samples]).values


def log_mel_blocks(blocks: Iterable[Samples], config: Mfcc) -> Iterator[NDArray[np.float32]]:
    """The log-mel spectrogram as (frame, n_mels) blocks."""
    return (log_mel[:, :frames].T for log_mel, frames in mfcc_kernel.log_mel_blocks(blocks, config))


def signal(key: str, samples: int) -> Samples:
    return noise(key, samples).astype(np.float32)


def reference(samples: Samples, config: Mfcc) -> NDArray[np.float32]:
    """librosa's MFCCs: (frame, mfcc) float32."""
    if not config.center and len(samples) < config.n_fft:
        return np.zeros((0, config.n_mfcc), np.float32)
    power = librosa.feature.melspectrogram(
        y=samples,
        sr=config.sample_rate_hz,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        n_mels=config.n_mels,
        fmin=config.fmin_hz,
        fmax=config.fmax_hz,
        center=config.center,
    )
    log_mel = librosa.power_to_db(power, top_db=config.top_db)
    found: NDArray[np.float32] = librosa.feature.mfcc(S=log_mel, n_mfcc=config.n_mfcc).T
    return found


@st.composite
def configs(draw: st.DrawFn) -> Mfcc:
    rate = draw(st.sampled_from([8000, 11_025, 16_000, 22_050, 44_100, 48_000]))
    # powers of two, primes, powers of odd primes, and numbers between them
    lengths = st.sampled_from([2, 3, 64, 128, 256, 512, 1024, 2048, 31, 127, 401, 997, 27, 81, 243, 441, 625, 1155])
    n_fft = draw(st.one_of(lengths, st.integers(2, 1200)))
    hop = draw(st.one_of(st.integers(40, 400), st.integers(n_fft, 2 * n_fft), st.integers(1, 40)))
    n_mels = draw(st.one_of(st.integers(1, 60), st.sampled_from([80, 127, 128, 255])))
    fmin_hz = draw(st.sampled_from([0.0, 20.0, 300.0]))
    return Mfcc(
        sample_rate_hz=rate,
        window_s=n_fft / rate,
        hop_s=hop / rate,
        n_mels=n_mels,
        n_mfcc=draw(st.integers(1, n_mels)),
        fmin_hz=fmin_hz,
        fmax_hz=draw(st.sampled_from([None, 3000.0, rate / 2])),
        top_db=draw(st.sampled_from([None, 20.0, 80.0])),
        center=draw(st.booleans()),
    )


def silent(samples: int, _: float) -> NDArray[np.float64]:
    return np.zeros(samples)


def constant(samples: int, _: float) -> NDArray[np.float64]:
    return np.full(samples, 0.5)


def impulse(samples: int, place: float) -> NDArray[np.float64]:
    return np.where(np.arange(samples) == int(place * samples), 0.9, 0.0)


def noise_after_silence(samples: int, place: float) -> NDArray[np.float64]:
    return np.where(np.arange(samples) < place * samples, 0, noise("late", samples))


def loud_tone_in_faint_noise(samples: int, pitch: float) -> NDArray[np.float64]:
    return 0.9 * np.sin(np.pi * pitch * np.arange(samples)) + 1e-5 * noise("faint", samples)


def tone_alone(samples: int, pitch: float) -> NDArray[np.float64]:
    return 0.9 * np.sin(np.pi * pitch * np.arange(samples))


def clipped_tone(samples: int, pitch: float) -> NDArray[np.float64]:
    return np.clip(3 * np.sin(np.pi * pitch * np.arange(samples)), -1, 1)


SIGNALS = [silent, constant, impulse, noise_after_silence, loud_tone_in_faint_noise, tone_alone, clipped_tone]


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.parametrize("samples", [1, 2, 159, 160, 161, 199, 200, 201, 400, 401, 16_000, 40_001])
def test_features_equal_the_call_that_the_contract_names(samples: int) -> None:
    y = signal("contract", samples)
    expected = librosa.feature.mfcc(y=y, sr=16_000, n_mfcc=40, n_fft=400, hop_length=160).T
    found = features_of(y)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.filterwarnings(EMPTY)
@settings(max_examples=60)
@given(configs(), st.one_of(st.integers(1, 40), st.integers(41, 9000)), st.sampled_from([1.0, 1e-2, 1e-4]))
def test_features_equal_librosa_for_any_parameters(config: Mfcc, samples: int, gain: float) -> None:
    y = signal("any", samples) * np.float32(gain)
    np.testing.assert_allclose(features_of(y, config), reference(y, config), atol=1e-3, rtol=0)


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.filterwarnings(EMPTY)
@pytest.mark.parametrize("make", SIGNALS)
@settings(max_examples=60)
@given(
    configs(),
    st.one_of(st.integers(1, 40), st.integers(41, 9000)),
    st.floats(0, 0.99),
    st.lists(st.floats(0, 1), max_size=8),
)
def test_features_of_any_signal_equal_librosa_in_one_piece_or_many(
    make: Callable[[int, float], NDArray[np.float64]],
    config: Mfcc,
    samples: int,
    value: float,
    cuts: list[float],
) -> None:
    y = make(samples, value).astype(np.float32)
    found = features_of(y, config)
    np.testing.assert_allclose(found, reference(y, config), atol=1e-3, rtol=0)
    blocks = np.split(y, sorted(int(cut * samples) for cut in cuts))
    np.testing.assert_array_equal(config.extract(blocks).values, found)


@pytest.mark.parametrize("frequency_hz", [50, 440, 1000, 3999, 7900])
def test_features_of_a_tone_in_noise_equal_librosa(frequency_hz: int) -> None:
    t = np.arange(16_000) / 16_000
    y = (0.8 * np.sin(2 * np.pi * frequency_hz * t) + 0.1 * noise("tone", 16_000)).astype(np.float32)
    np.testing.assert_allclose(features_of(y), reference(y, DEFAULT), atol=1e-3, rtol=0)


def test_features_across_block_boundaries_equal_librosa() -> None:
    y = signal("long", 160 * (2 * FRAMES_PER_BLOCK + 100))
    y[: len(y) // 2] *= 1e-3
    np.testing.assert_allclose(features_of(y), reference(y, DEFAULT), atol=1e-3, rtol=0)


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.filterwarnings(EMPTY)
@settings(max_examples=60)
@given(configs(), st.integers(0, 5000))
def test_frames_are_as_many_as_the_configuration_computes(config: Mfcc, samples: int) -> None:
    found = config.extract([signal("frames", samples)])
    assert found.recording_frames == len(found.values) == config.frames(samples)
    if samples:
        assert config.frames(samples) == len(reference(signal("frames", samples), config))


@pytest.mark.parametrize("frequency_hz", [100, 4000, 7900])
@pytest.mark.parametrize("amplitude", [0, 1e-6, 1e-4])
def test_features_of_a_loud_tone_in_faint_noise_equal_librosa(frequency_hz: int, amplitude: float) -> None:
    t = np.arange(16_000) / 16_000
    y = (0.9 * np.sin(2 * np.pi * frequency_hz * t) + amplitude * noise("faint", 16_000)).astype(np.float32)
    np.testing.assert_allclose(features_of(y), reference(y, DEFAULT), atol=3e-4, rtol=0)


@pytest.mark.parametrize("name", CUT_CONFIGS)
@settings(max_examples=60)
@given(data=st.data())
def test_any_cut_into_blocks_gives_the_same_bits(name: str, data: st.DataObject) -> None:
    config = CUT_CONFIGS[name]
    # two blocks, a few samples less, or a part more: the last window ends at any distance from a block's edge
    samples = 2 * FRAMES_PER_BLOCK * config.hop_length + data.draw(st.integers(-40, 2000))
    near_a_block = st.builds(
        lambda block, offset: block * FRAMES_PER_BLOCK * config.hop_length + offset,
        st.integers(0, 2),
        st.integers(-50, 50),
    )
    cuts = sorted(data.draw(st.lists(st.one_of(near_a_block, st.integers(0, samples)), max_size=12)))
    y = signal("cut", samples)
    blocks = np.split(y, np.clip(cuts, 0, samples))
    whole, pieces = config.extract([y]), config.extract(blocks)
    assert pieces.recording_frames == whole.recording_frames == config.frames(samples) > 2 * FRAMES_PER_BLOCK - 10
    np.testing.assert_array_equal(pieces.values, whole.values)


def test_single_samples_as_blocks_give_the_same_bits() -> None:
    y = signal("samples", 300)
    np.testing.assert_array_equal(SMALL.extract(list(y.reshape(-1, 1))).values, features_of(y, SMALL))


SLICED = signal("slice", 3 * FRAMES_PER_BLOCK * SMALL.hop_length + 123)
SLICED_FEATURES = features_of(SLICED, SMALL)
EDGES = [0, 1, *(k * FRAMES_PER_BLOCK + d for k in (1, 2, 3) for d in (-1, 0, 1)), len(SLICED_FEATURES)]
positions = st.one_of(st.sampled_from(EDGES), st.integers(0, len(SLICED_FEATURES) + 2 * FRAMES_PER_BLOCK))


@settings(max_examples=60)
@given(positions, st.one_of(st.none(), positions))
def test_any_slice_equals_the_slice_of_the_whole(start: int, stop: int | None) -> None:
    if stop is not None:
        start, stop = min(start, stop), max(start, stop)
    found = SMALL.extract([SLICED], start, stop)
    np.testing.assert_array_equal(found.values, SLICED_FEATURES[start:stop])
    assert found.recording_frames == len(SLICED_FEATURES)


@settings(max_examples=50)
@given(positions)
def test_a_stream_has_the_bits_of_the_whole_from_any_frame(start: int) -> None:
    frames, blocks = SMALL.stream(lambda: [SLICED], start)
    assert frames == len(SLICED_FEATURES)
    parts = [np.zeros((0, SMALL.n_mfcc), np.float32), *blocks]
    np.testing.assert_array_equal(np.concatenate(parts), SLICED_FEATURES[start:])


def test_slices_of_neighbours_join_to_the_whole() -> None:
    edges = [0, 20, 1000, 1040, 2048, 3000, None]
    parts = [SMALL.extract([SLICED], start or 0, stop).values for start, stop in itertools.pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(parts), SLICED_FEATURES)


def test_features_of_one_call_leave_those_of_another_alone() -> None:
    first = features_of(signal("one", 4000))
    kept = first.copy()
    features_of(signal("two", 4000))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("top_db", [80.0, None])
def test_silence_is_the_floor_in_every_band(top_db: float | None) -> None:
    config = Mfcc(top_db=top_db)
    found = features_of(np.zeros(16_000, np.float32), config)
    assert found.shape == (101, 40)
    # -100 dB in all 128 bands: only the first coefficient is not zero
    np.testing.assert_allclose(found[:, 0], -100 * np.sqrt(128), rtol=1e-6)
    np.testing.assert_allclose(found[:, 1:], 0, atol=1e-4)


def test_no_samples_give_no_frames() -> None:
    for blocks in ([], [np.zeros(0, np.float32)]):
        found = DEFAULT.extract(blocks)
        assert found.values.shape == (0, 40)
        assert found.recording_frames == 0


def test_impulse_in_the_middle_of_a_window_has_a_flat_spectrum() -> None:
    y = np.zeros(16_000, np.float32)
    y[50 * 160] = 1
    (log_mel,) = log_mel_blocks([y], DEFAULT)
    mel = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=128)  # (n_mels, bin)
    np.testing.assert_allclose(log_mel[50], 10 * np.log10(mel.sum(axis=1)), atol=1e-3)
    # a window extends 200 samples from its middle: only the neighbouring frames contain the impulse too
    heard = np.flatnonzero((log_mel > 10 * np.log10(LOG_FLOOR)).any(axis=1))
    np.testing.assert_array_equal(heard, [49, 50, 51])
    np.testing.assert_allclose(log_mel[49], log_mel[51], atol=1e-2)


@pytest.mark.parametrize("band", [10, 40, 80, 120])
def test_tone_is_loudest_in_its_own_band(band: int) -> None:
    frequency_hz = librosa.mel_frequencies(130, fmin=0, fmax=8000)[band + 1]
    y = np.sin(2 * np.pi * frequency_hz * np.arange(16_000) / 16_000).astype(np.float32)
    (log_mel,) = log_mel_blocks([y], DEFAULT)
    # bins are 40 Hz apart: in the low bands, a neighbouring band may be nearer
    assert (np.abs(log_mel[2:-2].argmax(axis=1) - band) <= (1 if frequency_hz < 1000 else 0)).all()
    assert (log_mel[2:-2].max(axis=1) - np.median(log_mel[2:-2], axis=1) > 40).all()


def test_ten_times_the_amplitude_is_twenty_decibels() -> None:
    y = signal("gain", 4000) / 10
    (quiet,), (loud,) = log_mel_blocks([y], DEFAULT), log_mel_blocks([y * 10], DEFAULT)
    np.testing.assert_allclose(loud - quiet, 20, atol=1e-3)


@pytest.mark.parametrize("where", ["before", "after"])
def test_floor_follows_a_peak_in_another_block(where: str) -> None:
    quiet = signal("quiet", 160 * 3 * FRAMES_PER_BLOCK) * np.float32(1e-4)
    loud = 10 * signal("loud", 16_000)
    y = np.concatenate([loud, quiet] if where == "before" else [quiet, loud])
    # a hundred frames in the middle, more than a block away from either end
    start, stop = 3 * FRAMES_PER_BLOCK // 2, 3 * FRAMES_PER_BLOCK // 2 + 100
    found = DEFAULT.extract([y], start, stop).values
    # the quiet part is below the floor, which is the same in all bands
    np.testing.assert_allclose(found[:, 1:], 0, atol=1e-3)
    np.testing.assert_allclose(found, reference(y, DEFAULT)[start:stop], atol=1e-3, rtol=0)
    peak_db = max(block.max() for block in log_mel_blocks([y], DEFAULT))
    np.testing.assert_allclose(found[:, 0], (peak_db - 80) * np.sqrt(128), rtol=1e-6)
    assert np.abs(DEFAULT.extract([quiet], start, stop).values[:, 1:]).max() > 1


def test_blocks_are_read_once_and_one_at_a_time() -> None:
    pulled = 0

    def blocks() -> Iterator[Samples]:
        nonlocal pulled
        for number in range(6):
            pulled += 1
            yield signal(str(number), FRAMES_PER_BLOCK * SMALL.hop_length)

    log_mel = log_mel_blocks(blocks(), SMALL)
    assert next(log_mel).shape == (FRAMES_PER_BLOCK, SMALL.n_mels)
    assert pulled <= 2
    assert sum(len(block) for block in log_mel) == 5 * FRAMES_PER_BLOCK + 1
    assert pulled == 6
