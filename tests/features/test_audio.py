"""Audio: librosa's samples from every format, bounded blocks, and a reason for whatever cannot be read."""

from pathlib import Path

import fsspec
import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.features import audio, sound_stream
from pipeline.features.audio import (
    AudioError,
    DecodersDisagreeError,
    Header,
    SegmentReader,
    read,
    read_blocks,
    read_header,
    resampled_length,
)
from pipeline.features.audio_source import AudioSource
from tests.conftest import noise

# extension → libsndfile's format and subtype
FORMATS = {
    "int16.wav": ("WAV", "PCM_16"),
    "int24.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "int8.wav": ("WAV", "PCM_U8"),
    "x.flac": ("FLAC", "PCM_16"),
    "vorbis.ogg": ("OGG", "VORBIS"),
    "x.opus": ("OGG", "OPUS"),
    "x.mp3": ("MP3", "MPEG_LAYER_III"),
}
RATES_HZ = (8000, 11_025, 16_000, 22_050, 44_100, 48_000)


def at(path: Path | str) -> AudioSource:
    return AudioSource(str(path))


def write(
    path: Path, format_name: str, *, seconds: float = 0.7, rate: int = 16_000, channels: int = 1
) -> NDArray[np.float64]:
    """Write noise, and return it as (sample, channel) float64."""
    file_format, subtype = FORMATS[format_name]
    samples = noise(f"{rate} {channels}", (round(seconds * rate) + 1) * channels).reshape(-1, channels)
    soundfile.write(path, samples, rate, format=file_format, subtype=subtype)
    return samples


def possible(format_name: str, rate: int, channels: int) -> bool:
    if format_name == "x.opus":
        return rate in {8000, 12_000, 16_000, 24_000, 48_000}
    return not (format_name == "x.mp3" and channels > 2)


CASES = [
    (name, rate, channels)
    for name in FORMATS
    for rate in RATES_HZ
    for channels in (1, 2, 5)
    if possible(name, rate, channels)
]


@pytest.mark.parametrize(("name", "rate", "channels"), CASES)
def test_samples_equal_those_of_librosa(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rate: int, channels: int
) -> None:
    # several blocks, cut where no codec has a boundary
    monkeypatch.setattr(sound_stream, "BLOCK_S", 0.13)
    path = tmp_path / name
    write(path, name, rate=rate, channels=channels)
    expected, _ = librosa.load(path, sr=16_000)
    found = read(at(path), 16_000)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    header = read_header(at(path))
    assert (header.sample_rate_hz, header.channels) == (rate, channels)
    assert resampled_length(header.samples, header.sample_rate_hz, 16_000) == len(found)


@pytest.mark.parametrize("name", ["x.opus", "vorbis.ogg", "x.mp3", "x.flac"])
def test_samples_across_blocks_of_the_usual_length_equal_those_of_librosa(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, name, seconds=2.2 * sound_stream.BLOCK_S, rate=8000)
    expected, _ = librosa.load(tmp_path / name, sr=16_000)
    np.testing.assert_array_equal(read(at(tmp_path / name), 16_000), expected)


@pytest.mark.parametrize("target_hz", [8000, 11_025, 16_000, 44_100])
@pytest.mark.parametrize("samples", [0, 1, 2, 3, 100, 101])
def test_short_recordings_have_the_length_of_librosa(tmp_path: Path, samples: int, target_hz: int) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, noise("short", samples), 22_050)
    expected, _ = librosa.load(path, sr=None)
    if samples:
        expected = librosa.resample(expected, orig_sr=22_050, target_sr=target_hz)
    np.testing.assert_array_equal(read(at(path), target_hz), expected)
    assert len(expected) == resampled_length(samples, 22_050, target_hz)


@given(st.integers(0, 2**40), st.sampled_from(RATES_HZ), st.sampled_from(RATES_HZ))
def test_resampled_length_is_the_ceiling_up_to_rounding(samples: int, source_hz: int, target_hz: int) -> None:
    exact = -(-samples * target_hz // source_hz)
    assert abs(resampled_length(samples, source_hz, target_hz) - exact) <= 1
    assert resampled_length(samples, source_hz, source_hz) == samples


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = np.full(1000, 0.5), np.full(1000, -0.25)
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read(at(tmp_path / "x.wav"), 16_000), np.full(1000, 0.125, np.float32))


def test_tone_keeps_its_frequency_and_level_when_resampled(tmp_path: Path) -> None:
    t = np.arange(44_100) / 44_100
    soundfile.write(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 1000 * t), 44_100, subtype="FLOAT")
    found = read(at(tmp_path / "x.wav"), 16_000)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=1e-3)


@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
def test_blocks_are_bounded_whatever_the_length(tmp_path: Path, rate: int) -> None:
    seconds = 3.5 * sound_stream.BLOCK_S
    soundfile.write(tmp_path / "x.wav", noise("long", int(seconds * rate)), rate)
    lengths = [len(block) for block in read_blocks(at(tmp_path / "x.wav"), 16_000)]
    assert sum(lengths) == int(seconds * 16_000)
    assert max(lengths) <= 1.01 * sound_stream.BLOCK_S * 16_000
    assert len(lengths) >= 4


@pytest.mark.parametrize("name", FORMATS)
def test_header_says_length_rate_and_channels(tmp_path: Path, name: str) -> None:
    samples = write(tmp_path / name, name, seconds=0.5, rate=48_000, channels=2)
    header = read_header(at(tmp_path / name))
    assert header == Header(len(samples), 48_000, 2)
    assert header.duration_s == pytest.approx(0.5, abs=1e-4)


def test_upper_case_extension_is_read(tmp_path: Path) -> None:
    write(tmp_path / "X.WAV", "int16.wav")
    assert len(read(at(tmp_path / "X.WAV"), 16_000)) == 11_201


@pytest.mark.parametrize("name", ["int16.wav", "x.flac", "vorbis.ogg", "x.mp3"])
def test_url_gives_the_samples_of_the_file(tmp_path: Path, memory_url: str, name: str) -> None:
    write(tmp_path / name, name, rate=22_050, channels=2)
    with fsspec.open(f"{memory_url}/{name}", "wb") as file:
        file.write((tmp_path / name).read_bytes())
    assert read_header(at(f"{memory_url}/{name}")) == read_header(at(tmp_path / name))
    np.testing.assert_array_equal(read(at(f"{memory_url}/{name}"), 16_000), read(at(tmp_path / name), 16_000))


def reason(path: Path | str) -> str:
    """Why the samples cannot be read."""
    with pytest.raises(AudioError) as error:
        read(at(path), 16_000)
    return str(error.value)


def reason_of_header(path: Path | str) -> str:
    """Why the header cannot be read."""
    with pytest.raises(AudioError) as error:
        read_header(at(path))
    return str(error.value)


def test_empty_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.wav").touch()
    assert reason(tmp_path / "x.wav") == reason_of_header(tmp_path / "x.wav") == "the file is empty"


def test_text_with_the_name_of_a_recording_is_no_audio(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_text("not a recording " * 100)
    expected = "not readable as audio: text in a file named .wav"
    assert reason(tmp_path / "x.wav") == reason_of_header(tmp_path / "x.wav") == expected


def test_missing_file_says_so(tmp_path: Path) -> None:
    expected = "cannot be opened: No such file or directory"
    assert reason(tmp_path / "x.wav") == reason_of_header(tmp_path / "x.wav") == expected


def test_folder_with_the_name_of_a_recording_says_so(tmp_path: Path) -> None:
    assert reason(tmp_path) == "cannot be opened: Is a directory"


def test_missing_file_behind_a_url_says_so(memory_url: str) -> None:
    assert reason(f"{memory_url}/none.wav") == "cannot be opened: No such file or directory"


def test_empty_file_behind_a_url_says_so(memory_url: str) -> None:
    with fsspec.open(f"{memory_url}/x.wav", "wb"):
        pass
    assert reason(f"{memory_url}/x.wav") == "the file is empty"


def cut(path: Path, fraction: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])


def loss(path: Path) -> str:
    """Why audio is missing at the end."""
    blocks = read_blocks(at(path), 16_000, careful=True)
    assert sum(len(block) for block in blocks) == len(read(at(path), 16_000))
    return blocks.loss


def test_flac_that_was_cut_gives_the_samples_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    samples = write(path, "x.flac", seconds=3)
    whole = read(at(path), 16_000)
    cut(path, 0.5)
    assert read_header(at(path)).samples == len(samples)
    found = read(at(path), 16_000)
    assert 0.4 * len(whole) < len(found) < 0.5 * len(whole)
    np.testing.assert_array_equal(found, whole[: len(found)])
    assert loss(path) == f"damaged at {len(found) / 16_000:.3f} s: flac decoder lost sync"


def test_flac_with_damage_in_the_middle_gives_the_samples_before_it(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    write(path, "x.flac", seconds=3)
    whole = read(at(path), 16_000)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(DecodersDisagreeError):
        list(read_blocks(at(path), 16_000))
    found = read(at(path), 16_000)
    assert 0.4 * len(whole) < len(found) < 0.5 * len(whole)
    np.testing.assert_array_equal(found, whole[: len(found)])
    assert loss(path).startswith(f"damaged at {len(found) / 16_000:.3f} s: ")


def test_flac_whose_first_frame_is_damaged_is_no_audio(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    write(path, "x.flac", seconds=0.2)
    content = bytearray(path.read_bytes())
    content[-3000:] = bytes(3000)
    path.write_bytes(content[:200])
    assert reason(path).startswith("not readable as audio: damaged at 0.000 s: ")


def test_recording_cut_within_its_header_is_no_audio(tmp_path: Path) -> None:
    write(tmp_path / "x.wav", "int16.wav")
    (tmp_path / "x.wav").write_bytes((tmp_path / "x.wav").read_bytes()[:20])
    assert reason(tmp_path / "x.wav").startswith("not readable as audio: ")


def test_wav_that_was_cut_gives_the_samples_it_has(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    write(path, "int16.wav", seconds=3)
    whole = read(at(path), 16_000)
    cut(path, 0.5)
    found = read(at(path), 16_000)
    assert 23_000 < len(found) < 24_001
    assert len(found) == read_header(at(path)).samples
    np.testing.assert_array_equal(found, whole[: len(found)])


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_recording_shorter_than_its_header_says_gives_the_samples_it_has(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "x.mp3"
    samples = write(path, "x.mp3", seconds=3, rate=rate)
    whole = read(at(path), 16_000)
    cut(path, 0.5)
    assert read_header(at(path)).samples == len(samples)
    found = read(at(path), 16_000)
    assert 0.3 * len(whole) < len(found) < 0.6 * len(whole)
    np.testing.assert_array_equal(found, librosa.load(path, sr=16_000)[0])
    # the resampler hears what comes after the cut
    np.testing.assert_allclose(found[:-200], whole[: len(found) - 200], atol=1e-3)


@pytest.mark.parametrize("name", ["vorbis.ogg", "x.opus", "x.mp3"])
def test_recording_with_a_hole_gives_what_librosa_hears(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, name, seconds=3)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 500] = bytes(500)
    path.write_bytes(content)
    np.testing.assert_array_equal(read(at(path), 16_000), librosa.load(path, sr=16_000)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_sample_that_is_no_number_is_named_by_its_time(tmp_path: Path, value: float, rate: int) -> None:
    samples = np.zeros((2 * rate, 2), np.float32)
    samples[rate + rate // 4, 1] = value
    samples[rate + rate // 2] = value
    soundfile.write(tmp_path / "x.wav", samples, rate, subtype="FLOAT")
    assert reason(tmp_path / "x.wav") == "a sample is not a finite number, first at 1.250 s"


def test_sample_that_is_no_number_in_a_later_block_is_named_by_its_time(tmp_path: Path) -> None:
    samples = np.zeros(25 * 8000, np.float32)
    samples[21 * 8000] = np.nan
    soundfile.write(tmp_path / "x.wav", samples, 8000, subtype="FLOAT")
    assert reason(tmp_path / "x.wav") == "a sample is not a finite number, first at 21.000 s"


@pytest.mark.parametrize("values", [(np.inf, -np.inf), (3e38, 3e38)])
def test_channels_whose_mean_is_no_number_are_refused(tmp_path: Path, values: tuple[float, float]) -> None:
    samples = np.zeros((16_000, 2), np.float32)
    samples[8000] = values
    soundfile.write(tmp_path / "x.wav", samples, 16_000, subtype="FLOAT")
    assert reason(tmp_path / "x.wav") == "a sample is not a finite number, first at 0.500 s"


def test_sample_beyond_any_sound_is_named_by_its_time(tmp_path: Path) -> None:
    samples = np.zeros(16_000, np.float32)
    samples[4000] = -1e25
    soundfile.write(tmp_path / "x.wav", samples, 16_000, subtype="FLOAT")
    assert reason(tmp_path / "x.wav") == "a sample is larger than any sound, first at 0.250 s"


def test_samples_beyond_full_scale_are_kept(tmp_path: Path) -> None:
    samples = (32_768 * noise("loud", 1000)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", samples, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read(at(tmp_path / "x.wav"), 16_000), samples)


def test_files_are_closed_when_reading_stops_early(tmp_path: Path) -> None:
    write(tmp_path / "x.wav", "int16.wav", seconds=25)
    blocks = read_blocks(at(tmp_path / "x.wav"), 16_000)
    assert len(next(blocks)) == 160_000
    before = len(list(Path("/proc/self/fd").iterdir()))
    blocks.close()  # type: ignore[attr-defined]
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1


def segment(path: Path, start_s: float, stop_s: float | None) -> AudioSource:
    return AudioSource(str(path), None, start_s, stop_s)


def librosa_segment(path: Path, start_s: float, stop_s: float | None) -> NDArray[np.float32]:
    duration_s = None if stop_s is None else stop_s - start_s
    samples, _ = librosa.load(path, sr=16_000, offset=start_s, duration=duration_s)
    return samples


SPANS = [(0.0, 1.0), (0.1, 0.3), (1.1, 1.9), (0.7, 2.5), (2.999, None), (0.0, 99.0), (2.0, 2.0)]


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("name", ["int16.wav", "float.wav", "x.flac"])
def test_segment_has_the_samples_of_librosa(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rate: int, span: tuple[float, float | None]
) -> None:
    monkeypatch.setattr(sound_stream, "BLOCK_S", 0.13)
    write(tmp_path / name, name, seconds=3, rate=rate, channels=2)
    found = read(segment(tmp_path / name, *span), 16_000)
    np.testing.assert_array_equal(found, librosa_segment(tmp_path / name, *span))
    header = read_header(segment(tmp_path / name, *span))
    assert resampled_length(header.samples, rate, 16_000) == len(found)


@pytest.mark.parametrize("name", ["x.mp3", "x.opus", "vorbis.ogg"])
def test_segment_of_a_format_that_seeks_inexactly_is_cut_from_the_whole(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, name, seconds=3)
    whole = read(at(tmp_path / name), 16_000)
    np.testing.assert_array_equal(read(segment(tmp_path / name, 0.5, 1.25), 16_000), whole[8000:20_000])


def test_segment_past_the_end_is_empty(tmp_path: Path) -> None:
    write(tmp_path / "x.wav", "int16.wav", seconds=1)
    assert len(read(segment(tmp_path / "x.wav", 2.0, 3.0), 16_000)) == 0
    assert read_header(segment(tmp_path / "x.wav", 2.0, 3.0)).samples == 0


@pytest.fixture
def long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty seconds in blocks of half a second, of which two seconds are held."""
    monkeypatch.setattr(sound_stream, "BLOCK_S", 0.5)
    monkeypatch.setattr(audio, "HELD_SAMPLES", 2 * 22_050)
    write(tmp_path / "x.flac", "x.flac", seconds=20, rate=22_050, channels=2)
    return tmp_path / "x.flac"


def test_segments_that_touch_or_overlap_are_read_from_one_decoding(long_file: Path) -> None:
    spans = [(0.0, 1.0), (1.0, 2.5), (1.2, 1.3), (1.2, 6.0), (4.5, 5.0), (9.0, 9.7), (9.05, None)]
    sources = [segment(long_file, *span) for span in spans]
    with SegmentReader(at(long_file)) as reader:
        for source in sources:
            assert reader.reaches(source)
            found = np.concatenate([np.zeros(0, np.float32), *reader.read_blocks(source, 16_000)])
            np.testing.assert_array_equal(found, read(source, 16_000))


def test_reader_reaches_back_as_far_as_samples_are_held(long_file: Path) -> None:
    with SegmentReader(at(long_file)) as reader:
        assert reader.reaches(segment(long_file, 0.0, 1.0))
        for _ in reader.read_blocks(segment(long_file, 9.0, 10.0), 16_000):
            pass
        assert reader.reaches(segment(long_file, 8.0, 8.5))
        assert not reader.reaches(segment(long_file, 7.4, 9.5))
        assert not reader.reaches(segment(long_file.with_name("y.flac"), 9.0, 9.5))
        with pytest.raises(ValueError, match="is no longer held"):
            next(reader.read_blocks(segment(long_file, 7.4, 9.5), 16_000))


def test_segments_are_read_up_to_the_damage_and_all_later_ones_fail(long_file: Path) -> None:
    before, at_damage, after = (segment(long_file, *span) for span in [(1.0, 3.0), (9.0, 11.0), (15.0, 16.0)])
    expected = read(before, 16_000)
    content = bytearray(long_file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    long_file.write_bytes(content)
    with SegmentReader(at(long_file)) as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader.read_blocks(before, 16_000))), expected)
        blocks = reader.read_blocks(at_damage, 16_000)
        np.testing.assert_array_equal(np.concatenate(list(blocks)), read(at_damage, 16_000))
        assert blocks.loss.startswith("damaged at ")
        with pytest.raises(AudioError, match=r"^not readable as audio: damaged at 0\.000 s: ") as together:
            list(reader.read_blocks(after, 16_000))
        with pytest.raises(AudioError) as alone:
            read(after, 16_000)
        assert str(together.value) == str(alone.value)


def test_sample_that_is_no_number_harms_its_own_segment_alone(tmp_path: Path) -> None:
    samples = noise("segments", 48_000).astype(np.float32)
    samples[20_000] = np.nan
    soundfile.write(tmp_path / "x.wav", samples, 16_000, subtype="FLOAT")
    with SegmentReader(at(tmp_path / "x.wav")) as reader:
        for start_s, stop_s in [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]:
            blocks = reader.read_blocks(segment(tmp_path / "x.wav", start_s, stop_s), 16_000)
            if start_s == 1.0:
                with pytest.raises(AudioError, match=r"^a sample is not a finite number, first at 0\.250 s$"):
                    list(blocks)
            else:
                np.testing.assert_array_equal(
                    np.concatenate(list(blocks)), samples[int(start_s * 16_000) : int(stop_s * 16_000)]
                )


def test_member_of_a_container_is_refused(tmp_path: Path) -> None:
    source = AudioSource(str(tmp_path / "x.tar"), "a/b.wav")
    for use in (read_header, lambda found: read(found, 16_000)):
        with pytest.raises(AudioError) as error:
            use(source)
        assert str(error.value) == f"cannot be opened: reading a/b.wav inside {tmp_path / 'x.tar'} is not supported"


def test_sample_rate_below_the_minimum_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", noise("slow", 4000), 3999)
    assert read_header(at(tmp_path / "x.wav"), 3999).samples == 4000
    with pytest.raises(AudioError) as error:
        read_header(at(tmp_path / "x.wav"), 4000)
    assert str(error.value) == ("its header names a sample rate of 3999 Hz, below corpus.min_sample_rate_hz = 4000")
