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
from pipeline.features.audio_source import AudioSource
from pipeline.outputs import OutputFolder
from pipeline.runtime.code_upload import REMEDY, code_digest, versions
from pipeline.runtime.executor import THIS_PROCESS, Executor
from pipeline.storage import write_atomically

MAX_TRIED: Final = 16


@dataclass(frozen=True)
class WorkerReport:
    """What a process is and what it can reach; `trouble` is empty where it reaches all that it needs."""

    code: str
    versions: Mapping[str, str]
    trouble: str


def look(out: str, secret: str, recording: AudioSource | None) -> WorkerReport:
    """Say what this process is, and try to read `recording` and to write the output folder `out`.

    `secret` is in the file that the driver wrote there: a folder of the same name on another disk does not have it.
    """
    try:
        trouble = _trouble(OutputFolder.at(out), secret, recording)
    except UsageError as error:
        trouble = str(error)
    return WorkerReport(code_digest(), versions(), trouble)


def _trouble(output: OutputFolder, secret: str, recording: AudioSource | None) -> str:
    shared = _access_file(output, secret)
    try:
        if not shared.exists():
            return f"does not see the files in {output.root}; workers and driver must share it under one name"
        mine = shared.with_name(f"{shared.name}-{uuid.uuid4().hex}")
        write_atomically(mine, b"")
        mine.unlink()
    except OSError as error:
        return f"cannot write to {output.root}: {error.strerror or error}"
    return "" if recording is None else _unreadable(recording)


def _unreadable(recording: AudioSource) -> str:
    try:
        with UPath(recording.container).open("rb") as file:
            file.read(1)
    except OSError as error:
        return f"cannot read {recording.container}: {error.strerror or error}"
    return ""


def _access_file(output: OutputFolder, secret: str) -> UPath:
    return output.root / f".access-{secret}"


def check(executor: Executor, output: OutputFolder, recordings: Iterable[AudioSource] = ()) -> None:
    """Ask every worker whether it can do the work; raises UsageError that names one that cannot.

    A worker must be able to read the first of `recordings` that the driver can read: others may be damaged.
    """
    recording = next((source for source in islice(recordings, MAX_TRIED) if not _unreadable(source)), None)
    secret = f"{os.getpid()}-{uuid.uuid4().hex}"
    shared = _access_file(output, secret)
    write_atomically(shared, b"")
    try:
        reports = executor.on_each_worker(partial(look, str(output.root), secret, recording))
    finally:
        shared.unlink()
    mine = look(str(output.root), secret, None)
    for worker, report in reports.items():
        mismatch = _mismatch(report, mine)
        if mismatch:
            raise UsageError(f"{'' if worker == THIS_PROCESS else 'worker '}{worker} {mismatch}")


def _mismatch(report: WorkerReport | BaseException, mine: WorkerReport) -> str:
    if isinstance(report, BaseException):
        # Dask tells of what it could not unpickle as text
        missing = re.search(r"No module named '([^']+)'", str(report))
        if missing:
            return f"has no package {missing[1]}; {REMEDY}"
        return f"cannot be asked what it is: {type(report).__name__}: {report}"
    for name, version in mine.versions.items():
        if report.versions[name] != version:
            return f"has {name} {report.versions[name]}, the driver {version}; install the same"
    if report.code != mine.code:
        return f"runs other code of this project (digest {report.code}, the driver's is {mine.code}); install the same"
    return report.trouble
