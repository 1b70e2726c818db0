"""This package as data: a digest that identifies the code, and an upload for clusters that lack the package.

Dask's own uploads do not fit: `UploadDirectory` needs nannies and restarts the workers, and `Client.upload_file`
reloads only the top package, so that submodules of an earlier upload stay loaded.
"""

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
"""Libraries whose versions decide the stored bytes."""


@cache
def code_digest() -> str:
    """Return a digest of this package's source; it does not depend on where the package lies."""
    state = xxhash.xxh3_128()
    for path in _sources():
        state.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    return state.hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python, of Dask and of FEATURE_LIBRARIES."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: metadata.version(name) for name in ("distributed", *FEATURE_LIBRARIES)}}


@cache
def identity() -> str:
    """Return a digest of code and versions: processes with equal digests compute equal bytes."""
    return xxhash.xxh3_128_hexdigest(f"{code_digest()} {sorted(versions().items())}".encode())[:16]


def _sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("templates/*")])


@dataclass(frozen=True)
class CodeArchive:
    """The source of this package as a ZIP file, and its digest."""

    digest: str
    content: bytes

    def unpack(self, target: Path, scratch: Path) -> None:
        """Unpack the code below `target` and put it first on the import path.

        It is unpacked in `scratch`, a folder of this process on the same disk, and then renamed. Loaded modules of
        this package are forgotten: they are installed here, or were uploaded by an earlier run.
        """
        folder = target / f"pipeline-{self.digest}"
        if sys.path[0] == str(folder):
            return  # a second run with the same code
        with zipfile.ZipFile(io.BytesIO(self.content)) as file:
            if not folder.exists():
                file.extractall(scratch / folder.name)
                with suppress(OSError):  # another worker was faster
                    (scratch / folder.name).rename(folder)
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.partition(".")[0] == "pipeline"]:
            del sys.modules[name]


class UploadToWorkers(WorkerPlugin):
    """Unpacks the code on every worker, also on workers that connect later."""

    def __init__(self, archive: CodeArchive) -> None:
        self.name, self._archive = f"pipeline-{archive.digest}", archive

    def setup(self, worker: Worker) -> None:
        """Unpack beside the worker's own folder: workers of a host share the code and its compiled kernels."""
        own = Path(worker.local_directory)
        self._archive.unpack(own.parent, own)


class UploadToScheduler(SchedulerPlugin):
    """Unpacks the code on the scheduler, which deserialises every task before a worker does."""

    idempotent = True

    def __init__(self, archive: CodeArchive) -> None:
        self.name, self._archive = f"pipeline-{archive.digest}", archive
        self._folder = ""

    async def start(self, scheduler: Scheduler) -> None:  # noqa: ARG002 Dask prescribes the arguments
        """Unpack into a temporary folder."""
        self._folder = tempfile.mkdtemp(prefix="pipeline-")
        self._archive.unpack(Path(self._folder), Path(self._folder, "scratch"))

    async def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


def pack_code() -> CodeArchive:
    """Pack the source of this package."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in _sources():
            file.write(path, path.relative_to(PACKAGE.parent))
    return CodeArchive(code_digest(), archive.getvalue())


# A process without the package cannot import these classes. They are pickled by value, and therefore use nothing of
# this module but classes and plain functions.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
