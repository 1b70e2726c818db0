"""The files below a folder behind a URL, one folder after the other."""

from collections.abc import Generator
from functools import partial
from typing import Any

from upath import UPath

from pipeline.corpus.layouts.files import Entry, File, Folder, is_hidden
from pipeline.corpus.layouts.protocol import Hidden, LeftOut
from pipeline.corpus.layouts.traversal import THREADS, Found, Work, traverse
from pipeline.object_stores import cause_of
from pipeline.storage import modified_ns


def remote_files(root: UPath) -> Generator[Entry, None, None]:
    """Yield all that lies below a folder. Listings are not kept: object_stores sees to that."""
    fs = root.fs
    top = fs._strip_protocol(root.path).rstrip("/")
    threads = THREADS if fs.async_impl else 1  # others may not be made for threads
    return traverse([partial(_list, fs, top, top)], threads)


def _list(fs: Any, top: str, folder: str) -> Found[Entry]:
    """Return what lies in a folder, which is listed at once, and lead to the folders in it; `top` is the root."""
    below = _below(top, folder)
    found: list[Entry] = [Folder(below)] if below and "/" not in below else []
    try:
        infos = fs.ls(folder, detail=True)
    except (FileNotFoundError, PermissionError) as error:
        if not below:
            raise
        return Found([LeftOut(below, f"cannot be read: {cause_of(error)}")])
    further: list[Work[Entry]] = []
    for info in infos:
        place = info["name"].rstrip("/")
        path = _below(top, place)
        if place == folder:  # an object that stands for the folder
            continue
        if is_hidden(path.rpartition("/")[2]):
            found.append(Hidden(path))
        elif info["type"] == "directory":
            further.append(partial(_list, fs, top, place))
        else:
            known = info if info["size"] is not None else fs.info(info["name"])  # pages of web servers have no sizes
            found.append(File(path, int(known["size"]), modified_ns(known)))
    return Found(found, further)


def _below(top: str, place: str) -> str:
    return place.removeprefix(top).lstrip("/")
