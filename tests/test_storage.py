"""Files: what is written is what is read, damage is named, and nothing half-written stays."""

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel
from upath import UPath

from pipeline import durable_files, storage
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from tests.support.manifests import read_table

TABLE = pd.DataFrame({
    "text": pd.array(["ä", None, "<script>"], dtype="string"),
    "count": [2**40, 0, -1],
    "seconds": [0.1, float("nan"), 1e300],
})  # fmt: skip


def test_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "sub" / "table.parquet"))
    durable_files.write_parquet(path, TABLE)
    pd.testing.assert_frame_equal(read_table(path), TABLE)


def test_index_is_not_written(tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "table.parquet"))
    durable_files.write_parquet(path, TABLE.set_index(pd.Index([7, 8, 9])))
    assert list(read_table(path).columns) == list(TABLE.columns)
    assert list(read_table(path).index) == [0, 1, 2]


def test_table_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "table.parquet"))
    durable_files.write_parquet(path, TABLE)
    durable_files.write_parquet(path, TABLE[:1])
    assert len(read_table(path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]


def test_table_behind_a_url(memory_url: str) -> None:
    path = UPath(f"{memory_url}/table.parquet")
    durable_files.write_parquet(path, TABLE)
    pd.testing.assert_frame_equal(read_table(path), TABLE)


class Typed(BaseModel):
    """A file with one number."""

    number: int


def test_typed_file_comes_back(tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "typed.json"))
    durable_files.write_atomically(path, Typed(number=7).model_dump_json().encode())
    assert storage.read_json(path, Typed, "") == Typed(number=7)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Invalid JSON: EOF while parsing"),
        (b'{"number": "many"}', r"number: Input should be a valid integer"),
        (b"{}", "number: Field required"),
        (b'{"number": "\xff"}', "Invalid JSON"),
    ],
)
def test_damaged_file_is_one_line_with_a_remedy(tmp_path: Path, content: bytes, why: str) -> None:
    path = UPath(str(tmp_path / "typed.json"))
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=rf"^\S+typed\.json is damaged \({why}.*\); write it by hand$"):
        storage.read_json(path, Typed, "write it by hand")


KILLED = """
import os, sys
from upath import UPath
from pipeline import durable_files, storage

UPath.replace = lambda *_: os._exit(9)
durable_files.write_atomically(UPath(sys.argv[1]), b"half")
"""


def test_files_that_a_killed_process_left_are_cleared_and_those_of_others_stay(tmp_path: Path) -> None:
    output, host = OutputFolder.at(str(tmp_path)), socket.gethostname()
    places = [output.run, output.metrics("lstm"), output.model("lstm") / "checkpoints" / "a.keras", output.decisions]
    code = KILLED.replace("UPath.replace", "type(UPath(sys.argv[1])).replace")
    for path in places:
        assert subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60).returncode == 9
    left = {path.name for path in tmp_path.rglob("*.partial")}
    assert len(left) == len(places)
    (ended,) = {name.removeprefix(".run.json") for name in left if name.startswith(".run.json")}
    further = (output.shard_record(0), output.store / "zarr.json", output.store / "valid" / "zarr.json",
               output.compacted.complete, output.compacted.shard_record(0))  # fmt: skip
    for path in further:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}{ended}").touch()
    others = [f".run.json.{host}.{os.getppid()}.partial", ".run.json.elsewhere.1.partial", ".run.json.7.partial"]
    own = [f".run.json.{host}.{os.getpid()}.partial"]
    for name in (*others, *own, "run.json", "notes.partial.txt"):
        (tmp_path / name).touch()
    output.clear_partial_files()
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {*others, "run.json", "notes.partial.txt"}


def test_neither_a_thread_nor_a_process_that_has_ended_runs() -> None:
    assert durable_files.process_runs(os.getpid())
    assert durable_files.process_runs(os.getppid())
    with ThreadPoolExecutor(1) as pool:
        assert not durable_files.process_runs(pool.submit(threading.get_native_id).result())
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its number stays taken
        assert not durable_files.process_runs(child.pid)
    assert not durable_files.process_runs(child.pid)


def test_nothing_is_cleared_behind_a_url(memory_url: str) -> None:
    OutputFolder.at(memory_url).clear_partial_files()


def test_state_of_a_file_changes_with_its_size_and_its_time(tmp_path: Path, memory_url: str) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"abc")
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    assert storage.file_state(str(path)) == (3, 1_700_000_000_123_456_789)
    assert storage.file_state(path.as_uri()) == pytest.approx((3, 1_700_000_000_123_456_789), abs=1000)
    there = UPath(f"{memory_url}/x.wav")
    there.write_bytes(b"abcd")
    state = storage.file_state(str(there))
    assert state is not None
    assert state.size_bytes == 4
    assert state.modified_ns > 1_700_000_000_000_000_000


@pytest.mark.parametrize("uri", ["/none/x.wav", "memory://none/x.wav", "nothing://x"])
def test_file_that_cannot_be_reached_has_no_state(uri: str) -> None:
    assert storage.file_state(uri) is None
    assert not storage.can_be_read(uri)


def test_folder_cannot_be_read_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.wav").touch()
    assert storage.can_be_read(str(tmp_path / "x.wav"))
    assert not storage.can_be_read(str(tmp_path))


@pytest.mark.parametrize(
    ("info", "modified_ns"),
    [
        ({"mtime": 12.5}, 12_500_000_000),
        ({"LastModified": datetime(1970, 1, 2, tzinfo=UTC)}, 86_400_000_000_000),
        ({"updated": "1970-01-02T00:00:00.000Z"}, 86_400_000_000_000),
        ({"size": 3}, 0),
    ],
)
def test_time_of_a_file_is_found_under_the_names_of_all_file_systems(info: dict[str, Any], modified_ns: int) -> None:
    assert storage.modified_ns(info) == modified_ns
