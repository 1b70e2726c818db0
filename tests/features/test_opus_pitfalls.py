"""Damaged Opus files of which libsndfile returns samples that it never decoded: only decoded ones are used."""

import ctypes
import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from pipeline.features.audio import AudioError, Blocks, read_blocks
from pipeline.features.audio_source import AudioSource
from pipeline.features.opus_pitfalls import CONTINUED, END, Page, crc32, first_pitfall, valid_pages
from tests.conftest import noise

RATE_HZ = 16_000
M_PERTURB = -6
"""Of mallopt: the pattern that new and freed memory is filled with."""


def encoded(subtype: str, seconds: float = 5.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(subtype, round(seconds * RATE_HZ)), RATE_HZ, format="OGG", subtype=subtype)
    return file.getvalue()


OPUS = encoded("OPUS")


def pages(data: bytes) -> list[Page]:
    return list(valid_pages(io.BytesIO(data)))


def written(page: Page) -> bytes:
    """A page with the right checksum."""
    head = struct.pack("<4sBBQIII", b"OggS", 0, page.flags, page.granule, page.serial, page.number, 0)
    data = bytearray(head + bytes([len(page.table)]) + page.table + page.body)
    struct.pack_into("<I", data, 22, crc32(bytes(data)))
    return bytes(data)


def joined(found: list[Page]) -> bytes:
    return b"".join(map(written, found))


def behind_a_hole(**changes: int) -> bytes:
    """Opus without the page before the last one, which `changes` alter."""
    found = pages(OPUS)
    return joined([*found[:-2], found[-1]._replace(**changes)])


@pytest.fixture(params=[0x55, 0xAA], ids=["one pattern", "another"])
def filled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Memory that is allocated holds a pattern."""
    set_option = ctypes.CDLL(None).mallopt
    set_option(M_PERTURB, request.param)
    yield
    set_option(M_PERTURB, 0)


@pytest.mark.parametrize("data", [OPUS, encoded("VORBIS"), encoded("OPUS", 0.1)], ids=["opus", "vorbis", "short"])
def test_all_pages_of_a_sound_file_are_valid_and_none_is_a_pitfall(data: bytes) -> None:
    assert joined(pages(data)) == data
    file = io.BytesIO(data)
    file.seek(17)
    assert first_pitfall(file) is None
    assert file.tell() == 17


def test_pages_are_found_behind_junk_and_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.features.opus_pitfalls.MAX_PAGE_BYTES", 9000)
    monkeypatch.setattr("pipeline.features.opus_pitfalls.BLOCK_BYTES", 9001)
    data = b"OggS" + bytes(20_000) + OPUS[:-1] + b"?" + bytes(9000) + OPUS + OPUS[:5000]
    assert joined(pages(data)) == joined([*pages(OPUS)[:-1], *pages(OPUS), *pages(OPUS[:5000])])


def decode(folder: Path, data: bytes) -> tuple[NDArray[np.float32], Blocks]:
    path = folder / "x.opus"
    path.write_bytes(data)
    blocks = read_blocks(AudioSource(str(path)), RATE_HZ)
    return np.concatenate(list(blocks)), blocks


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("granule", [0, 100, 5000])
def test_an_end_that_is_before_its_beginning_is_left_out(tmp_path: Path, granule: int) -> None:
    data = behind_a_hole(granule=granule)
    assert first_pitfall(io.BytesIO(data)) == len(joined(pages(OPUS)[:-2]))
    found, blocks = decode(tmp_path, data)
    whole, _ = decode(tmp_path, OPUS)
    np.testing.assert_array_equal(found, whole[: len(found)])
    seconds = len(found) / RATE_HZ
    assert 2 < seconds < 5
    assert blocks.loss.startswith(f"damaged at {seconds:.3f} s: a page of Opus is missing or damaged")


@pytest.mark.usefixtures("filled")
def test_an_end_far_before_the_positions_of_earlier_pages_is_left_out(tmp_path: Path) -> None:
    found = pages(OPUS)
    audio = [page._replace(granule=page.granule + 2**40 + 2**31) for page in found[2:-1]]
    data = joined([*found[:2], *audio, found[-1]._replace(granule=2**40)])
    assert first_pitfall(io.BytesIO(data)) == len(data) - len(written(found[-1]))
    assert "damaged at " in decode(tmp_path, data)[1].loss


def test_a_page_behind_a_hole_in_which_no_packet_ends_is_left_out(tmp_path: Path) -> None:
    found = pages(OPUS)
    part = Page(0, CONTINUED, 2**64 - 1, found[-1].serial, found[-2].number + 9, b"\xff\xff", bytes(510))
    data = joined([*found[:-1], part, found[-1]._replace(number=part.number + 1)])
    assert first_pitfall(io.BytesIO(data)) == len(joined(found[:-1]))


def test_an_end_behind_a_hole_that_is_after_its_beginning_is_kept(tmp_path: Path) -> None:
    data = behind_a_hole()
    assert first_pitfall(io.BytesIO(data)) is None
    assert decode(tmp_path, data)[1].loss.startswith("ends at ")


def test_a_first_page_of_sound_that_is_such_an_end_leaves_nothing(tmp_path: Path) -> None:
    found = pages(OPUS)
    end = found[2]._replace(flags=END, granule=100, number=found[2].number + 1)
    data = joined([*found[:2], end])
    assert first_pitfall(io.BytesIO(data)) == len(joined(found[:2]))
    with pytest.raises(AudioError, match=r"damaged at 0\.000 s: a page of Opus is missing or damaged"):
        decode(tmp_path, data)
