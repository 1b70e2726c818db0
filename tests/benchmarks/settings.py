"""What the command line says to every group."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What is measured, and the folder `work`.

    `hours` of speech, `rounds` of each contender, empty `tasks` for the cluster, and `records` of shards.
    """

    hours: float
    rounds: int
    tasks: int
    records: int
    work: Path
