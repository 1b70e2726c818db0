"""Reading and writing files at a path or URL: atomic, durable writes, typed JSON, and Parquet tables."""

import errno
import io
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Self, TypeVar

import pandas as pd
import pyarrow as pa
import xxhash
from fsspec import get_filesystem_class
from pyarrow import parquet
from pydantic import BaseModel, ValidationError
from upath import UPath
from upath.implementations.local import PosixUPath, WindowsUPath

from pipeline.digests import bytes_digest
from pipeline.errors import PipelineError, UsageError, in_one_line
from pipeline.object_stores import check_bucket, failure, file_errors, find_store

Model = TypeVar("Model", bound=BaseModel)

PARTIAL: Final = ".partial"
"""Suffix of a file that is being written; zarr has the same for its own."""

ABANDONED_S: Final = 3600.0
"""A half-written file of another machine to which nothing was written for so long has no writer any more."""

NO_FOLDER_SYNC: Final = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)
"""Errors of file systems that cannot sync a folder, and of folders that this user may not open."""
BACKUP: Final = "restore it from a backup"
"""The remedy for a damaged file that cannot be made again from others."""

BLOCK_BYTES: Final = 2**20
"""A file is read in blocks of this size to compute its digest: smaller ones take more time."""

REMOTE_READERS: Final = 16
"""Files behind a URL that are read at the same time: each of them takes as long as the server needs to answer."""

MODIFIED_KEYS: Final = ("mtime", "LastModified", "last_modified", "updated", "created")
"""Where fsspec's file systems have the time of the last change."""


def folder_at(uri: str) -> UPath:
    """Return the folder that a path or URL names; ~ is the home folder, and file:// and local:// are paths.

    Raises UsageError for a URL that no installed package opens or that names no bucket, and for a home folder that
    does not exist.
    """
    place = os.path.expanduser(uri)  # noqa: PTH111 of a str
    if place.startswith("~"):
        raise UsageError(f"{uri}: there is no such home folder; write ./{uri} for a folder of that name")
    check_bucket(uri)
    try:
        path = UPath(place)
        if path.protocol in ("file", "local"):
            path = UPath(path.path)
        if find_store(uri):
            _ = path.fs  # loads the package, which reads its settings
        elif not is_local(path):
            get_filesystem_class(path.protocol)
        return path.absolute()
    except file_errors(ImportError, ValueError) as error:
        raise failure(f"{uri} cannot be opened", uri, error) from None


@contextmanager
def reaching(folder: UPath, name: str) -> Iterator[None]:
    """Raise an error of the file system that holds `folder` as a PipelineError of one line, with the remedy.

    `name` is that of the argument, such as "--out".
    """
    try:
        yield
    except file_errors() as error:
        raise failure(f"{name} {folder} cannot be used", str(folder), error) from None


def nearest_existing(path: Path) -> Path:
    """Return an absolute path if it exists, or else the nearest folder above it that does."""
    return next(place for place in (path, *path.parents) if os.path.exists(place))  # noqa: PTH110 Path may raise


def is_local(path: UPath) -> bool:
    """Whether `path` is on a file system of this machine."""
    return isinstance(path, PosixUPath | WindowsUPath)


class FileState(NamedTuple):
    """Size and time of the last change of a file: bytes, and ns since 1970, 0 where its file system has no times."""

    size_bytes: int
    modified_ns: int


def file_state(uri: str) -> FileState | None:
    """Return the state of the file at a path or URL, None if it cannot be reached."""
    try:
        if uri.startswith(os.sep):
            found = Path(uri).stat()
            return FileState(found.st_size, found.st_mtime_ns)
        path = UPath(uri)
        info = path.fs.info(path.path)
        return FileState(int(info["size"]), modified_ns(info))
    except file_errors(ImportError, ValueError):
        return None


def modified_ns(info: Mapping[str, Any]) -> int:
    """Return the time of the last change, in ns since 1970, from what fsspec knows of a file; 0 if it has none."""
    found = next((info[key] for key in MODIFIED_KEYS if info.get(key) is not None), 0)
    if isinstance(found, int | float):
        return round(found * 1e9)
    return int(pd.Timestamp(found).value)


def can_be_read(uri: str) -> bool:
    """Whether the file at a path or URL can be opened and its beginning read."""
    try:
        with UPath(uri).open("rb") as file:
            file.read(1)
    except file_errors(ImportError, ValueError):
        return False
    return True


class FileDigest(NamedTuple):
    """The xxh3_128 of a file's content, 32 hexadecimal digits, and its size."""

    digest: str
    size_bytes: int


def file_digest(path: UPath) -> FileDigest | None:
    """Return the digest of a file, which is read in blocks, or None if there is no such file."""
    try:
        if not is_local(path):
            content = path.read_bytes()
            return FileDigest(bytes_digest([content]), len(content))
        with Path(str(path)).open("rb", buffering=0) as file:
            state, block = (
                xxhash.xxh3_128(),
                memoryview(bytearray(min(BLOCK_BYTES, os.fstat(file.fileno()).st_size + 1))),
            )
            while size := file.readinto(block):
                state.update(block[:size])
            return FileDigest(state.hexdigest(), file.tell())
    except FileNotFoundError:
        return None


def file_digests(paths: Iterable[UPath], *, local: bool) -> Iterator[FileDigest | None]:
    """Yield the digest of each file in the order of `paths`, of files behind a URL several at the same time."""
    if local:
        yield from map(file_digest, paths)
        return
    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        yield from pool.map(file_digest, paths)


def write_atomically(path: UPath, *parts: bytes | memoryview) -> None:
    """Write `parts`, one after the other, to a file that readers see either whole or not at all; create its folder.

    When this returns, the file survives a power cut.
    """
    Unnamed.write({path: parts}).commit()


@dataclass(frozen=True)
class Unnamed:
    """Local files that are written, but have their names only after `commit`, and the size of all files in bytes."""

    partials: Mapping[UPath, UPath]
    size_bytes: int

    @classmethod
    def write(cls, files: Mapping[UPath, Sequence[bytes | memoryview]]) -> Self:
        """Write the parts of each file, one after the other; create the folders. Files at URLs get their names now."""
        partials: dict[UPath, UPath] = {}
        for path, parts in files.items():
            with _removing(path, partials.values()):
                make_parent(path)
                if not is_local(path):  # object stores show an object only when it is complete
                    path.write_bytes(b"".join(parts))
                    continue
                partials[path] = partial_path(path)
                with partials[path].open("wb") as file:
                    file.writelines(parts)
        return cls(partials, sum(len(part) for parts in files.values() for part in parts))

    def commit(self) -> None:
        """Give the files their names, when the content of all is on the disk; they survive a power cut afterwards.

        Syncs that come at the same time are one write to the journal of a file system.
        """
        if not self.partials:
            return
        with ThreadPoolExecutor(len(self.partials), "sync") as pool:
            synced = [pool.submit(_sync, partial) for partial in self.partials.values()]
            for path, done in zip(self.partials, synced, strict=True):
                with _removing(path, self.partials.values()):
                    done.result()
            for path, partial in self.partials.items():
                with _removing(path, self.partials.values()):
                    partial.replace(path)
            list(pool.map(sync_folder, {path.parent for path in self.partials}))


@contextmanager
def _removing(path: UPath, partials: Iterable[UPath]) -> Iterator[None]:
    """Remove the half-written files `partials` if writing `path` fails."""
    try:
        yield
    except BaseException as error:
        for partial in partials:
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and is_local(path):
            error.filename = str(path)  # the error of a full disk names no file
        raise


def bytes_or_none(path: UPath) -> bytes | None:
    """Return the content of a file, or None if there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


@contextmanager
def replacing(path: UPath) -> Iterator[BinaryIO]:
    """Yield a file to write that replaces `path` when the block ends without an error; create its folder.

    For files that are too large to be held in memory. Afterwards the file survives a power cut.
    """
    make_parent(path)
    if not is_local(path):
        with tempfile.TemporaryFile() as scratch:
            yield scratch
            scratch.seek(0)
            with path.open("wb") as remote:
                shutil.copyfileobj(scratch, remote)
        return
    unnamed = Unnamed({path: partial_path(path)}, 0)
    with _removing(path, unnamed.partials.values()), unnamed.partials[path].open("wb") as file:
        yield file
    unnamed.commit()


def sync_folder(folder: UPath) -> None:
    """Return when the names in a folder are on the disk: of files that were created, renamed or deleted there.

    Does nothing for a folder that does not exist or is not local, or whose file system has no such call.
    """
    try:
        if is_local(folder):
            _sync(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def _sync(path: UPath) -> None:
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_parent(path: UPath) -> None:
    """Create the folder of a file. An object store has no folders, and its package would create the bucket."""
    if find_store(str(path)) is None:
        missing = list(takewhile(lambda folder: not folder.exists(), path.parents))
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync_folder(folder.parent)


def partial_path(path: UPath) -> UPath:
    """Return where this process writes `path` until it is complete; other processes write it elsewhere."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")


def clear_partial_files(paths: Iterable[UPath]) -> None:
    """Delete those of `paths` that killed processes left half-written: of this machine, and old ones of others.

    Call it while this process writes none of them: a file of its own process number is that of a killed process, too.
    """
    for path in paths:
        if path.name.endswith(PARTIAL) and _is_abandoned(path):
            path.unlink(missing_ok=True)


def _is_abandoned(partial: UPath) -> bool:
    """Whether the process that wrote a half-written file has ended."""
    writer, _, process = partial.name.removesuffix(PARTIAL).rpartition(".")
    if writer.endswith(f".{socket.gethostname()}") and process.isdecimal():
        return int(process) == os.getpid() or not process_runs(int(process))
    state = file_state(str(partial))
    return state is not None and time.time() - state.modified_ns / 1e9 > ABANDONED_S


def process_runs(number: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def read_json(path: UPath, schema: type[Model], remedy: str) -> Model:
    """Read a JSON file as `schema`; raises PipelineError, with the remedy, for one that does not fit it."""
    content = path.read_bytes()
    with refusing_damage(path, remedy):
        return schema.model_validate_json(content)


@contextmanager
def refusing_damage(path: UPath, remedy: str) -> Iterator[None]:
    """Raise a ValidationError of the content of `path` as a PipelineError of one line, with the remedy."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise PipelineError(f"{path} is damaged ({key + ': ' if key else ''}{first['msg']}); {remedy}") from None


@contextmanager
def reading_table(path: UPath, remedy: str) -> Iterator[None]:
    """Raise what the content of the table `path` causes as a PipelineError of one line, with the remedy."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 damaged tables make pyarrow and pandas raise errors of many types
        raise PipelineError(f"{path} is damaged ({in_one_line(error)}); {remedy}") from None


def read_parquet(path: UPath, remedy: str = BACKUP) -> pd.DataFrame:
    """Read a table in this thread: pyarrow's threads can outlive Python's exit and abort it (Arrow issue 34314).

    Raises PipelineError, with the remedy, for a file that is damaged.
    """
    content = path.read_bytes()
    with reading_table(path, remedy):
        file = parquet.ParquetFile(pa.BufferReader(content), pre_buffer=False)
        table: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    return table


def read_csv(path: UPath, remedy: str) -> pd.DataFrame:
    """Read a table of numbers; raises PipelineError, with the remedy, for one that is damaged."""
    content = path.read_bytes()
    with reading_table(path, remedy):
        table = pd.read_csv(io.BytesIO(content))
        return table.astype({name: "float64" for name, kind in table.dtypes.items() if kind.kind not in "if"})


def write_parquet(path: UPath, table: pd.DataFrame) -> None:
    """Write a table atomically, without its index."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())
