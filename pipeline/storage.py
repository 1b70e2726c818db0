"""Files at a path or URL: their places, states and digests; and reading typed JSON and tables."""

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import pandas as pd
import xxhash
from pydantic import BaseModel, ValidationError
from upath import UPath
from upath.implementations.local import PosixUPath, WindowsUPath

from pipeline.digests import bytes_digest
from pipeline.errors import PipelineError, UsageError, in_one_line
from pipeline.object_stores import check_bucket, failure, file_errors, find_store

Model = TypeVar("Model", bound=BaseModel)

BACKUP: Final = "restore it from a backup"
"""The remedy for a damaged file that cannot be made again from others."""

BLOCK_BYTES: Final = 2**18
"""A file is read in blocks of this size to compute its digest: they stay in the processor's cache."""

REMOTE_READERS: Final = 16
"""Files behind a URL that are read at the same time: each of them takes as long as the server needs to answer."""

MODIFIED_KEYS: Final = ("mtime", "LastModified", "last_modified", "updated", "created")
"""Where fsspec's file systems have the time of the last change."""


def folder_at(uri: str) -> UPath:
    """Return the folder that a path or URL names; ~ is the home folder, and file:// and local:// are paths.

    Raises UsageError for a URL that no installed package opens, for one with a host but no bucket, and for a home
    folder that does not exist.
    """
    place = os.path.expanduser(uri)  # noqa: PTH111 of a str
    if place.startswith("~"):
        raise UsageError(f"{uri}: there is no such home folder; write ./{uri} for a folder of that name")
    check_bucket(uri)
    if found := re.fullmatch("(file|local)://(?:localhost/)?([^/].*)", place):
        raise UsageError(f"{uri}: the path of such a URL begins with a slash; write {found[1]}:///{found[2]}")
    try:
        path = UPath(place)
        if path.protocol in ("file", "local"):
            path = UPath(path.path)
        if path.storage_options and "::" not in place and not find_store(uri):
            raise UsageError(f"{uri} cannot be opened: no {path.protocol} server is supported; mount it as a folder")
        if not is_local(path):
            _ = path.fs  # loads the package, which reads its settings
        return path.absolute()
    except file_errors(ImportError, TypeError, ValueError) as error:  # some file systems need arguments beside the URL
        raise failure(f"{uri} cannot be opened", uri, error) from None


@contextmanager
def reaching(folder: UPath, name: str) -> Iterator[None]:
    """Raise an error of the file system that holds `folder` as a PipelineError of one line, with the remedy.

    `name` is that of the argument, such as "--out".
    """
    try:
        yield
    except file_errors(ValueError) as error:  # botocore's for an endpoint without a scheme
        file = str(getattr(error, "filename", None) or "")
        place = file if file.startswith(f"{folder}/") else folder
        raise failure(f"{name} {place} cannot be used", str(folder), error) from None


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
            if hasattr(os, "posix_fadvise"):  # makes the system read further ahead
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            state = xxhash.xxh3_128()
            block = memoryview(bytearray(min(BLOCK_BYTES, os.fstat(file.fileno()).st_size + 1)))
            while size := file.readinto(block):
                state.update(block[:size])
            return FileDigest(state.hexdigest(), file.tell())
    except FileNotFoundError:
        return None


def file_names(folder: UPath) -> Iterator[str]:
    """Yield the names in a folder, in any order; none if there is no such folder.

    The names in a local folder are read in parts: memory does not grow with their number.
    """
    if not is_local(folder):
        yield from (path.name for path in folder.iterdir()) if folder.exists() else ()
        return
    try:
        with os.scandir(str(folder)) as entries:
            yield from (entry.name for entry in entries)
    except FileNotFoundError:
        return


def file_contents(folder: UPath, names: Iterable[str]) -> Iterator[bytes | None]:
    """Yield the content of each of the files `names` in a folder, in their order; None for one that is not there.

    Behind a URL, all are requested at once and several are read at the same time, so `names` must be few.
    """
    if is_local(folder):
        place = str(folder)
        yield from (bytes_or_none(Path(place, name)) for name in names)
        return
    with ThreadPoolExecutor(REMOTE_READERS) as pool:
        yield from pool.map(bytes_or_none, [folder / name for name in names])


def bytes_or_none(path: UPath | Path) -> bytes | None:
    """Return the content of a file, or None if there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


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


def read_csv(path: UPath, remedy: str) -> pd.DataFrame:
    """Read a table of numbers; raises PipelineError, with the remedy, for one that is damaged."""
    content = path.read_bytes()
    with reading_table(path, remedy):
        table = pd.read_csv(io.BytesIO(content))
        return table.astype({name: "float64" for name, kind in table.dtypes.items() if kind.kind not in "if"})
