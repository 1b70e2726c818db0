"""The package as data: a digest that says which code runs where, and a copy for workers that have none."""

import io
import sys
import zipfile
from functools import cache
from pathlib import Path

import cloudpickle
import xxhash
from distributed import Worker, WorkerPlugin

PACKAGE = Path(__file__).parent


@cache
def code_digest() -> str:
    """Return a digest of this package's source, equal wherever the same code lies."""
    state = xxhash.xxh3_128()
    for path in _sources():
        state.update(f"{path.name}\0".encode() + path.read_bytes())
    return state.hexdigest()[:16]


def _sources() -> list[Path]:
    return sorted(PACKAGE.glob("*.py"))


class ShippedCode(WorkerPlugin):
    """Unpacks this package on every worker, also on those that come later, and puts it first on the import path."""

    def __init__(self, digest: str, archive: bytes) -> None:
        self.name = f"pipeline-{digest}"
        self._archive = archive

    @classmethod
    def of_this_package(cls) -> "ShippedCode":
        """Pack the sources of this package."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in _sources():
                file.write(path, f"{PACKAGE.name}/{path.name}")
        return cls(code_digest(), archive.getvalue())

    def setup(self, worker: Worker) -> None:
        """Unpack the code into the worker's own folder: compiled functions are cached beside it."""
        folder = Path(worker.local_directory) / self.name
        with zipfile.ZipFile(io.BytesIO(self._archive)) as file:
            file.extractall(folder)
        sys.path.insert(0, str(folder))


# a worker without the package cannot look the plugin up by its name
cloudpickle.register_pickle_by_value(sys.modules[__name__])
