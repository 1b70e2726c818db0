"""The package as data: a digest that says which code runs where, and a copy for workers that have none."""

import importlib
import io
import platform
import sys
import zipfile
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

import cloudpickle
import xxhash
from distributed import Worker, WorkerPlugin

PACKAGE = Path(__file__).parent

LIBRARIES: Final = ("distributed", "librosa", "miniaudio", "numba", "numpy", "soundfile", "soxr", "zarr")
"""Where their versions differ, tasks may not be understood or features may have other bits."""


@cache
def code_digest() -> str:
    """Return a digest of this package's source, equal wherever the same code lies."""
    state = xxhash.xxh3_128()
    for path in _sources():
        state.update(f"{path.name}\0".encode() + path.read_bytes())
    return state.hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide what a task does."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: metadata.version(name) for name in LIBRARIES}}


@cache
def identity() -> str:
    """Return a digest of code and versions: processes of the same one do the same."""
    return xxhash.xxh3_128_hexdigest(f"{code_digest()} {sorted(versions().items())}".encode())[:16]


def _sources() -> list[Path]:
    return sorted(PACKAGE.glob("*.py"))


class ShippedCode(WorkerPlugin):
    """Unpacks this package on every worker, also on those that come later, and puts it first on the import path."""

    def __init__(self, digest: str, archive: bytes) -> None:
        self.name = f"pipeline-{digest}"
        self._archive = archive

    def setup(self, worker: Worker) -> None:
        """Unpack the code beside the worker's own folder: its host's workers share it, and what they compile of it.

        A package of the same name that the worker has, or was sent by an earlier run, is forgotten.
        """
        folder = Path(worker.local_directory).parent / self.name
        if sys.path[0] == str(folder):
            return  # a second run with the same code
        with zipfile.ZipFile(io.BytesIO(self._archive)) as file:
            package = file.namelist()[0].partition("/")[0]
            if not folder.exists():
                file.extractall(Path(worker.local_directory) / self.name)
                with suppress(OSError):  # another worker was faster
                    (Path(worker.local_directory) / self.name).rename(folder)
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]


def packed() -> ShippedCode:
    """Pack the sources of this package."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in _sources():
            file.write(path, f"{PACKAGE.name}/{path.name}")
    return ShippedCode(code_digest(), archive.getvalue())


# a worker without the package cannot look the plugin up by its name; so the class uses nothing else of this module
cloudpickle.register_pickle_by_value(sys.modules[__name__])
