"""What a cluster without any worker can report about those that it may still get."""

from dataclasses import dataclass
from typing import Final

START_LIMIT_S: Final = 60.0
"""How long a cluster may be without any worker if its workers start at once, or if no job of its is in a queue."""


@dataclass(frozen=True)
class Outlook:
    """The report of a cluster that has no worker, or fewer than it should have.

    refusal: what a queue answered that refused a job; empty if none did.
    news: what is in the queue, or why workers ended; empty if nothing is known.
    limit_s: seconds without a worker after which the command ends; 0 if none can come, None for no limit.
    """

    refusal: str = ""
    news: str = ""
    limit_s: float | None = None

    def __str__(self) -> str:
        return "; ".join(part for part in (self.refusal, self.news) if part)
