"""Archives of networks: equal content is equal bytes, and no damage is read as content."""

import io
import json
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import archive
from model.archive import DamagedArchiveError, pack, unpack

MEMBERS = {"config.json": b"{}", "model.weights.h5": b"\x00weights", "labels.json": '["čeština"]'.encode()}


def _of_another_program(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def test_an_archive_has_what_was_packed_and_is_a_function_of_it() -> None:
    content = pack(MEMBERS)
    assert unpack(content) == MEMBERS
    assert list(unpack(content)) == list(MEMBERS)
    assert pack(dict(MEMBERS)) == content
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert {name: file.read(name) for name in file.namelist()} == MEMBERS


def test_every_flipped_bit_is_found() -> None:
    content = pack(MEMBERS)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedArchiveError):
            unpack(bytes(flipped))


@given(st.data())
def test_a_part_of_an_archive_and_other_content_are_damaged(data: st.DataObject) -> None:
    content = pack(MEMBERS)
    damaged = data.draw(st.one_of(
        st.integers(0, len(content) - 1).map(lambda length: content[:length]), st.binary(),
        st.integers(0, len(content) - 1).map(lambda length: content[:length] + bytes(len(content) - length)),
    ))  # fmt: skip
    with pytest.raises(DamagedArchiveError):
        unpack(damaged)


def test_an_archive_of_another_program_is_checked_by_its_checksums() -> None:
    members = {name: content for name, content in MEMBERS.items() if name not in archive.ADDED}
    content = _of_another_program(members)
    assert unpack(content) == members
    for damaged in (content.replace(b"weights", b"Weights"), content.replace(b"\x00weights", b"\x01weights"),
                    content[:-30]):  # fmt: skip
        with pytest.raises(DamagedArchiveError):
            unpack(damaged)


def test_an_archive_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(DamagedArchiveError):
        unpack(_of_another_program({"model.weights.h5": bytes(10**6)}, zipfile.ZIP_DEFLATED))


def test_dates_and_addresses_are_left_out() -> None:
    def config(*numbers: int | None) -> bytes:
        kinds = ("DTypePolicy", "DTypePolicy", "Zeros", "Dense", "Ones", "Dense")
        parts = [
            {"class_name": kind, **({} if number is None else {"shared_object_id": number})}
            for kind, number in zip(kinds, numbers, strict=True)
        ]
        return json.dumps({"layers": parts[:3], "more": [parts[3:]]}).encode()

    saved = {"metadata.json": b'{"keras_version": "3", "date_saved": "2026-01-01@00:00:00"}',
             "config.json": config(140600946796624, 140600946796624, 17, 99, 18, 99)}  # fmt: skip
    assert archive.reproducible(saved) == {
        "metadata.json": b'{"keras_version": "3"}', "config.json": config(None, None, None, 0, None, 0),
    }  # fmt: skip
