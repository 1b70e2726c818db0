"""A walk over a corpus folder, on this machine or behind a URL."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing

from upath import UPath

from pipeline.corpus.layouts import s3_files
from pipeline.corpus.layouts.files import Entry
from pipeline.corpus.layouts.local_files import local_files
from pipeline.corpus.layouts.remote_files import remote_files
from pipeline.object_stores import S3, find_store
from pipeline.storage import is_local


def walk(root: UPath) -> AbstractContextManager[Iterator[Entry]]:
    """Yield all that lies below the folder `root`, in any order, while the context lasts.

    Memory does not grow with the number of files below a local folder or one of S3. On other file systems it grows
    with the number of files that lie right in one folder.
    """
    if is_local(root):
        return closing(local_files(str(root)))
    return closing(s3_files.s3_files(root) if _is_s3(root) else remote_files(root))


def is_folder(root: UPath) -> bool:
    """Whether there is a folder at `root`."""
    return s3_files.is_folder(root) if _is_s3(root) else bool(root.is_dir())


def _is_s3(root: UPath) -> bool:
    return find_store(str(root)) is S3
