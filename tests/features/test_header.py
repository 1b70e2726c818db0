"""Headers that are read without libsndfile equal those that libsndfile reads."""

import io
import struct
from functools import cache

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.decoder_messages import without_decoder_messages
from pipeline.features.header import MAX_BYTES, Header, quick_header
from pipeline.features.mp3_frames import DECODER_DELAY, find
from pipeline.features.opus_pitfalls import crc32
from tests.conftest import noise

OPUS_RATES_HZ = (8000, 12_000, 16_000, 24_000, 48_000)
MP3_RATES_HZ = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


@cache
def encoded(codec: str, rate: int, channels: int, seconds: float) -> bytes:
    file = io.BytesIO()
    samples = noise(codec, round(seconds * rate) * channels).reshape(-1, channels)
    file_format, subtype = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}[codec]
    soundfile.write(file, samples, rate, format=file_format, subtype=subtype)
    return file.getvalue()


def quick(content: bytes) -> Header | None:
    return quick_header(io.BytesIO(content))


def by_libsndfile(content: bytes) -> Header:
    with without_decoder_messages(), soundfile.SoundFile(io.BytesIO(content)) as file:
        return Header(file.frames, file.samplerate, file.channels)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("codec", "rate"), [*(("mp3", rate) for rate in MP3_RATES_HZ), *(("opus", rate) for rate in OPUS_RATES_HZ)]
)
def test_files_as_encoders_write_them(codec: str, rate: int, channels: int) -> None:
    for seconds in (2.5, 2.503):
        content = encoded(codec, rate, channels, seconds)
        assert quick(content) == by_libsndfile(content) == Header(round(seconds * rate), rate, channels)


MP3 = encoded("mp3", 16_000, 1, 4.0)
FRAMES = 4 * 16_000 // 576


@given(
    frames=st.integers(1, FRAMES + 20), delay=st.integers(0, 4095), padding=st.integers(0, 4095), lame=st.booleans()
)
def test_mp3_with_any_delay_and_padding(frames: int, delay: int, padding: int, lame: bool) -> None:
    content = bytearray(MP3)
    tag = content.index(b"Info" if b"Info" in content else b"Xing")
    content[tag + 8 : tag + 12] = struct.pack(">I", frames)
    encoder = tag + 120  # behind frames, bytes, table of contents and quality
    assert content[encoder : encoder + 4] == b"LAME"
    content[encoder + 21 : encoder + 24] = struct.pack(">I", delay << 12 | padding)[1:]
    if not lame:
        content[encoder] = 0
    found = quick(bytes(content))
    if lame and delay + max(padding, DECODER_DELAY) < frames * 576 and frames < FRAMES:
        assert found is not None
    if found is not None:
        assert found == by_libsndfile(bytes(content))


def with_sound_pages(content: bytes) -> bytes:
    """Compute the checksum of every page anew."""
    pages = [b"OggS" + page for page in content.split(b"OggS")[1:]]
    return b"".join(
        page[:22] + struct.pack("<I", crc32(page[:22] + bytes(4) + page[26:])) + page[26:] for page in pages
    )


OPUS = encoded("opus", 16_000, 1, 3.5)


def test_checksum_is_that_of_libogg() -> None:
    assert with_sound_pages(OPUS) == OPUS


@given(
    page=st.integers(0, OPUS.count(b"OggS") - 1),
    place=st.sampled_from([*range(5, 14), *range(26, 60)]),
    byte=st.integers(0, 255),
)
def test_opus_with_any_byte_of_a_page_changed(page: int, place: int, byte: int) -> None:
    content = bytearray(OPUS)
    begins = [at for at in range(len(OPUS)) if OPUS.startswith(b"OggS", at)]
    at = begins[page] + place
    content[at] = byte
    changed = with_sound_pages(bytes(content))
    found = quick(changed)
    if found is not None:
        assert found == by_libsndfile(changed)


def test_other_files_need_libsndfile() -> None:
    assert quick(MP3) is not None
    assert quick(OPUS) is not None
    frames = MP3[find(io.BytesIO(MP3)).sound_begin :]  # type: ignore[union-attr]
    tail = OPUS[OPUS.index(b"OggS", 200) :]
    for other in (
        b"", b"Ogg", b"ID3", b"RIFF", frames, MP3 + MP3, MP3 + bytes(MAX_BYTES),
        OPUS + OPUS, OPUS + b"\0", OPUS[:-1], OPUS + bytes(MAX_BYTES), tail,
    ):  # fmt: skip
        assert quick(other) is None
