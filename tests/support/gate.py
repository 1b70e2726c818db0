"""A gate that stops an extraction in the middle for as long as a test needs."""

import os
from dataclasses import dataclass
from pathlib import Path

MODULE = """
import time
from pathlib import Path
from threadpoolctl import ThreadpoolController

def wait_at_the_gate(self, limit=ThreadpoolController.limit, **limits):
    while len(list(Path({records!r}).glob("*.json"))) >= int(Path({limit!r}).read_text() or 0):
        time.sleep(0.02)
    return limit(self, **limits)

ThreadpoolController.limit = wait_at_the_gate
"""


@dataclass(frozen=True)
class Gate:
    """Processes that import `module` begin no task while `records` has as many finished shards as are allowed.

    Tasks that run already are finished, each of up to four shards.
    """

    records: Path
    module: Path

    @classmethod
    def at(cls, folder: Path, records: Path, shards: int) -> "Gate":
        """Make a gate in the new folder `folder` that allows so many shards."""
        folder.mkdir()
        gate = cls(records, folder / "sitecustomize.py")
        gate.allow(shards)
        gate.module.write_text(MODULE.format(records=str(records), limit=str(gate._limit)))
        return gate

    @property
    def _limit(self) -> Path:
        return self.module.with_name("limit")

    def allow(self, shards: int) -> None:
        """Allow so many shards in all."""
        new = self._limit.with_suffix(".new")
        new.write_text(str(shards))
        new.replace(self._limit)

    def open(self) -> None:
        """Allow all shards."""
        self.allow(10**9)

    @property
    def environment(self) -> dict[str, str]:
        """An environment in which Python imports the module when it starts."""
        return {**os.environ, "PYTHONPATH": str(self.module.parent)}
