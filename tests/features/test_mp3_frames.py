"""MP3 frames: where they are between tags and junk, what the length header names, and how many samples there are."""

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.mp3_frames import LengthHeader, Mp3, Mp3Frames, count_samples, find


def encoded(seconds: float = 1.0, *, rate: int = 16_000, channels: int = 1, mode: str = "CONSTANT") -> bytes:
    """What LAME makes of noise in libsndfile: a length header, and frames of sound."""
    file = io.BytesIO()
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (int(seconds * rate), channels))
    soundfile.write(file, sound, rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=mode)
    return file.getvalue()


def found(data: bytes, start: int = 0) -> Mp3:
    mp3 = find(io.BytesIO(data), start)
    assert mp3 is not None
    return mp3


def frames_of(data: bytes) -> Mp3Frames:
    return count_samples(io.BytesIO(data), found(data))


def counted(data: bytes) -> tuple[int, int, int | None]:
    """Samples, end and first hole."""
    frames = frames_of(data)
    return frames.samples, frames.end, frames.first_hole


def id3v2(size: int, *, footer: bool = False) -> bytes:
    digits = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    cover = b"\xff\xd8\xff\xe0 a picture"  # looks like a frame's beginning
    return b"ID3\4\0" + bytes([0x10 * footer]) + digits + cover.ljust(size, b"\xff") + bytes(10 * footer)


def ape(size: int) -> bytes:
    """A tag with header and footer."""
    header, footer = (
        struct.pack("<8sIIII8s", b"APETAGEX", 2000, size + 32, 1, flags, b"") for flags in (0xA0000000, 0x80000000)
    )
    return header + bytes(size) + footer


ID3V1 = b"TAG".ljust(128, b" ")
MP3 = encoded()
FRAMES = frames_of(MP3).samples // 576
FRAME_BYTES = 144
WITHOUT_HEADER = b"\xff\xf3\x48\xc4".ljust(FRAME_BYTES, b"\xaa") * FRAMES  # MPEG 2, 32 kbit/s, 16 kHz
OTHER_RATE = encoded(rate=44_100)


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_what_lame_writes(rate: int, channels: int, mode: str) -> None:
    data = encoded(0.3, rate=rate, channels=channels, mode=mode)
    mp3, frames = found(data), frames_of(data)
    assert (mp3.begin, mp3.end, mp3.sample_rate_hz, mp3.channels, mp3.layer) == (0, len(data), rate, channels, 3)
    header = mp3.length_header
    assert header is not None
    assert header.frames is not None
    assert header.delay is not None
    assert header.padding is not None
    assert header.size_bytes == len(data)
    assert counted(data) == (header.frames * mp3.samples_per_frame, len(data), None)
    assert frames.samples - header.delay - header.padding == int(0.3 * rate)
    assert frames.samples <= mp3.max_samples


@pytest.mark.parametrize(
    "front",
    [b"", id3v2(10), id3v2(90_000) + id3v2(3, footer=True), ape(50), ID3V1, bytes(5000), id3v2(9) + bytes(70_000),
     b"\xff\xfb\x90\x00 no frame follows \xff" * 300],
    ids=["nothing", "id3v2", "two id3v2", "ape", "id3v1", "zeros", "id3v2 and zeros", "junk"],
)  # fmt: skip
@pytest.mark.parametrize("back", [b"", ID3V1, ape(70), ape(3) + ID3V1], ids=["nothing", "id3v1", "ape", "both"])
@pytest.mark.parametrize("sound", [MP3, WITHOUT_HEADER], ids=["with header", "without"])
def test_tags_and_junk_are_left_out(front: bytes, back: bytes, sound: bytes) -> None:
    mp3 = found(front + sound + back)
    assert (mp3.begin, mp3.end) == (len(front), len(front + sound))
    assert (mp3.length_header is None) == (sound is WITHOUT_HEADER)
    assert counted(front + sound + back) == (FRAMES * 576, len(front + sound), None)


def test_junk_at_the_end_is_no_hole() -> None:
    for junk in (bytes(4096), b"\xff" * 5000, MP3[:3] * 30):
        assert counted(WITHOUT_HEADER + junk) == (FRAMES * 576, len(WITHOUT_HEADER), None)


@pytest.mark.parametrize("hole", [bytes(4000), bytes(100_000), b"\xff\xfb" * 9])
def test_a_hole_is_skipped_and_reported(hole: bytes) -> None:
    cut = 10 * FRAME_BYTES
    data = WITHOUT_HEADER[:cut] + hole + WITHOUT_HEADER[cut:]
    assert counted(data) == (FRAMES * 576, len(data), 10 * 576)
    assert frames_of(data).spans == ((0, cut), (cut + len(hole), len(data)))


def test_the_frame_that_a_file_ends_in_does_not_count() -> None:
    for cut in range(1, FRAME_BYTES):
        assert counted(WITHOUT_HEADER[:-cut]) == ((FRAMES - 1) * 576, len(WITHOUT_HEADER) - FRAME_BYTES, None)


def test_frames_across_blocks_count_once() -> None:
    times = 40
    data = WITHOUT_HEADER * times
    assert len(data) > 2**17
    assert counted(data) == (times * FRAMES * 576, len(data), None)


def test_a_second_file_behind_the_first() -> None:
    for between in (b"", ID3V1 + id3v2(5000), bytes(3000)):
        for second in (MP3, WITHOUT_HEADER, OTHER_RATE):
            data = MP3 + between + second
            assert found(data).second_begin == len(MP3 + between)
            follower = found(data, len(MP3 + between))
            assert follower == replace(
                found(second), begin=len(MP3 + between), sound_begin=follower.sound_begin, end=len(data)
            )
    for back in (b"", ID3V1, bytes(9000)):
        assert found(MP3 + back).second_begin is None


def test_a_file_of_its_length_header_alone_holds_no_sound() -> None:
    alone = MP3[: found(MP3).sound_begin]
    assert counted(alone) == (0, len(alone), None)
    assert found(alone).max_samples == 0


def test_fields_that_a_length_header_lacks() -> None:
    tag = 4 + 9  # behind the side information of one channel
    for flags, expected in ((1, (5, None)), (2, (None, 5)), (3, (5, 6)), (0, (None, None))):
        named = b"Info" + struct.pack(">III", flags, 5, 6)
        header = found(MP3[:tag] + named + bytes(120) + MP3[tag + len(named) + 120 :]).length_header
        assert header == LengthHeader(True, *expected, None, None)


def test_the_header_of_fraunhofers_encoder() -> None:
    first, rest = MP3[: found(MP3).sound_begin], MP3[found(MP3).sound_begin :]
    vbri = b"VBRI" + struct.pack(">HHHII", 1, 0, 75, len(MP3), FRAMES)
    header = first[:4].ljust(36, b"\0") + vbri.ljust(len(first) - 36, b"\0")
    mp3 = found(header + rest)
    assert mp3.length_header == LengthHeader(False, FRAMES, len(MP3), None, None)
    assert mp3.sound_begin == len(first)


@pytest.mark.parametrize(
    ("header", "size", "samples", "layer", "channels"),
    [
        (b"\xff\xfd\xa4\x00", 576, 1152, 2, 2),  # MPEG 1, 192 kbit/s, 48 kHz
        (b"\xff\xff\xc8\x00", 576, 384, 1, 2),  # MPEG 1, 384 kbit/s, 32 kHz
        (b"\xff\xe3\x18\xc0", 72, 576, 3, 1),  # MPEG 2.5, 8 kbit/s, 8 kHz
    ],
)
def test_other_layers_and_versions(header: bytes, size: int, samples: int, layer: int, channels: int) -> None:
    data = header.ljust(size, b"\0") * 3
    mp3 = found(data)
    assert (mp3.layer, mp3.samples_per_frame, mp3.channels) == (layer, samples, channels)
    assert counted(data) == (3 * samples, len(data), None)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([
                MP3[:400], WITHOUT_HEADER[: 2 * FRAME_BYTES], OTHER_RATE[:300], ID3V1, ape(5), id3v2(20), b"ID3\4\0\0",
                b"APETAGEX", b"\xff\xfb\x90\x00", b"Xing", bytes(300),
            ]),
        ),
        max_size=12,
    ).map(b"".join),
    st.integers(0, 3000),
)  # fmt: skip
def test_any_bytes_give_frames_inside_the_file(data: bytes, start: int) -> None:
    mp3 = find(io.BytesIO(data), start)
    if mp3 is None:
        return
    assert start <= mp3.begin <= mp3.sound_begin <= mp3.end <= len(data)
    frames = count_samples(io.BytesIO(data), mp3)
    assert 0 <= frames.samples <= mp3.max_samples
    assert mp3.sound_begin <= frames.end <= mp3.end
    assert frames.first_hole is None or frames.first_hole < frames.samples


@pytest.mark.parametrize("bytes_", [b"\xff", b"\xff\xfb\x90", b"\xff\xfb\x90\x00" + bytes(418), b"ID3\4\0\0\0\0\0\0"])
def test_much_of_the_same_takes_no_longer_than_its_bytes(bytes_: bytes) -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, count: int | None = -1, /) -> bytes:
            block = super().read(count)
            self.taken += len(block)
            return block

    file = Counting(bytes_ * (2**21 // len(bytes_)))
    if mp3 := find(file):
        count_samples(file, mp3)
    assert file.taken < 2**22
