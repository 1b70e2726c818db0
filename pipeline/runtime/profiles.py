"""Cluster profiles: start or connect to the Dask cluster that is named in cluster.yaml."""

import importlib
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import Annotated, Any, Final, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from pipeline.errors import PipelineError, UsageError, first_cause, in_one_line
from pipeline.settings import Settings
from pipeline.yaml_file import read_yaml

WORKING_FILE: Final = Path("cluster.yaml")
DEFAULT_FILE: Final = Path(__file__).with_name("cluster.yaml")
"""The profiles that come with the package; in a checkout a link to the cluster.yaml at its top."""

ADDRESS_VARIABLE: Final = "DASK_SCHEDULER_ADDRESS"
EXTRAS: Final = {"asyncssh": "ssh", "dask_jobqueue": "slurm", "dask_kubernetes": "kubernetes"}
"""The extra of this project that installs a package."""

CLOSE_TIMEOUT_S: Final = 10


class ClusterProfile(Settings):
    """A class that starts a cluster, or the address of a running cluster.

    module, class, kwargs: the class and its arguments, as in dask-ctl's cluster specifications.
    address: a scheduler's address; null means the environment variable DASK_SCHEDULER_ADDRESS.
    adaptive: arguments of the cluster's `adapt`.
    client, security: arguments of `distributed.Client` and `distributed.Security`.
    ship_code: send this package to the workers, which otherwise must have it installed.
    price_per_core_hour: for the report, in any currency.
    """

    module: str = "dask.distributed"
    class_: str = Field("LocalCluster", alias="class")
    kwargs: Mapping[str, Any] = {}
    address: str | None = None
    adaptive: Mapping[str, Any] | None = None
    client: Mapping[str, Any] = {}
    security: Mapping[str, Any] = {}
    ship_code: bool = False
    price_per_core_hour: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _address_or_class(self) -> Self:
        if self.runs_already and self.model_fields_set & {"module", "class_", "kwargs", "adaptive"}:
            raise ValueError("give either an address, or a class (module, class, kwargs, adaptive), not both")
        return self

    @property
    def runs_already(self) -> bool:
        """Whether the profile is the address of a running cluster."""
        return "address" in self.model_fields_set

    def scheduler_address(self) -> str:
        """Return the address of the running cluster; raises UsageError where none is given."""
        address = self.address or os.environ.get(ADDRESS_VARIABLE)
        if not address:
            raise UsageError(
                f"--cluster: the profile has no scheduler address; write one into the profile, or export "
                f"{ADDRESS_VARIABLE}=tcp://HOST:8786"
            )
        return address

    def start(self, workers: int | None, **arguments: Any) -> Any:
        """Start the cluster and return it.

        `workers` is the number of workers, None for the profile's number. `arguments` are added to the profile's
        `kwargs`. Raises UsageError for arguments that the class refuses, PipelineError where the start fails.
        """
        start = self._class()
        quirks = QUIRKS.get(self.class_, Quirks())
        takes_workers = "n_workers" in inspect.signature(start).parameters
        if workers is not None and not takes_workers:
            raise UsageError(
                f"--workers {workers}: {self} takes no number of workers; its profile lists the workers instead"
            )
        arguments = {**quirks.defaults(), **self.kwargs, **arguments}
        if workers is not None:
            arguments["n_workers"] = workers
        try:
            cluster = start(**arguments)
        except Exception as error:  # each kind of cluster has errors of its own libraries
            quirks.after_failure(start)
            raise self._start_error(error) from error
        quirks.after_start(cluster)
        if workers is None and self.adaptive is not None:
            cluster.adapt(**self.adaptive)
        return cluster

    def __str__(self) -> str:
        return f"{self.module}.{self.class_}"

    def _class(self) -> Callable[..., Any]:
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(self.module), self.class_)
        except ImportError as error:
            raise self._missing(error) from error
        except AttributeError:
            raise UsageError(
                f"--cluster: the package {self.module} has no {self.class_}; correct the profile"
            ) from None
        return found

    def _start_error(self, error: BaseException) -> PipelineError:
        """Return the innermost cause of a failed start, in one line."""
        error = first_cause(error)
        if isinstance(error, ImportError):
            return self._missing(error)
        reason = in_one_line(error)
        if isinstance(error, TypeError):
            return UsageError(f"--cluster: {self} refuses its kwargs: {reason}")
        return PipelineError(f"--cluster: {self} did not start: {reason}")

    def _missing(self, error: ImportError) -> UsageError:
        extra = next((EXTRAS[name] for name in EXTRAS if name in f"{self.module} {error}"), None)
        remedy = f"pip install 'spoken-language-pipeline[{extra}]'" if extra else "install it, or correct the profile"
        return UsageError(f"--cluster: {self} needs a package that is not installed ({error}): {remedy}")


@dataclass(frozen=True)
class Quirks:
    """What a class of cluster needs besides the arguments of its profile."""

    defaults: Callable[[], dict[str, Any]] = dict
    """Arguments for those that the profile does not give."""
    after_start: Callable[[Any], None] = lambda _: None
    """Called with the started cluster."""
    after_failure: Callable[[Callable[..., Any]], None] = lambda _: None
    """Called with the class after a failed start."""


def _local_defaults() -> dict[str, Any]:
    """Return one worker per core, and nannies that survive a worker's death in its first seconds."""
    from pipeline.runtime.nanny import RestartingNanny  # noqa: PLC0415 Dask takes a second to load

    return {"n_workers": os.cpu_count(), "worker_class": RestartingNanny}


def _discard_output(cluster: Any) -> None:
    """Discard the output of SSHCluster's remote processes: it is not read after the start, and a few MB block them.

    Written against distributed 2026.8.0 (`Process.proc`, an asyncssh process) and asyncssh 2.24.
    """

    async def redirect() -> None:
        for process in (cluster.scheduler, *cluster.workers.values()):
            await process.proc.redirect(stdout=DEVNULL, stderr=DEVNULL)

    cluster.sync(redirect)


def _delete_half_started(start: Callable[..., Any]) -> None:
    """Delete what a failed start of KubeCluster left. Otherwise Python deletes it at exit, with a traceback.

    Written against dask-kubernetes 2026.3 (`KubeCluster._instances`, `shutdown_on_close`).
    """
    logging.getLogger("dask_kubernetes").setLevel(logging.ERROR)  # it warns about resources that were never made
    for cluster in list(getattr(start, "_instances", ())):
        with suppress(Exception):  # there may be nothing to delete, or no API server
            cluster.close(timeout=CLOSE_TIMEOUT_S)
        cluster.shutdown_on_close = False


QUIRKS: Final[Mapping[str, Quirks]] = {
    "LocalCluster": Quirks(defaults=_local_defaults),
    "SSHCluster": Quirks(after_start=_discard_output),
    "KubeCluster": Quirks(after_failure=_delete_half_started),
}
"""By the name of the class: the packages of these classes are loaded with the cluster, not with this module."""


def load_profile(name: str, file: Path | None) -> ClusterProfile:
    """Return the profile `name` of `file`, by default of ./cluster.yaml or, if that lacks it, of the package's file.

    Raises UsageError for a file that cannot be read, and for a name that it lacks.
    """
    files = [file] if file else [path for path in (WORKING_FILE, DEFAULT_FILE) if path.exists()]
    names: list[str] = []
    for path in files:
        profiles = _read_profiles(path)
        if name in profiles:
            return profiles[name]
        names += [other for other in profiles if other not in names]
    places = " or ".join(str(path) for path in files)
    raise UsageError(f"--cluster {name}: no such profile in {places}; the profiles are {', '.join(names)}")


def _read_profiles(path: Path) -> dict[str, ClusterProfile]:
    try:
        return TypeAdapter(dict[str, ClusterProfile]).validate_python(read_yaml(path, "--cluster-file"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        allowed = ", ".join(field.alias or key for key, field in ClusterProfile.model_fields.items())
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"--cluster-file {path}: {key}: {message}; allowed: {allowed}") from None
