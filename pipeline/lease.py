"""The lock of an output folder at a URL: an object that names its holder, who renews it while a run is at work."""

import logging
import os
import signal
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Final, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict
from upath import UPath

from pipeline.durable_files import make_parent, process_runs
from pipeline.object_stores import file_errors
from pipeline.storage import refusing_damage

RENEW_S: Final = 30.0
EXPIRY_S: Final = 300.0
"""A lock that was not renewed for so long is that of a dead process. The clocks of machines may differ by a little."""
ATTEMPTS: Final = 3

log = logging.getLogger(__name__)


class Holder(BaseModel):
    """The process that holds a lock. `token` is of this lock alone, `machine` as in `this_machine`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str
    machine: str
    host: str
    process: int
    started: AwareDatetime
    renewed: AwareDatetime

    @classmethod
    def now(cls) -> Self:
        """Return a new holder: this process."""
        now = datetime.now(UTC)
        return cls(
            token=uuid.uuid4().hex, machine=this_machine(), host=socket.gethostname(), process=os.getpid(),
            started=now, renewed=now,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.started:%Y-%m-%d %H:%M:%S} UTC"

    def is_dead(self) -> bool:
        """Whether the process has ended: this is known at once on its machine, and elsewhere after EXPIRY_S."""
        if self.machine == this_machine() and not process_runs(self.process):
            return True
        return (datetime.now(UTC) - self.renewed).total_seconds() > EXPIRY_S


class HeldError(Exception):
    """The lock belongs to another process."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(str(holder))
        self.holder = holder


def this_machine() -> str:
    """Identify this machine until it is started again, and the container: each has process numbers of its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


@contextmanager
def held(path: UPath) -> Iterator[None]:
    """Hold the lock at the URL `path` while the context is open, and renew it.

    There is none where nothing can be written: the first write of the run names the reason. If another process takes
    over the lock because it was not renewed for EXPIRY_S, this process gets SIGTERM. Raises HeldError if another
    process holds the lock, and PipelineError for a lock that cannot be read.
    """
    own, ended = Holder.now(), Event()
    if not _acquire(path, own):
        yield
        return
    renewing = Thread(target=_renew, args=(path, own, ended), name="renew the lock", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        _release(path, own)


def _acquire(path: UPath, own: Holder) -> bool:
    """Create the lock, or take over that of a dead process; return whether this file system can hold a lock."""
    for _ in range(ATTEMPTS):  # the lock may be released between two calls
        # an error may also mean that the lock was created and the answer was lost
        with suppress(*file_errors(NotImplementedError, ValueError)):
            make_parent(path)
            _write(path, own, mode="create")
        found = _read(path)
        if found is None:
            continue
        if found.token == own.token:
            return True
        if not found.is_dead():
            raise HeldError(found)
        return _take_over(path, found, own)
    return False


def _take_over(path: UPath, dead: Holder, own: Holder) -> bool:
    """Replace the lock of a dead process. Of all that find it, the one that creates a claim to it may replace it."""
    claim = path.with_name(f"{path.name}.{dead.token}")
    if not _acquire(claim, own):
        return False
    try:
        found = _read(path)
        if found is not None and found != dead:  # another process was faster, and has removed its claim since then
            raise HeldError(found)
        _write(path, own, mode="overwrite")
    finally:
        _release(claim, own)
    log.warning("%s: the lock of a run that was killed (%s) is taken over", path, dead)
    return True


def _renew(path: UPath, own: Holder, ended: Event) -> None:
    """Renew the lock until the run has `ended`; end this process if another one has the lock."""
    while not ended.wait(RENEW_S):
        with suppress(*file_errors()):  # the next attempt comes in time
            found = _read(path)
            if found is not None and found.token != own.token:
                log.error("%s: this run did not renew its lock for %g s, and another run took over: %s", path,
                          EXPIRY_S, found)  # fmt: skip
                os.kill(os.getpid(), signal.SIGTERM)
                return
            _write(path, own.model_copy(update={"renewed": datetime.now(UTC)}), mode="overwrite")


def _release(path: UPath, own: Holder) -> None:
    with suppress(*file_errors()):  # a lock that stays expires
        found = _read(path)
        if found is not None and found.token == own.token:
            path.unlink()


def _read(path: UPath) -> Holder | None:
    """Return the holder of a lock, None if there is no lock or it cannot be reached."""
    try:
        content = path.fs.cat_file(path.path)
    except file_errors(NotImplementedError):
        return None
    with refusing_damage(path, "delete it if no run is at work here"):
        return Holder.model_validate_json(content)


def _write(path: UPath, holder: Holder, *, mode: str) -> None:
    """Write a lock; in the mode "create", raise FileExistsError if there is one."""
    path.fs.pipe_file(path.path, holder.model_dump_json().encode(), mode=mode)
