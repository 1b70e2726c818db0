"""Cluster profiles: how to start the Dask cluster that a name in cluster.yaml stands for."""

import importlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.errors import UsageError


class ClusterProfile(BaseModel):
    """A cluster class and its arguments, in the form of dask-ctl's cluster specifications."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    module: str = "dask.distributed"
    class_: str = Field("LocalCluster", alias="class")
    kwargs: Mapping[str, Any] = {}

    def start(self, workers: int) -> AbstractContextManager[Any]:
        """Start the cluster with `workers` workers; leaving the context stops it."""
        try:
            cluster_class = getattr(importlib.import_module(self.module), self.class_)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"--cluster: {self.module}.{self.class_} is not there: {error}; install it") from error
        cluster: AbstractContextManager[Any] = cluster_class(n_workers=workers, **self.kwargs)
        return cluster


DEFAULT_FILE = Path(__file__).parent.parent / "cluster.yaml"


def load_profile(name: str, file: Path | None) -> ClusterProfile:
    """Return the profile `name` of `file` (by default the cluster.yaml of this project)."""
    path = file or DEFAULT_FILE
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        profiles = TypeAdapter(dict[str, ClusterProfile]).validate_python(content)
    except OSError as error:
        raise UsageError(f"--cluster-file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--cluster-file {path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"--cluster-file {path}: {key}: {first['msg']}; allowed: module, class, kwargs") from None
    if name not in profiles:
        raise UsageError(f"--cluster {name}: no such profile in {path}; there are: {', '.join(profiles)}")
    return profiles[name]
