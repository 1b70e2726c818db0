"""The way to a scheduler that runs already: its security, and whether anybody answers there."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed import Security
from distributed.comm.core import connect

from pipeline.errors import PipelineError, UsageError, first_cause, in_one_line

CONNECT_TIMEOUT_S = 5.0
FILES = ("_file", "_cert", "_key")


def security_of(settings: Mapping[str, Any]) -> Security | None:
    """Return the security of a profile, None where it names none; raises UsageError where it cannot be used."""
    if not settings:
        return None
    for name, value in settings.items():
        # a certificate may also be given as its text
        if name.endswith(FILES) and "\n" not in str(value) and not Path(value).is_file():
            raise UsageError(f"--cluster: security: {name}: {value}: there is no such file")
    try:
        return Security(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--cluster: security: {error}; the names are those of distributed.Security") from None


def check_reachable(address: str, security: Security | None) -> None:
    """Raise PipelineError where no scheduler answers; a Client that fails to start waits long, and not in silence."""

    async def ask() -> None:
        arguments = (security or Security()).get_connection_args("client")
        comm = await connect(address, timeout=CONNECT_TIMEOUT_S, **arguments)
        await comm.close()

    try:
        asyncio.run(ask())
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = in_one_line(first_cause(error))
        raise PipelineError(
            f"--cluster: no scheduler can be reached at {address}: {reason}; is it started, and are its address and "
            "the profile's security right?"
        ) from error
