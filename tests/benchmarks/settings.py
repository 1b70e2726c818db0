"""What the command line says to every group."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """`hours` of speech, `rounds` of each contender, empty `tasks` for the cluster, and the folder `work`."""

    hours: float
    rounds: int
    tasks: int
    work: Path
