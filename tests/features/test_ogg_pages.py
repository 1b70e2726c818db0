"""Ogg pages: the streams of whole, chained, multiplexed, cut and damaged files."""

import io
import struct
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.ogg_pages import MAX_STREAMS, OggStream, streams


def encoded(subtype: str, *, seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (int(seconds * rate), channels))
    soundfile.write(file, sound, rate, format="OGG", subtype=subtype)
    return file.getvalue()


def page(serial: int, body: bytes, *, granule: int = 0, first: bool = False) -> bytes:
    """An Ogg page of one packet of at most 254 bytes."""
    return struct.pack("<4sBBqIIIBB", b"OggS", 0, 2 * first, granule, serial, 0, 0, 1, len(body)) + body


def walked(data: bytes) -> tuple[OggStream, ...]:
    return streams(io.BytesIO(data))


VORBIS, OPUS = encoded("VORBIS"), encoded("OPUS", rate=48_000, channels=2)
FLAC_HEADER = b"\x7fFLAC\x01\x00\x00\x01fLaC\x00\x00\x00\x22" + struct.pack(
    ">HH6sIIQQ", 4096, 4096, b"", 16_000 << 12 | 1 << 9 | 15 << 4, 0, 0, 0
)
SPEEX_HEADER = struct.pack("<8s20sIIIIIIIIII", b"Speex   ", b"1.2", 1, 80, 16_000, 1, 4, 1, 0, 320, 0, 2)


def test_vorbis() -> None:
    (stream,) = walked(VORBIS)
    assert (stream.codec, stream.sample_rate_hz, stream.channels) == ("Vorbis", 16_000, 1)
    assert (stream.begin, stream.end, stream.last_granule) == (0, len(VORBIS), 16_000)
    assert 16_000 < stream.max_samples < 50_000


def test_opus_counts_at_48_khz() -> None:
    (stream,) = walked(encoded("OPUS", rate=16_000))
    assert (stream.codec, stream.sample_rate_hz, stream.channels) == ("Opus", 48_000, 1)
    assert stream.last_granule - stream.pre_skip == 48_000
    assert stream.packets == 2 + np.ceil(stream.last_granule / 960)  # two headers, and packets of 20 ms
    assert stream.max_samples == stream.packets * 5760


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (FLAC_HEADER, ("FLAC", 16_000, 2, 4096)),
        (FLAC_HEADER[9:], ("FLAC", 16_000, 2, 4096)),  # as before Ogg FLAC 1.1.1
        (SPEEX_HEADER, ("Speex", 16_000, 1, 640)),
        (b"\x80theora...", ("Theora", 0, 0, 0)),
        (b"OpusHead", ("Opus", 48_000, 0, 5760)),
        (b"\x01vorbis", ("Vorbis", 0, 0, 0)),
        (b"?", ("", 0, 0, 0)),
    ],
)
def test_codecs(header: bytes, expected: tuple[str, int, int, int]) -> None:
    (stream,) = walked(page(1, header, first=True))
    assert (stream.codec, stream.sample_rate_hz, stream.channels, stream.samples_per_packet) == expected


def test_links_of_a_chained_file() -> None:
    links = walked(VORBIS + OPUS + VORBIS)  # the first and the last have the same serial number or not
    assert [link.codec for link in links] == ["Vorbis", "Opus", "Vorbis"]
    assert [(link.begin, link.end) for link in links] == [
        (0, len(VORBIS)),
        (len(VORBIS), len(VORBIS + OPUS)),
        (len(VORBIS + OPUS), len(VORBIS + OPUS + VORBIS)),
    ]
    assert links[0].last_granule == links[2].last_granule == walked(VORBIS)[0].last_granule


def test_streams_that_begin_together_share_a_link() -> None:
    picture, sound = (page(1, b"\x80theora", first=True), page(2, b"\x01vorbis", first=True))
    film = picture + sound + page(1, b"..", granule=7) + page(2, b".", granule=9)
    first, second, after = walked(film + OPUS)[:3]
    assert (first.codec, first.packets, first.last_granule) == ("Theora", 2, 7)
    assert (second.codec, second.packets, second.last_granule) == ("Vorbis", 2, 9)
    assert (first.begin, first.end) == (second.begin, second.end) == (0, len(film))
    assert after.begin == len(film)


def test_bytes_between_pages_are_skipped() -> None:
    whole = walked(VORBIS)[0]
    junk = bytes(100_000) + b"OggS" * 1000 + b"OggS\0"
    (stream,) = walked(junk + VORBIS)
    assert (stream.begin, stream.packets) == (len(junk), whole.packets)
    offsets = [begin for begin in range(len(VORBIS)) if VORBIS.startswith(b"OggS", begin)]
    (stream,) = walked(VORBIS[: offsets[-1]] + junk + VORBIS[offsets[-1] :] + junk)
    assert (stream.end, stream.packets) == (len(junk + VORBIS), whole.packets)


def test_the_page_that_a_file_ends_in_is_left_out() -> None:
    whole = walked(VORBIS)[0]
    last_page = VORBIS.rindex(b"OggS")
    for length in range(last_page, len(VORBIS), 97):
        (cut,) = walked(VORBIS[:length])
        assert (cut.end, cut.packets < whole.packets) == (last_page, True)
        assert cut.last_granule < whole.last_granule


def test_a_page_in_which_no_packet_ends_names_no_position() -> None:
    (stream,) = walked(page(1, FLAC_HEADER, first=True) + page(1, b"..", granule=5) + page(1, b"", granule=-1))
    assert stream.last_granule == 5


def test_pages_of_a_stream_without_beginning_are_not_counted() -> None:
    assert walked(page(1, b"...")) == ()
    (stream,) = walked(page(1, b"...") + page(2, b"OpusHead", first=True) + page(1, b"...", granule=99))
    assert (stream.packets, stream.last_granule) == (1, 0)


def test_streams_are_bounded_in_number() -> None:
    link = page(1, b"", first=True) + page(1, b"")
    assert len(walked(link * (MAX_STREAMS + 10))) == MAX_STREAMS
    begins = b"".join(page(serial, b"", first=True) for serial in range(MAX_STREAMS + 10))
    assert len(walked(begins)) == MAX_STREAMS


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([b"OggS\0\2", VORBIS[:200], OPUS[:130], page(3, FLAC_HEADER, first=True)]),
            st.builds(page, st.integers(0, 3), st.binary(max_size=60), granule=st.integers(-(2**63), 2**63 - 1)),
        ),
        max_size=12,
    ).map(b"".join)
)
def test_any_bytes_give_links_in_order(data: bytes) -> None:
    found = walked(data)
    assert all(0 <= stream.begin < stream.end <= len(data) for stream in found)
    assert all(one.end <= other.begin or one.begin == other.begin for one, other in pairwise(found))
    assert sum(stream.packets for stream in found) <= len(data)
