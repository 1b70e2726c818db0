"""The memory limit of a worker in a profile, refused if an idle worker does not fit into it."""

import logging
from collections.abc import Mapping
from typing import Any, Final

import dask.config
from dask.utils import format_bytes, parse_bytes

from pipeline.errors import UsageError
from pipeline.settings import shown

IDLE_WORKER_BYTES: Final = 140 * 2**20
"""What a worker uses before its first task: Python, Dask, and the modules that it is sent."""


def check_memory_limit(key: tuple[str, ...], arguments: Mapping[str, Any]) -> None:
    """Raise UsageError if the arguments of a cluster have, at `key`, a limit that ends every worker at once."""
    value: Any = arguments
    for name in key:
        value = value.get(name) if isinstance(value, Mapping) else None
    fraction = dask.config.get("distributed.worker.memory.terminate")
    if not key or value is None or not fraction:
        return
    place = f"--cluster: kwargs.{'.'.join(key)} = {shown(value)}"
    try:
        limit = _bytes_per_worker(key[-1], value, arguments)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{place}: {error}; write for example 1GiB") from None
    if limit is None or limit * fraction >= IDLE_WORKER_BYTES:
        return
    unit = "" if any(letter.isalpha() for letter in str(value)) else ", and a number without a unit counts bytes"
    remedy = "write for example 1GiB"
    if limit >= IDLE_WORKER_BYTES:
        remedy = "make it larger, or Dask's setting distributed.worker.memory.terminate"
    raise UsageError(
        f"{place}: a worker is ended when it uses {fraction:.0%} of its limit, which are "
        f"{format_bytes(int(limit * fraction))}, but an idle one takes {format_bytes(IDLE_WORKER_BYTES)}{unit}; "
        f"{remedy}"
    )


def _bytes_per_worker(name: str, value: Any, arguments: Mapping[str, Any]) -> float | None:
    """Return the limit in bytes, None for no limit. Only `memory_limit` may be a fraction of the machine's memory."""
    if name == "memory_limit":
        from distributed.worker_memory import parse_memory_limit  # noqa: PLC0415 with Dask's other modules

        return parse_memory_limit(value, 1, logger=logging.getLogger(__name__))
    return int(parse_bytes(value)) / int(arguments.get("processes") or 1)
