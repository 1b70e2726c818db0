"""Writing files at a path or URL: readers see each whole or not at all, and it survives a power cut."""

import errno
import io
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import IO, Final, Self

import pandas as pd
import pyarrow as pa
from pyarrow import parquet
from upath import UPath

from pipeline.object_stores import find_store
from pipeline.storage import file_state, is_local

PARTIAL: Final = ".partial"
"""Suffix of a file that is being written; zarr has the same for its own."""

ABANDONED_S: Final = 3600.0
"""A half-written file of another machine to which nothing was written for so long has no writer any more."""

NO_FOLDER_SYNC: Final = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)
"""Errors of file systems that cannot sync a folder, and of folders that this user may not open."""

Files = Mapping[UPath, Sequence[bytes | memoryview]]
"""The content of each file, in parts."""


def write_atomically(path: UPath, *parts: bytes | memoryview) -> None:
    """Write `parts`, one after the other, to a file that readers see either whole or not at all; create its folder.

    When this returns, the file survives a power cut.
    """
    Unnamed.write({path: parts}).commit()


@dataclass(frozen=True)
class Unnamed:
    """Local files that are written, but have their names only after `commit`; and folders that got new folders."""

    partials: Mapping[UPath, UPath]
    grown: frozenset[UPath] = frozenset()

    @classmethod
    def write(cls, files: Files) -> Self:
        """Write the files in their order, each part after part; create their folders.

        Files at URLs get their names now.
        """
        partials: dict[UPath, UPath] = {}
        grown: set[UPath] = set()
        for path, parts in files.items():
            with _removing(path, partials.values()):
                grown.update(_create_parent(path))
                if not is_local(path):  # object stores show an object only when it is complete
                    path.write_bytes(b"".join(parts))
                    continue
                partials[path] = partial_path(path)
                with partials[path].open("wb") as file:
                    file.writelines(parts)
        return cls(partials, frozenset(grown))

    def commit(self) -> None:
        """Give the files their names, when the content of all is on the disk; they survive a power cut afterwards.

        The last file gets its name when the others have theirs on the disk: it may vouch for them. Syncs that come at
        the same time are one write to the journal of a file system.
        """
        if not self.partials:
            return
        *others, last = self.partials
        with ThreadPoolExecutor(len(self.partials), "sync") as pool:
            synced = [pool.submit(_sync, partial) for partial in self.partials.values()]
            for path, done in zip(self.partials, synced, strict=True):
                with _removing(path, self.partials.values()):
                    done.result()
            for path in others:
                self._name(path)
            list(pool.map(sync_folder, self.grown.union(path.parent for path in others)))
            self._name(last)
            sync_folder(last.parent)

    def _name(self, path: UPath) -> None:
        with _removing(path, self.partials.values()):
            self.partials[path].replace(path)


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


@contextmanager
def replacing(path: UPath) -> Iterator[IO[bytes]]:
    """Yield a file to write that replaces `path` when the block ends without an error; create its folder.

    It can be read, too. For files that are too large to be held in memory. Afterwards the file survives a power cut.
    """
    make_parent(path)
    if not is_local(path):
        with tempfile.TemporaryFile() as scratch:
            yield scratch
            scratch.seek(0)
            with path.open("wb") as remote:
                shutil.copyfileobj(scratch, remote)
        return
    unnamed = Unnamed({path: partial_path(path)})
    with _removing(path, unnamed.partials.values()), unnamed.partials[path].open("w+b") as file:
        yield file
    unnamed.commit()


@contextmanager
def scratch_folder(root: UPath) -> Iterator[Path]:
    """Yield a new folder for temporary files, which is removed at the end.

    It lies below `root`, where there is room for what grows with the data, unless that is not local or cannot be
    written. What a killed process left there is deleted by `clear_partial_files`.
    """
    inside = Path(str(partial_path(root / f"scratch-{uuid.uuid4().hex}")))
    if is_local(root) and _is_created(inside):
        try:
            yield inside
        finally:
            shutil.rmtree(inside, ignore_errors=True)
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            yield Path(folder)


def _is_created(folder: Path) -> bool:
    """Create a folder; return whether that was possible."""
    try:
        folder.mkdir()
    except OSError:
        return False
    return True


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
    """Create the folder of a file; it survives a power cut."""
    for folder in _create_parent(path):
        sync_folder(folder)


def _create_parent(path: UPath) -> list[UPath]:
    """Create the folder of a file, and those above it; return the folders that got new ones.

    An object store has no folders, and its package would create the bucket.
    """
    if find_store(str(path)) is not None:
        return []
    missing = list(takewhile(lambda folder: not folder.exists(), path.parents))
    path.parent.mkdir(parents=True, exist_ok=True)
    return [folder.parent for folder in missing]


def partial_path(path: UPath) -> UPath:
    """Return where this process writes `path` until it is complete; other processes write it elsewhere."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")


def partial_files(folder: UPath, *, deep: bool = False) -> Iterator[UPath]:
    """Yield the half-written files in a local folder, and in those below it if `deep`; none if there is no folder.

    A folder is read in parts: memory does not grow with its files.
    """
    try:
        with os.scandir(str(folder)) as entries:
            for entry in entries:
                if entry.name.endswith(PARTIAL):
                    yield folder / entry.name
                elif deep and entry.is_dir(follow_symlinks=False):
                    yield from partial_files(folder / entry.name, deep=True)
    except FileNotFoundError:
        return


def clear_partial_files(paths: Iterable[UPath]) -> None:
    """Delete those of `paths`, files or folders, that killed processes left: of this machine, and old ones of others.

    Call it while this process writes none of them: a file of its own process number is that of a killed process, too.
    """
    for path in paths:
        if path.name.endswith(PARTIAL) and _is_abandoned(path):
            if path.is_dir():
                shutil.rmtree(str(path), ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_abandoned(partial: UPath) -> bool:
    """Whether the process that wrote a half-written file has ended."""
    writer, _, process = partial.name.removesuffix(PARTIAL).rpartition(".")
    if writer.endswith(f".{socket.gethostname()}") and process.isdecimal():
        return int(process) == os.getpid() or not process_runs(int(process))
    state = file_state(str(partial))
    return state is not None and time.time() - state.modified_ns / 1e9 > ABANDONED_S


def process_runs(number: int) -> bool:
    """Whether a process of this number runs on this machine.

    A thread has a number of the same kind, and a process that has ended keeps its number until its parent asks for its
    exit code: neither runs.
    """
    import psutil  # noqa: PLC0415 most commands find nothing that another process has left

    try:
        os.kill(number, 0)
        return bool(psutil.pid_exists(number)) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
    except PermissionError:
        return True  # of another user


def write_parquet_groups(path: UPath, groups: Iterable[pd.DataFrame]) -> None:
    """Write a table atomically, without its index: each of its parts, of which there is at least one, a row group.

    Raises ValueError if there is no part.
    """
    parts = (pa.Table.from_pandas(group, preserve_index=False, nthreads=1) for group in groups)
    first = next(parts, None)
    if first is None:
        raise ValueError(f"{path}: a table without parts has no columns")
    with replacing(path) as file, parquet.ParquetWriter(file, first.schema) as writer:
        for part in chain([first], parts):
            writer.write_table(part, len(part))


def write_parquet(path: UPath, table: pd.DataFrame, rows_per_group: int | None = None) -> None:
    """Write a table atomically, without its index, in row groups of so many rows (by default those of pyarrow)."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, row_group_size=rows_per_group)
    write_atomically(path, buffer.getvalue())
