"""The package as data: a digest that says which code runs where, and a copy for a cluster that has none."""

import importlib
import io
import platform
import shutil
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

import cloudpickle
import xxhash
from distributed import Scheduler, SchedulerPlugin, Worker, WorkerPlugin

PACKAGE = Path(__file__).parents[1]

REMEDY: Final = "install the project there, or have it sent: ship_code: true in the profile"

FEATURE_LIBRARIES: Final = ("librosa", "miniaudio", "numba", "numcodecs", "numpy", "soundfile", "soxr", "zarr")
"""Their versions decide the bits of what is stored."""


@cache
def code_digest() -> str:
    """Return a digest of this package's source, equal wherever the same code lies."""
    state = xxhash.xxh3_128()
    for path in _sources():
        state.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    return state.hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Return the versions of all that decides whether a task is understood, and what it does."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: metadata.version(name) for name in ("distributed", *FEATURE_LIBRARIES)}}


@cache
def identity() -> str:
    """Return a digest of code and versions: processes of the same one do the same."""
    return xxhash.xxh3_128_hexdigest(f"{code_digest()} {sorted(versions().items())}".encode())[:16]


def _sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("templates/*")])


@dataclass(frozen=True)
class CodeArchive:
    """The packed sources of this package."""

    digest: str
    archive: bytes

    def unpack(self, place: Path, scratch: Path) -> None:
        """Unpack the code below `place`, by way of `scratch`, and put it first on the import path.

        A package of the same name that is there, or was sent by an earlier run, is forgotten.
        """
        folder = place / f"pipeline-{self.digest}"
        if sys.path[0] == str(folder):
            return  # a second run with the same code
        with zipfile.ZipFile(io.BytesIO(self.archive)) as file:
            if not folder.exists():
                file.extractall(scratch / folder.name)
                with suppress(OSError):  # another worker was faster
                    (scratch / folder.name).rename(folder)
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.partition(".")[0] == "pipeline"]:
            del sys.modules[name]


class UploadToWorkers(WorkerPlugin):
    """Unpacks the parcel on every worker, also on those that come later."""

    def __init__(self, parcel: CodeArchive) -> None:
        self.name, self._parcel = f"pipeline-{parcel.digest}", parcel

    def setup(self, worker: Worker) -> None:
        """Unpack beside the worker's own folder: its host's workers share the code, and what they compile of it."""
        own = Path(worker.local_directory)
        self._parcel.unpack(own.parent, own)


class UploadToScheduler(SchedulerPlugin):
    """Unpacks the parcel on the scheduler, which reads every task before a worker does."""

    idempotent = True

    def __init__(self, parcel: CodeArchive) -> None:
        self.name, self._parcel = f"pipeline-{parcel.digest}", parcel
        self._folder = ""

    async def start(self, scheduler: Scheduler) -> None:  # noqa: ARG002 Dask prescribes the arguments
        """Unpack into a folder that is gone with the scheduler."""
        self._folder = tempfile.mkdtemp(prefix="pipeline-")
        self._parcel.unpack(Path(self._folder), Path(self._folder, "scratch"))

    async def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


def packed() -> CodeArchive:
    """Pack the sources of this package."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in _sources():
            file.write(path, path.relative_to(PACKAGE.parent))
    return CodeArchive(code_digest(), archive.getvalue())


# who has no package cannot look the plugins up by their names; so these classes use nothing of this module that is
# not a class or a plain function
cloudpickle.register_pickle_by_value(sys.modules[__name__])
