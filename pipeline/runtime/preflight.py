"""Checks of every worker before it gets work: the driver's code, its library versions, and access to the files."""

import re
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from upath import UPath

from pipeline.durable_files import make_parent, partial_path
from pipeline.errors import UsageError
from pipeline.features.audio_source import AudioSource
from pipeline.object_stores import cause_of, file_errors
from pipeline.outputs import OutputFolder
from pipeline.runtime.code_upload import REMEDY, code_digest, versions
from pipeline.runtime.executor import THIS_PROCESS, Executor

MAX_RECORDINGS_TRIED: Final = 16


@dataclass(frozen=True)
class WorkerReport:
    """The code and library versions of a process, and the first file that it cannot use; empty if there is none."""

    code_digest: str
    versions: Mapping[str, str]
    access_error: str


def check(
    executor: Executor, output: OutputFolder, recordings: Iterable[AudioSource] = (), *, writes: bool = True
) -> None:
    """Check every worker; raises UsageError that names one that cannot do the work.

    Each worker must be able to read the first of `recordings` that the driver can read: others may be damaged. If the
    work `writes` nothing, the output folder need not be writable; it must have a manifest.
    """
    tried = islice(recordings, MAX_RECORDINGS_TRIED)
    recording = next((source for source in tried if not _read_error(source)), None)
    shared = _new_file(output) if writes else output.manifest
    token = shared.name if writes else None
    if writes:
        make_parent(shared)
        shared.write_bytes(b"")
    try:
        reports = executor.on_each_worker(partial(inspect_worker, str(output.root), token, recording))
    finally:
        if writes:
            shared.unlink(missing_ok=True)
    driver = inspect_worker(str(output.root), token, None)
    for worker, report in reports.items():
        mismatch = _mismatch(report, driver)
        if mismatch:
            raise UsageError(f"{'' if worker == THIS_PROCESS else 'worker '}{worker} {mismatch}")


def inspect_worker(out: str, token: str | None, recording: AudioSource | None) -> WorkerReport:
    """Return the report of this process, which tries to write to the output folder `out` and to read `recording`.

    The driver has written a file named `token` to `out`. A folder of the same name on another disk lacks it.
    Without a token nothing is written, and the folder must have a manifest.
    """
    try:
        access_error = _access_error(OutputFolder.at(out), token, recording)
    except UsageError as error:
        access_error = str(error)
    return WorkerReport(code_digest(), versions(), access_error)


def _access_error(output: OutputFolder, token: str | None, recording: AudioSource | None) -> str:
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        return f"has names of files in {encoding}; start it with PYTHONUTF8=1, or in a locale with UTF-8"
    try:
        if not (output.manifest if token is None else output.root / token).exists():
            return f"does not see the files in {output.root}; workers and driver must share it under one name"
        if token is not None:
            own = _new_file(output)
            own.write_bytes(b"")
            own.unlink()
    except file_errors() as error:
        return f"cannot write to {output.root}: {cause_of(error)}"
    return "" if recording is None else _read_error(recording)


def _read_error(recording: AudioSource) -> str:
    try:
        with UPath(recording.container).open("rb") as file:
            file.read(1)
    except file_errors(ImportError, ValueError) as error:
        return f"cannot read {recording.container}: {cause_of(error)}"
    return ""


def _new_file(output: OutputFolder) -> UPath:
    """Return a new file of this process. If the process is killed, the next command deletes it as a partial file."""
    return partial_path(output.root / f"access-{uuid.uuid4().hex}")


def _mismatch(report: WorkerReport | BaseException, driver: WorkerReport) -> str:
    """Return what keeps a worker from working, without its name; empty if nothing does."""
    if isinstance(report, BaseException):
        # Dask passes an error of unpickling on as text
        missing = re.search(r"No module named '([^']+)'", str(report))
        if missing:
            return f"has no package {missing[1]}; {REMEDY}"
        return f"failed the check of its code and files: {type(report).__name__}: {report}"
    for name, version in driver.versions.items():
        if report.versions[name] != version:
            return f"has {name} {report.versions[name]}, the driver {version}; install the same version"
    if report.code_digest != driver.code_digest:
        return (
            f"runs other code of this project (digest {report.code_digest}, the driver's is {driver.code_digest}); "
            "install the same version"
        )
    return report.access_error
