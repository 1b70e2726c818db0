"""The file of the digests of shard records: written as xxhsum reads it, and read in spite of damage."""

import re
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.outputs import OutputFolder
from pipeline.store import record_digests
from pipeline.store.record_digests import RecordDigests

SHARDS = 9
LINES = b"".join(f"{xxhash.xxh3_128_hexdigest(b'%d' % i)}  {i:08d}.json\n".encode() for i in range(SHARDS))


def listed(found: RecordDigests) -> dict[int, str]:
    return {i: found.digest[i].tobytes().hex() for i in np.flatnonzero(found.listed).tolist()}


def by_pattern(content: bytes) -> dict[int, str]:
    """Return what the content of a file lists, as one pattern over all of it finds."""
    found = re.findall(rb"^([0-9a-f]{32})  (\d{8,18})\.json$", content, re.MULTILINE)
    return {int(index): digest.decode() for digest, index in found}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> OutputFolder:
    made = OutputFolder.at(str(tmp_path_factory.mktemp("out")))
    made.shards.mkdir()
    return made


def read(output: OutputFolder, content: bytes, block_bytes: int) -> dict[int, str]:
    output.shard_digests.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_digests, "BLOCK_BYTES", block_bytes)
        return listed(record_digests.read(output, SHARDS))


@given(damage=st.lists(st.tuples(st.integers(0, len(LINES) - 1), st.binary(max_size=3)), max_size=4),
       block_bytes=st.integers(60, 200))  # fmt: skip
def test_damaged_lines_are_left_out(damage: list[tuple[int, bytes]], block_bytes: int, output: OutputFolder) -> None:
    content = LINES
    for place, other in damage:
        content = content[:place] + other + content[place + 1 :]
    expected = {index: digest for index, digest in by_pattern(content).items() if index < SHARDS}
    assert read(output, content, block_bytes) == expected


def test_last_of_several_lines_counts(output: OutputFolder) -> None:
    first, second = LINES.splitlines(keepends=True)[:2]
    again = second[:32] + first[32:]
    assert read(output, first + again, 1000) == {0: second[:32].decode()}


def test_line_without_an_end_takes_no_memory_and_hides_no_other(output: OutputFolder) -> None:
    endless = b"0" * 1000 + LINES[:48]
    assert read(output, endless + LINES[48:], 100) == by_pattern(LINES[48:])
    assert read(output, endless.rstrip(b"\n"), 100) == {}


def test_no_file_lists_nothing(tmp_path: Path) -> None:
    assert not record_digests.read(OutputFolder.at(str(tmp_path)), SHARDS).listed.any()


@pytest.mark.parametrize("lines", [1, 4, 2**14])
def test_file_is_written_as_it_was_read(lines: int, output: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_digests, "LINES_AT_ONCE", lines)
    output.shard_digests.write_bytes(LINES)
    found = record_digests.read(output, SHARDS)
    output.shard_digests.unlink()
    record_digests.write(output, found)
    assert output.shard_digests.read_bytes() == LINES
    assert record_digests.content_digest(found) == xxhash.xxh3_128_hexdigest(LINES)


@given(shards=st.sets(st.integers(0, SHARDS + 2)))
def test_released_lines_are_removed(shards: set[int], output: OutputFolder) -> None:
    output.shard_digests.write_bytes(LINES)
    record_digests.release(output, np.array(sorted(shards), np.int64))
    kept = [line for i, line in enumerate(LINES.splitlines(keepends=True)) if i not in shards]
    assert output.shard_digests.read_bytes() == b"".join(kept)


def test_releasing_no_listed_shard_writes_nothing(output: OutputFolder) -> None:
    output.shard_digests.write_bytes(b"damaged\n" + LINES)
    record_digests.release(output, np.array([SHARDS]))
    assert output.shard_digests.read_bytes() == b"damaged\n" + LINES
