"""A disk whose power can be cut: an ext4 image on a loop device."""

import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.deadline import DEADLINE_S

IMAGE_BYTES = 96 * 2**20
SHUTDOWN = 0x8004587D
"""The request FS_IOC_SHUTDOWN of Linux, with which its own tests of file systems cut the power."""
WITHOUT_JOURNAL = struct.pack("I", 2)
"""Nothing more is written: neither the journal nor any data."""
MOUNT = "loop,noauto_da_alloc,commit=1"
"""Names get to the disk every second, and content only when it is synced, also of a file that replaces another one."""


@dataclass(frozen=True)
class Disk:
    """A mounted ext4 image."""

    image: Path
    place: Path

    def cut_power(self) -> None:
        """Lose all that is not on the disk: from now on every access of a process is an error."""
        folder = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, WITHOUT_JOURNAL)
        finally:
            os.close(folder)

    def restart(self) -> None:
        """Mount the disk again, as after a start of the machine, once no process uses it any more."""
        deadline_s = time.monotonic() + DEADLINE_S
        while subprocess.run(["umount", str(self.place)], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline_s, f"{self.place} stays in use"
            time.sleep(0.02)
        _do("fsck.ext4", "-p", self.image)
        _do("mount", "-o", MOUNT, self.image, self.place)


def _do(*command: str | Path) -> None:
    subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)


@contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """Yield a new, empty disk in `folder`; skip the test where this user cannot mount one."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("cutting the power of a disk needs root and mkfs.ext4")
    disk = Disk(folder / "image", folder / "disk")
    disk.place.mkdir()
    with disk.image.open("wb") as image:
        image.truncate(IMAGE_BYTES)
    try:
        _do("mkfs.ext4", "-q", "-F", disk.image)
        try:
            _do("mount", "-o", MOUNT, disk.image, disk.place)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine mounts no image: {error.stderr.strip()}")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", str(disk.place)], check=False)
    finally:
        disk.image.unlink()
