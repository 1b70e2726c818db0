"""Cluster profiles: start or connect to the Dask cluster that is named in cluster.yaml."""

import errno
import importlib
import inspect
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from pipeline.errors import PipelineError, UsageError, first_cause, in_one_line
from pipeline.runtime.cluster_classes import ClusterClass, class_named
from pipeline.runtime.dashboard_address import check_dashboard_addresses, stop_unwanted_server
from pipeline.runtime.memory_limit import check_memory_limit
from pipeline.runtime.outlook import Outlook
from pipeline.settings import Settings, reason, shown
from pipeline.yaml_file import read_yaml

WORKING_FILE: Final = Path("cluster.yaml")
DEFAULT_FILE: Final = Path(__file__).with_name("cluster.yaml")
"""The profiles that come with the package; in a checkout a link to the cluster.yaml at its top."""

ADDRESS_VARIABLE: Final = "DASK_SCHEDULER_ADDRESS"
EXTRAS: Final = {"asyncssh": "ssh", "dask_jobqueue": "slurm", "dask_kubernetes": "kubernetes"}
"""The extra of this project that installs a package."""

UNATTENDED_LIMIT_S: Final = 3600.0
"""How long a command without a terminal waits for a worker that a queue or a running cluster may still send."""

SECTIONS: Final = ("kwargs", "client", "security")
"""The keys of a profile that hold arguments, and are never null."""


class ClusterProfile(Settings):
    """A class that starts a cluster, or the address of a running cluster.

    module, class, kwargs: the class and its arguments, as in dask-ctl's cluster specifications.
    address: a scheduler's address; null means the environment variable DASK_SCHEDULER_ADDRESS.
    adaptive: arguments of the cluster's `adapt`.
    client, security: arguments of `distributed.Client` and `distributed.Security`.
    worker_timeout_s: seconds without any worker after which the command ends; null: never.
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
    worker_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    ship_code: bool = False
    price_per_core_hour: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty_sections(cls, given: Any) -> Any:
        """Take a section without keys, which YAML reads as null, as one that is not given."""
        if not isinstance(given, Mapping):
            return {} if given is None else given
        return {key: value for key, value in given.items() if value is not None or key not in SECTIONS}

    @model_validator(mode="after")
    def _address_or_class(self) -> Self:
        if self.runs_already and self.model_fields_set & {"module", "class_", "kwargs", "adaptive"}:
            raise ValueError("give either an address, or a class (module, class, kwargs, adaptive), not both")
        return self

    @model_validator(mode="after")
    def _first_worker(self) -> Self:
        for key, value in (self.adaptive or {}).items():
            if key.startswith("minimum") and not value:
                raise ValueError(
                    f"adaptive.{key} = {shown(value)}: work is given out once there is a worker; at least 1"
                )
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
        start, needs = self.load_class(), self._needs
        takes_workers = "n_workers" in inspect.signature(start).parameters
        if workers is not None and not takes_workers:
            raise UsageError(
                f"--workers {workers}: {self} takes no number of workers; its profile lists the workers instead"
            )
        arguments = {**needs.defaults(start), **self.kwargs, **arguments}
        if workers is not None:
            arguments["n_workers"] = workers
        needs.check(arguments)
        check_dashboard_addresses(arguments)
        check_memory_limit(needs.memory_key, arguments)
        try:
            cluster = start(**arguments)
        except Exception as error:  # each kind of cluster has errors of its own libraries
            needs.after_failure(start)
            raise self._start_error(error) from error
        needs.after_start(cluster)
        stop_unwanted_server(cluster, arguments)
        if workers is None and self.adaptive is not None:
            self._adapt(cluster)
        return cluster

    def _adapt(self, cluster: Any) -> None:
        try:
            cluster.adapt(**{"minimum": 1, **(self.adaptive or {})})
        except Exception as error:
            cluster.close()
            raise UsageError(f"--cluster: {self} refuses its adaptive: {in_one_line(error)}") from error

    def outlook(self, cluster: Any | None) -> Outlook:
        """Return what is known of workers that are missing; `cluster` is what `start` returned, or None."""
        found = Outlook() if cluster is None else self._needs.outlook(cluster)
        if found.limit_s == 0:
            return found
        if "worker_timeout_s" in self.model_fields_set:
            return replace(found, limit_s=self.worker_timeout_s)
        attended = sys.stderr is not None and sys.stderr.isatty()
        return found if attended or found.limit_s is not None else replace(found, limit_s=UNATTENDED_LIMIT_S)

    @property
    def dask_settings(self) -> Mapping[str, Any]:
        """Dask's settings while the cluster runs."""
        return self._needs.dask_settings

    def kill(self, cluster: Any) -> None:
        """Kill the worker processes of a cluster of this machine, whose tasks are not needed any more."""
        self._needs.kill(cluster)

    def __str__(self) -> str:
        return f"{self.module}.{self.class_}"

    @property
    def _needs(self) -> ClusterClass:
        return class_named(self.module, self.class_)

    def load_class(self) -> Callable[..., Any]:
        """Import and return the class; raises UsageError if that is impossible.

        It is first called in the main thread: when dask-jobqueue is imported, it replaces the handler of Ctrl-C, which
        is put back.
        """
        on_ctrl_c = signal.getsignal(signal.SIGINT)
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(self.module), self.class_)
        except ImportError as error:
            raise self._missing(error) from error
        except AttributeError:
            raise UsageError(
                f"--cluster: the package {self.module} has no {self.class_}; correct the profile"
            ) from None
        finally:
            if signal.getsignal(signal.SIGINT) is not on_ctrl_c:
                signal.signal(signal.SIGINT, on_ctrl_c)
        return found

    def _start_error(self, error: BaseException) -> PipelineError:
        """Return the innermost cause of a failed start, in one line."""
        error = first_cause(error)
        if isinstance(error, ImportError):
            return self._missing(error)
        reason = in_one_line(error)
        if isinstance(error, TypeError):
            return UsageError(f"--cluster: {self} refuses its kwargs: {reason}")
        unknown = isinstance(error, socket.gaierror) and self.class_ == "LocalCluster"
        if unknown or (isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL):
            return UsageError(
                f"--cluster: {self} did not start: {reason}; host and dashboard_address in its kwargs must be "
                "addresses of this machine"
            )
        return PipelineError(f"--cluster: {self} did not start: {reason}")

    def _missing(self, error: ImportError) -> UsageError:
        extra = next((EXTRAS[name] for name in EXTRAS if name in f"{self.module} {error}"), None)
        remedy = f"pip install 'spoken-language-pipeline[{extra}]'" if extra else "install it, or correct the profile"
        return UsageError(f"--cluster: {self} needs a package that is not installed ({error}): {remedy}")


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
    known = f"the profiles are {', '.join(names)}" if names else "there are no profiles in it"
    raise UsageError(f"--cluster {name}: no such profile in {places}; {known}")


def _read_profiles(path: Path) -> dict[str, ClusterProfile]:
    content = read_yaml(path, "--cluster-file")
    try:
        return TypeAdapter(dict[str, ClusterProfile]).validate_python({} if content is None else content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"][-1:] == ("[key]",):
            raise UsageError(
                f"--cluster-file {path}: {shown(first['input'])} is no name of a profile: quote the name; without "
                "quotes YAML reads on, off, yes, no and numbers as other values"
            ) from None
        key = ".".join(str(part) for part in first["loc"])
        allowed = ", ".join(field.alias or key for key, field in ClusterProfile.model_fields.items())
        where = f"{key}: " if key else ""
        raise UsageError(f"--cluster-file {path}: {where}{reason(first)}; allowed: {allowed}") from None
