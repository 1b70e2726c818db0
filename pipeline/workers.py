"""What is asked of every worker before it is given work: the same code, the same libraries, the same files."""

import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from upath import UPath

from pipeline.errors import UsageError
from pipeline.executors import THIS_PROCESS, Executor
from pipeline.schema import Layout, write_atomically
from pipeline.shipping import REMEDY, code_digest, versions

MOST_TRIED: Final = 16


@dataclass(frozen=True)
class Sight:
    """What a process is and what it can reach; `trouble` is empty where it reaches all that it needs."""

    code: str
    versions: Mapping[str, str]
    trouble: str


def look(out: str, secret: str, recording: str | None) -> Sight:
    """Say what this process is, and try to read `recording` and to write the output folder `out`.

    `secret` is in the file that the driver wrote there: a folder of the same name on another disk does not have it.
    """
    try:
        trouble = _trouble(Layout.at(out), secret, recording)
    except UsageError as error:
        trouble = str(error)
    return Sight(code_digest(), versions(), trouble)


def _trouble(layout: Layout, secret: str, recording: str | None) -> str:
    shared = _access_file(layout, secret)
    try:
        if not shared.exists():
            return f"does not see the files in {layout.root}; workers and driver must share it under one name"
        mine = shared.with_name(f"{shared.name}-{uuid.uuid4().hex}")
        write_atomically(mine, b"")
        mine.unlink()
    except OSError as error:
        return f"cannot write to {layout.root}: {error.strerror or error}"
    return "" if recording is None else _unreadable(recording)


def _unreadable(recording: str) -> str:
    try:
        with UPath(recording).open("rb") as file:
            file.read(1)
    except OSError as error:
        return f"cannot read {recording}: {error.strerror or error}"
    return ""


def _access_file(layout: Layout, secret: str) -> UPath:
    return layout.root / f".access-{secret}"


def check(executor: Executor, layout: Layout, recordings: Iterable[str] = ()) -> None:
    """Ask every worker whether it can do the work; raises UsageError that names one that cannot.

    A worker must be able to read the first of `recordings` that the driver can read: others may be damaged.
    """
    recording = next((uri for uri in islice(recordings, MOST_TRIED) if not _unreadable(uri)), None)
    secret = f"{os.getpid()}-{uuid.uuid4().hex}"
    shared = _access_file(layout, secret)
    write_atomically(shared, b"")
    try:
        sights = executor.on_each_worker(partial(look, str(layout.root), secret, recording))
    finally:
        shared.unlink()
    mine = look(str(layout.root), secret, None)
    for worker, sight in sights.items():
        complaint = _complaint(sight, mine)
        if complaint:
            raise UsageError(f"{'' if worker == THIS_PROCESS else 'worker '}{worker} {complaint}")


def _complaint(sight: Sight | BaseException, mine: Sight) -> str:
    if isinstance(sight, BaseException):
        # Dask tells of what it could not unpickle as text
        missing = re.search(r"No module named '([^']+)'", str(sight))
        if missing:
            return f"has no package {missing[1]}; {REMEDY}"
        return f"cannot be asked what it is: {type(sight).__name__}: {sight}"
    for name, version in mine.versions.items():
        if sight.versions[name] != version:
            return f"has {name} {sight.versions[name]}, the driver {version}; install the same"
    if sight.code != mine.code:
        return f"runs other code of this project (digest {sight.code}, the driver's is {mine.code}); install the same"
    return sight.trouble
