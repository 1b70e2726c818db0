"""Files whose headers lie, and files that libsndfile does not read as they are: all of the audio, or a reason."""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from pipeline.features import audio_file, mp3_frames, sound_stream
from pipeline.features.audio import AudioError, read, read_blocks, read_header
from pipeline.features.audio_source import AudioSource
from pipeline.features.decoder_messages import without_decoder_messages
from pipeline.features.spliced_file import SplicedFile
from tests.conftest import noise

RATE = 16_000


def encoded(file_format: str, subtype: str, seconds: float = 1.0, rate: int = RATE, channels: int = 1) -> bytes:
    file = io.BytesIO()
    samples = noise(f"{seconds}", round(seconds * rate) * channels).reshape(-1, channels)
    soundfile.write(file, samples, rate, format=file_format, subtype=subtype)
    return file.getvalue()


FLAC, WAV = encoded("FLAC", "PCM_16"), encoded("WAV", "PCM_16")
MP3 = encoded("MP3", "MPEG_LAYER_III")
VORBIS, OPUS = encoded("OGG", "VORBIS"), encoded("OGG", "OPUS")


def save(folder: Path, name: str, content: bytes) -> AudioSource:
    (folder / name).write_bytes(content)
    return AudioSource(str(folder / name))


def alone(folder: Path, name: str, content: bytes) -> NDArray[np.float32]:
    return read(save(folder, f"alone-{name}", content), RATE)


def patched(content: bytes, place: int, field: bytes) -> bytes:
    return content[:place] + field + content[place + len(field) :]


def with_flac_total(total: int) -> bytes:
    (packed,) = struct.unpack_from(">Q", FLAC, 18)
    return patched(FLAC, 18, struct.pack(">Q", packed >> 36 << 36 | total))


@pytest.mark.parametrize("total", [0, 2**36 - 1, 2**33])
def test_flac_with_a_length_that_is_unknown_or_absurd_is_decoded_to_know_it(tmp_path: Path, total: int) -> None:
    source = save(tmp_path, "x.flac", with_flac_total(total))
    assert read_header(source).samples == RATE
    blocks = read_blocks(source, RATE)
    np.testing.assert_array_equal(np.concatenate(list(blocks)), alone(tmp_path, "x.flac", FLAC))
    named = f"ends at 1.000 s, its header names {total / RATE:,.3f} s"
    assert blocks.loss == ("" if total == 0 else named)


def test_a_long_flac_of_silence_has_the_length_that_its_header_names(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.flac", np.zeros(600 * RATE, np.int16), RATE)
    source = AudioSource(str(tmp_path / "x.flac"))
    assert Path(source.container).stat().st_size < 600 * RATE / 100
    assert read_header(source).samples == 600 * RATE


def with_granule(ogg: bytes, granule: int) -> bytes:
    """Change the granule position of the last page, whose checksum is then wrong or computed anew."""
    begin = ogg.rindex(b"OggS")
    page = bytearray(patched(ogg[begin:], 6, struct.pack("<q", granule)))
    page[22:26] = bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", checksum)
    return ogg[:begin] + bytes(page)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("granule", [2**40, 2**50, 2**62])
def test_ogg_with_an_absurd_last_position_has_a_possible_length(tmp_path: Path, subtype: str, granule: int) -> None:
    source = save(tmp_path, "x.ogg", with_granule(encoded("OGG", subtype, 5), granule))
    assert 4.9 * RATE < read_header(source).samples < 5.1 * RATE
    assert 4.9 * RATE < len(read(source, RATE)) < 5.1 * RATE


@pytest.mark.parametrize("content", [VORBIS, OPUS], ids=["vorbis", "opus"])
def test_chained_ogg_is_read_whole(tmp_path: Path, content: bytes) -> None:
    longer = encoded("OGG", "VORBIS" if content is VORBIS else "OPUS", 9)
    source = save(tmp_path, "x.ogg", content + longer + content)
    found = read(source, RATE)
    assert read_header(source).samples == len(found)
    parts = [alone(tmp_path, "x.ogg", part) for part in (content, longer, content)]
    np.testing.assert_array_equal(found, np.concatenate(parts))


def test_chained_ogg_with_another_rate_ends_there_and_gives_the_reason(tmp_path: Path) -> None:
    source = save(tmp_path, "x.ogg", VORBIS + encoded("OGG", "VORBIS", 9, 48_000, 2))
    blocks = read_blocks(source, RATE)
    assert read_header(source).samples == sum(len(block) for block in blocks) == RATE
    assert blocks.loss == ("ends at 1.000 s: 2 streams are chained, and the next one has 48000 Hz and 2 channels")


def in_ogg(flac: bytes) -> bytes:
    """Put a FLAC file into Ogg pages (RFC 9639, section 10.1), with three packets that cross pages."""
    packets = [b"\x7fFLAC\1\0\0\0" + flac[:42], flac[42:86], flac[86:]]
    lacing, body = b"", b"".join(packets)
    for packet in packets:
        lacing += b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
    pages, position = [], 0
    for number, begin in enumerate([0, *range(1, len(lacing), 255)]):
        table = lacing[begin : 1 if number == 0 else begin + 255]
        size = sum(table)
        head = struct.pack("<4sBBqIII", b"OggS", 0, 2 if number == 0 else 0, 0, 7, number, 0)
        pages.append(head + bytes([len(table)]) + table + body[position : position + size])
        position += size
    return b"".join(pages)


def test_flac_in_ogg_is_read(tmp_path: Path) -> None:
    source = save(tmp_path, "x.oga", in_ogg(FLAC))
    assert read_header(source).samples == RATE
    np.testing.assert_array_equal(read(source, RATE), alone(tmp_path, "x.flac", FLAC))


def id3v2(size: int) -> bytes:
    return b"ID3\4\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)


@pytest.mark.parametrize("front", [bytes(400), id3v2(20) + bytes(2048), id3v2(90_000)], ids=["zeros", "both", "cover"])
@pytest.mark.parametrize("back", [b"", bytes(4096), b"TAG".ljust(128)], ids=["nothing", "zeros", "tag"])
def test_mp3_with_tags_and_junk_around_it_has_the_samples_of_its_frames(
    tmp_path: Path, front: bytes, back: bytes
) -> None:
    expected = alone(tmp_path, "x.mp3", MP3)
    source = save(tmp_path, "x.mp3", front + MP3 + back)
    np.testing.assert_array_equal(read(source, RATE), expected)
    assert read_header(source).samples == len(expected)


def without_length_header(quality: float, rate: int = RATE) -> bytes:
    """MP3 of silence and noise with a variable bit rate; its first frames differ from the mean."""
    file = io.BytesIO()
    loud, quiet = noise("loud", 2 * rate), np.zeros(2 * rate)
    samples = np.concatenate([loud, quiet, quiet] if quality else [quiet, loud, loud])
    with soundfile.SoundFile(
        file, "w", rate, 1, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.5
    ) as mp3:
        mp3.write(samples)
    found = mp3_frames.find(file)
    assert found is not None
    return file.getvalue()[found.sound_begin :]


@pytest.mark.parametrize("loud_beginning", [1, 0], ids=["loud beginning", "quiet beginning"])
def test_mp3_without_a_length_header_is_read_to_its_end(tmp_path: Path, loud_beginning: float) -> None:
    source = save(tmp_path, "x.mp3", without_length_header(loud_beginning))
    found = read(source, RATE)
    assert read_header(source).samples == len(found)
    assert 5.9 * RATE < len(found) < 6.3 * RATE
    by_librosa, _ = librosa.load(source.container, sr=RATE)
    common = min(len(found), len(by_librosa))
    assert common > 0.5 * RATE
    np.testing.assert_array_equal(found[:common], by_librosa[:common])


@pytest.mark.parametrize("loud_beginning", [1, 0], ids=["loud beginning", "quiet beginning"])
def test_mp3_with_a_vbri_header_is_read_to_its_end(tmp_path: Path, loud_beginning: float) -> None:
    content = without_length_header(loud_beginning)
    vbri = b"\xff\xf3\x88\xc4".ljust(36, b"\0") + struct.pack(">4sHHHII", b"VBRI", 1, 0, 0, len(content), 170)
    whole = read(save(tmp_path, "plain.mp3", content), RATE)
    source = save(tmp_path, "x.mp3", vbri.ljust(288, b"\0") + content)
    found = read(source, RATE)
    assert read_header(source).samples == len(found) == len(whole) + 576
    by_librosa, _ = librosa.load(source.container, sr=RATE)
    common = min(len(found), len(by_librosa))
    np.testing.assert_array_equal(found[:common], by_librosa[:common])


def test_mp3_with_a_hole_is_read_around_it_and_the_second_is_named(tmp_path: Path) -> None:
    content = without_length_header(1)
    begin = content.index(b"\xff\xf3", len(content) // 2)
    source = save(tmp_path, "x.mp3", patched(content, begin, bytes(4000)))
    blocks = read_blocks(source, RATE)
    found = np.concatenate(list(blocks))
    assert read_header(source).samples == len(found)
    assert 2 * RATE < len(found) < len(read(save(tmp_path, "whole.mp3", content), RATE))
    assert blocks.loss.startswith("damaged at ")
    assert blocks.loss.endswith(" s: bytes that are no MP3 frames")


def test_joined_mp3s_are_read_whole(tmp_path: Path) -> None:
    second = encoded("MP3", "MPEG_LAYER_III", 2)
    source = save(tmp_path, "x.mp3", MP3 + second)
    found = read(source, RATE)
    assert read_header(source).samples == len(found) == 3 * RATE
    parts = [alone(tmp_path, "x.mp3", part) for part in (MP3, second)]
    np.testing.assert_array_equal(found, np.concatenate(parts))


@pytest.mark.parametrize("frames", [2**32 - 1, 2**31 - 1, 10**6])
def test_mp3_that_names_more_frames_than_it_can_hold_has_those_that_it_holds(tmp_path: Path, frames: int) -> None:
    place = max(MP3.find(b"Xing"), MP3.find(b"Info")) + 8
    source = save(tmp_path, "x.mp3", patched(MP3, place, struct.pack(">I", frames)))
    blocks = read_blocks(source, RATE)
    assert read_header(source).samples == sum(len(block) for block in blocks) < 1.2 * RATE
    assert blocks.loss.startswith("its header names more frames than the file holds")


def test_mp3_of_its_length_header_alone_holds_no_sound(tmp_path: Path) -> None:
    mp3 = mp3_frames.find(io.BytesIO(MP3))
    assert mp3 is not None
    size = mp3.sound_begin
    with pytest.raises(AudioError) as error:
        read_header(save(tmp_path, "x.mp3", MP3[:size]))
    assert str(error.value) == "not readable as audio: an MP3 without a frame that holds sound"


@pytest.mark.parametrize("riff_bytes", [0, len(WAV) - 8])
def test_wav_with_a_size_of_zero_is_read_to_its_end(tmp_path: Path, riff_bytes: int) -> None:
    content = patched(patched(WAV, 40, bytes(4)), 4, struct.pack("<I", riff_bytes))
    source = save(tmp_path, "x.wav", content)
    assert read_header(source).samples == RATE
    np.testing.assert_array_equal(read(source, RATE), alone(tmp_path, "x.wav", WAV))


def test_wav_without_samples_is_empty(tmp_path: Path) -> None:
    assert read_header(save(tmp_path, "x.wav", patched(WAV[:44], 40, bytes(4)))).samples == 0


def test_wav_whose_size_wrapped_at_four_gibibytes_has_all_its_samples(tmp_path: Path) -> None:
    source = save(tmp_path, "x.wav", WAV)
    size = 2**32 + 2 * RATE
    os.truncate(source.container, 44 + size)  # a sparse file
    assert read_header(source).samples == size // 2
    blocks = read_blocks(source, RATE)
    np.testing.assert_array_equal(next(blocks)[:RATE], alone(tmp_path, "x.wav", WAV))
    blocks.close()


def test_a_header_that_gives_no_samples_of_a_large_file_is_wrong(tmp_path: Path) -> None:
    content = encoded("AU", "PCM_16")
    source = save(tmp_path, "x.wav", patched(content, 8, struct.pack(">I", 2**31 - 1)))
    with pytest.raises(AudioError, match=rf"it gives no samples, but the file has {len(content):,} bytes"):
        read_header(source)


@pytest.mark.parametrize(("rate", "reason"), [
    (0, "not readable as audio: its WAV header names a sample rate of 0 Hz"),
    (1_000_001, "its header names a sample rate of 1000001 Hz, above 1,000,000 Hz"),
    (2**31 - 1, "its header names a sample rate of 2147483647 Hz, above 1,000,000 Hz"),
    (2**31, "not readable as audio: its WAV header names a sample rate of 2147483648 Hz"),
])  # fmt: skip
def test_a_sample_rate_that_no_sound_has_is_named(tmp_path: Path, rate: int, reason: str) -> None:
    source = save(tmp_path, "x.wav", patched(WAV, 24, struct.pack("<I", rate)))
    uses: tuple[Callable[[], object], ...] = (lambda: read_header(source), lambda: read(source, RATE))
    for use in uses:
        with pytest.raises(AudioError) as error:
            use()
        assert str(error.value) == reason


@pytest.mark.parametrize(("content", "reason"), [
    (patched(WAV, 22, struct.pack("<H", 2000)), "its WAV header names 2000 channels"),
    (patched(WAV, 20, struct.pack("<H", 0x28F)), "WAV with the codec G.722 (format tag 0x028F), which is not read"),
    (WAV[:36], "a WAV file without a data chunk"),
    (b"\0\0\0\x18ftypM4A " + bytes(3000), "MP4/AAC in a file named .wav"),
    (b"<html><body>Not found</body></html>", "HTML in a file named .wav"),
    (bytes(5000), "zeros only in a file named .wav"),
])  # fmt: skip
def test_the_reason_is_what_a_file_is(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(AudioError) as error:
        read_header(save(tmp_path, "x.wav", content))
    assert str(error.value) == f"not readable as audio: {reason}"


def test_ogg_with_a_codec_that_is_not_read_is_named(tmp_path: Path) -> None:
    packet = b"Speex   1.2".ljust(28, b"\0") + struct.pack("<13I", 1, 80, RATE, 1, 4, 1, 0, 320, 0, 1, 0, 0, 0)
    page = struct.pack("<4sBBqIII", b"OggS", 0, 2, 0, 7, 0, 0) + bytes([1, len(packet)]) + packet
    with pytest.raises(AudioError) as error:
        read_header(save(tmp_path, "x.ogg", page))
    assert str(error.value) == "not readable as audio: Ogg with Speex, which is not read"


@pytest.mark.parametrize("channels", [1, 2, 1000])
def test_blocks_are_bounded_in_values_whatever_the_header_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    monkeypatch.setattr(sound_stream, "MAX_BLOCK_VALUES", 5000)
    samples = noise("wide", 24_000).reshape(-1, channels)
    soundfile.write(tmp_path / "x.wav", samples, 900_000)
    with audio_file.open_audio(AudioSource(str(tmp_path / "x.wav"))) as file:
        sizes = [block.size for block in file.blocks()]
    assert sum(sizes) == 24_000
    assert max(sizes) == 5000


def test_libmpg123_does_not_write_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for content in (
        MP3 + bytes(4096),
        patched(MP3, len(MP3) // 2, bytes(1200)),
        MP3[: len(MP3) // 2],
        bytes(99) + MP3,
    ):
        source = save(tmp_path, "x.mp3", content)
        read_header(source)
        read(source, RATE)
    assert capfd.readouterr() == ("", "")


def test_other_lines_on_standard_error_are_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with without_decoder_messages():
        os.write(2, b"first\n\nNote: Trying to resync...\n[src/libmpg123/parse.c:f():1] error: Giving up\nlast")
    assert capfd.readouterr().err == "first\nlast"


def test_a_spliced_file_reads_like_its_content() -> None:
    base = io.BytesIO(bytes(range(100)))
    file = SplicedFile(base, [b"head", range(10, 30), b"", range(5, 9), range(90, 95)])
    content = b"head" + bytes(range(10, 30)) + bytes(range(5, 9)) + bytes(range(90, 95))
    whole = io.BytesIO(content)
    for offset, whence, size in [(0, 0, 3), (0, 1, 25), (-7, 2, 99), (2, 0, 5), (20, 0, 10), (50, 0, 1), (-40, 1, 40)]:
        place = max(0, whole.tell() + offset) if whence == 1 else offset
        whole.seek(place, 0 if whence == 1 else whence)
        file.seek(offset, whence)
        assert file.tell() == whole.tell()
        assert file.read(size) == whole.read(size)
