"""The addresses of web pages in a profile, by which also Dask's own server may be turned off."""

from collections.abc import Mapping
from typing import Any, Final

from pipeline.errors import UsageError
from pipeline.settings import shown

KEYS: Final = ("dashboard_address", "worker_dashboard_address")
OPTIONS: Final = ("scheduler_options", "worker_options", "scheduler_kwargs")


def check_dashboard_addresses(arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for an address in the arguments of a cluster that Dask cannot read."""
    from distributed.utils import clean_dashboard_address  # noqa: PLC0415 Dask takes a second to load

    for place, value in _addresses(arguments):
        try:
            ports = [found["port"] for found in clean_dashboard_address(value)] if value is not None else []
        except (ValueError, TypeError, NameError):
            ports = [-1]
        if not all(0 <= port < 2**16 for port in ports):
            raise UsageError(
                f"--cluster: kwargs.{place} = {shown(value)}: no address of web pages; write HOST:PORT, or null for "
                "no pages (for IPv6, [[ADDRESS, PORT]])"
            )


def stop_unwanted_server(cluster: Any, arguments: Mapping[str, Any]) -> None:
    """Stop the scheduler's web server if its address is null: Dask would leave out the pages, but listen.

    Written against distributed 2026.8.0 (`Scheduler.http_server`; `services`, of which links are made). A scheduler in
    another process has no such attribute here and keeps its server.
    """
    scheduler = getattr(cluster, "scheduler", None)
    server = getattr(scheduler, "http_server", None)
    unwanted = [("dashboard_address", None), ("scheduler_options.dashboard_address", None)]
    if scheduler is None or server is None or not any(found in unwanted for found in _addresses(arguments)):
        return

    async def stop() -> None:
        server.stop()
        for services in (scheduler.services, cluster.scheduler_info["services"]):
            services.pop("dashboard", None)

    cluster.sync(stop)


def _addresses(arguments: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the addresses by their place in the arguments."""
    places = {"": arguments, **{f"{name}.": arguments.get(name) for name in OPTIONS}}
    return [
        (f"{place}{key}", options[key])
        for place, options in places.items() if isinstance(options, Mapping)
        for key in KEYS if key in options
    ]  # fmt: skip
