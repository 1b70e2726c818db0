"""The lock of an output folder: one run at a time writes there."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline import lease
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from pipeline.storage import is_local

HOLDER_BYTES = 1000


class BusyError(PipelineError):
    """Another run is at work in the output folder."""

    def __init__(self, output: OutputFolder, holder: str) -> None:
        super().__init__(
            f"--out {output.root}: another run is at work here ({holder}); wait for its end, or end it, and run the "
            "same command again"
        )


@contextmanager
def held(output: OutputFolder) -> Iterator[None]:
    """Keep other runs out of the output folder while the context is open; create the folder.

    The kernel ends the lock of a local folder with its process, however that ends; see `lease` for one at a URL. There
    is no lock in a folder that cannot be written, and on a file system without locks. Raises BusyError, with the
    holder, if another run has the lock, and PipelineError if something else is in its place.
    """
    with _local(output) if is_local(output.root) else _remote(output):
        yield


@contextmanager
def _remote(output: OutputFolder) -> Iterator[None]:
    try:
        with lease.held(output.lock):
            yield
    except lease.HeldError as error:
        seen = f"last renewed {error.holder.renewed:%H:%M:%S}"
        kept = f"if it was killed, it keeps others out for {lease.EXPIRY_S / 60:.0f} minutes from then on"
        raise BusyError(output, f"{error.holder}, {seen}; {kept}") from None


@contextmanager
def _local(output: OutputFolder) -> Iterator[None]:
    path = Path(str(output.lock))
    descriptor = _lock(output, path)
    try:
        yield
    finally:
        if descriptor is not None:
            if _is_file_of(descriptor, path):
                path.unlink()  # before the lock ends: nobody else has this file open and believes to hold its lock
            os.close(descriptor)


def _lock(output: OutputFolder, path: Path) -> int | None:
    """Return the descriptor that holds the lock, None where there can be none."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ELOOP):
                raise PipelineError(f"{path} is not a file ({error.strerror}); remove it") from None
            return None  # the first write of the run names the reason
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file_of(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _holder().encode())
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, HOLDER_BYTES).decode(errors="replace").strip()
            os.close(descriptor)
            raise BusyError(output, holder or "just started") from None
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)  # the run that had the lock has removed the file in the meantime


def _is_file_of(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder() -> str:
    """Return the process, the host and the time for the message of another run."""
    return f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n"
