"""Cluster profiles: how to come by the Dask cluster that a name in cluster.yaml stands for."""

import importlib
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL
from typing import Annotated, Any, Final, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipeline.errors import PipelineError, UsageError, first_cause, in_one_line

WORKING_FILE: Final = Path("cluster.yaml")
DEFAULT_FILE: Final = Path(__file__).with_name("cluster.yaml")
"""The profiles that come with the package; in a checkout a link to the cluster.yaml at its top."""

ADDRESS_VARIABLE: Final = "DASK_SCHEDULER_ADDRESS"
EXTRAS: Final = {"asyncssh": "ssh", "dask_jobqueue": "slurm", "dask_kubernetes": "kubernetes"}
"""Which extra of this project installs the package that a profile needs."""

CLOSE_TIMEOUT_S: Final = 10


class ClusterProfile(BaseModel):
    """A class that starts a cluster, as in dask-ctl's cluster specifications, or the address of one that runs.

    `client` goes to `distributed.Client`, `security` to `distributed.Security`, `adaptive` to the cluster's `adapt`.
    With `ship_code` the workers are sent this package; else they must have it. An `address` of null stands for the
    environment's DASK_SCHEDULER_ADDRESS.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    def _one_or_the_other(self) -> Self:
        if self.runs_already and self.model_fields_set & {"module", "class_", "kwargs", "adaptive"}:
            raise ValueError("give either an address, or a class (module, class, kwargs, adaptive), not both")
        return self

    @property
    def runs_already(self) -> bool:
        """Whether the profile is the address of a cluster that somebody else started."""
        return "address" in self.model_fields_set

    def scheduler_address(self) -> str:
        """Return the address of the cluster that runs already; raises UsageError where none is given."""
        address = self.address or os.environ.get(ADDRESS_VARIABLE)
        if not address:
            raise UsageError(
                f"--cluster: the profile names no scheduler; write its address into the profile, or export "
                f"{ADDRESS_VARIABLE}=tcp://HOST:8786"
            )
        return address

    def start(self, workers: int | None, **arguments: Any) -> Any:
        """Start the cluster and return it.

        `workers` is their number where the user gave one; else the profile decides, and a local cluster has one a
        core. `arguments` are added to those of the profile.
        """
        start = self._class()
        arguments = {**self.kwargs, **arguments}
        counts = "n_workers" in inspect.signature(start).parameters
        if workers is not None and not counts:
            raise UsageError(f"--workers {workers}: {self} has no number of workers to set; its profile names them")
        if counts and self.class_ == "LocalCluster":
            arguments.setdefault("n_workers", os.cpu_count())
        if workers is not None:
            arguments["n_workers"] = workers
        try:
            cluster = start(**arguments)
        except Exception as error:  # each kind of cluster has libraries with errors of their own
            if self.class_ == "KubeCluster":
                _drop_half_started(start)
            raise self._explained(error) from error
        if self.class_ == "SSHCluster":
            cluster.sync(_let_them_print, cluster)
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
            raise UsageError(f"--cluster: the package {self.module} has no {self.class_}; mend the profile") from None
        return found

    def _explained(self, error: BaseException) -> PipelineError:
        """Return what was behind a failed start, in one line."""
        error = first_cause(error)
        if isinstance(error, ImportError):
            return self._missing(error)
        reason = in_one_line(error)
        if isinstance(error, TypeError):
            return UsageError(f"--cluster: {self} refuses its kwargs: {reason}")
        return PipelineError(f"--cluster: {self} did not start: {reason}")

    def _missing(self, error: ImportError) -> UsageError:
        extra = next((EXTRAS[name] for name in EXTRAS if name in f"{self.module} {error}"), None)
        remedy = f"pip install 'spoken-language-pipeline[{extra}]'" if extra else "install it, or mend the profile"
        return UsageError(f"--cluster: {self} needs a package that is not here ({error}): {remedy}")


def _drop_half_started(start: Callable[..., Any]) -> None:
    """Delete what a failed start left in Kubernetes; else Python tries it when it ends, and prints a traceback."""
    logging.getLogger("dask_kubernetes").setLevel(logging.ERROR)  # it warns of what there never was
    for cluster in list(getattr(start, "_instances", ())):
        with suppress(Exception):  # there may be nothing to delete, or nobody who answers
            cluster.close(timeout=CLOSE_TIMEOUT_S)
        cluster.shutdown_on_close = False


async def _let_them_print(cluster: Any) -> None:
    """Discard what remote processes print: once they run, SSHCluster reads none of it, and a few MB block them."""
    for process in (cluster.scheduler, *cluster.workers.values()):
        await process.proc.redirect(stdout=DEVNULL, stderr=DEVNULL)


def load_profile(name: str, file: Path | None) -> ClusterProfile:
    """Return the profile `name` of `file`, by default of ./cluster.yaml or, if that has none, of the package's."""
    files = [file] if file else [path for path in (WORKING_FILE, DEFAULT_FILE) if path.exists()]
    names: list[str] = []
    for path in files:
        profiles = _read_profiles(path)
        if name in profiles:
            return profiles[name]
        names += [other for other in profiles if other not in names]
    places = " or ".join(str(path) for path in files)
    raise UsageError(f"--cluster {name}: no such profile in {places}; there are: {', '.join(names)}")


def _read_profiles(path: Path) -> dict[str, ClusterProfile]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, ClusterProfile]).validate_python(content)
    except OSError as error:
        raise UsageError(f"--cluster-file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--cluster-file {path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        allowed = ", ".join(field.alias or key for key, field in ClusterProfile.model_fields.items())
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"--cluster-file {path}: {key}: {message}; allowed: {allowed}") from None
