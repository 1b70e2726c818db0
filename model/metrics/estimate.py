"""A value with its interval."""

from pydantic import BaseModel, ConfigDict


class Estimate(BaseModel):
    """A value with its interval, which is None if there are too few speakers for one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "no interval" if self.low is None else f"{self.low:.3f} to {self.high:.3f}"
        return f"{self.value:.3f} ({interval})"
