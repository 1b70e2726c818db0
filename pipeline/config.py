"""Configuration: frozen, typed, unknown keys refused, units in the names."""

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import toolz
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from pipeline.digests import value_digest
from pipeline.errors import UsageError
from pipeline.features.frontend import BY_KIND, Frontend
from pipeline.features.mfcc import Mfcc
from pipeline.kinds import ByKind
from pipeline.settings import MAX_COUNT, Settings, reason, shown
from pipeline.yaml_file import YamlError, parse, read_yaml

Fraction = Annotated[float, Field(ge=0, le=1)]


class SplitConfig(Settings):
    """Fractions of each language's duration."""

    train: Fraction = 0.70
    validation: Fraction = 0.15
    test: Fraction = 0.15

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1) or self.train == 0:
            raise ValueError(f"train, validation and test must sum to 1 with train above 0; they sum to {total:g}")
        return self


class StoreConfig(Settings):
    """The shape of what is stored."""

    timesteps: Annotated[int, Field(ge=1, le=10_000)] = 20
    sequences_per_chunk: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 256
    chunks_per_shard: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 16
    mantissa_bits: Annotated[int, Field(ge=1, le=23)] | None = None

    @property
    def sequences_per_shard(self) -> int:
        """Sequences in a shard, the unit of work."""
        return self.sequences_per_chunk * self.chunks_per_shard


class PipelineConfig(Settings):
    """All that decides what a store holds, and nothing else."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 1
    features: Annotated[Frontend, BY_KIND] = Mfcc()
    split: SplitConfig = SplitConfig()
    store: StoreConfig = StoreConfig()

    @property
    def config_hash(self) -> str:
        """Digest of the settings that the store's bytes depend on."""
        return value_digest(self.model_dump(mode="json", include=set(PipelineConfig.model_fields)))


class CorpusConfig(Settings):
    """Which recordings are accepted.

    Scan refuses sample rates below `min_sample_rate_hz`; recordings that are in a manifest already stay as they are.
    Extraction marks the sequences of recordings without sound as invalid if `silent` is `filter`.
    """

    min_sample_rate_hz: int = Field(default=4_000, ge=1)
    silent: Literal["keep", "filter"] = "keep"


class DemoConfig(Settings):
    """Size and seed of the demo's corpus; the defaults make one hour."""

    seed: int = Field(default=1, ge=0)
    speakers_per_language: int = Field(default=20, ge=1, le=100)
    utterances_per_speaker: int = Field(default=10, ge=1, le=1000)
    utterance_s: float = Field(default=6.0, ge=0.2, le=60.0)


Model = TypeVar("Model", bound=BaseModel)


def load(schema: type[Model], file: Path | None, overrides: Iterable[str]) -> Model:
    """Read a configuration: defaults, then the YAML `file`, then `key.sub=value` overrides.

    A section without keys is as one that is not given. Raises UsageError with the key, the value and what is allowed.
    """
    defaults = schema().model_dump()
    layers = [{} if file is None else _read(file), *map(_read_override, overrides)]
    settings = _merged(defaults, reduce(_merged, [_without_empty(layer, defaults) for layer in layers]))
    try:
        return schema.model_validate(settings)
    except ValidationError as error:
        raise UsageError(_explain(schema, settings, error)) from None


def _read(file: Path) -> Mapping[str, Any]:
    content = read_yaml(file, "--config") or {}
    if not isinstance(content, Mapping):
        raise UsageError(f"--config {file}: expected keys and values at the top, not {shown(content)}")
    return content


def _read_override(override: str) -> Mapping[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {override}: write it as key.sub=value, for example --set features.n_mfcc=20")
    try:
        settings: Mapping[str, Any] = toolz.assoc_in({}, key.split("."), parse(text))
    except YamlError as error:
        raise UsageError(f"--set {override}: the value {error}") from None
    return settings


def _without_empty(layer: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return `layer` without the sections that have no keys, which YAML reads as null."""
    return {
        key: value for key, value in layer.items() if value is not None or not isinstance(defaults.get(key), Mapping)
    }


def _merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return `lower` with the values of `upper`, mapping by mapping.

    The settings of one `kind` do not apply to another: an `upper` of another kind replaces `lower`.
    """
    same_kind = "kind" not in lower or "kind" not in upper or lower["kind"] == upper["kind"]
    merged = dict(lower) if same_kind else {}
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(schema: type[BaseModel], settings: Mapping[str, Any], error: ValidationError) -> str:
    """Return one line for the first error, and the number of further errors."""
    first, *others = error.errors()
    key = ".".join(str(part) for part in first["loc"]) or "configuration"
    value = "" if isinstance(first["input"], Mapping) else f" = {shown(first['input'])}"
    more = f" (and {len(others)} more)" if others else ""
    return f"{key}{value}: {_reason(schema, settings, first)}{more}"


def _reason(schema: type[BaseModel], settings: Mapping[str, Any], error: ErrorDetails) -> str:
    """Return what is wrong with a value, or which keys are allowed in its place."""
    kind, location = error["type"], error["loc"]
    if kind == "extra_forbidden":
        allowed = ", ".join(_section_at(schema, settings, location).model_fields)
        return f"there is no such key; allowed here: {allowed}"
    if kind == "finite_number":
        fields = getattr(_section_at(schema, settings, location), "model_fields", {})  # a list has none
        field = fields.get(str(location[-1]))
        return f"{reason(error)}{', or null for none' if field and NoneType in get_args(field.annotation) else ''}"
    return reason(error)


def _section_at(schema: type[BaseModel], settings: Mapping[str, Any], location: tuple[int | str, ...]) -> Any:
    """Return the class of the section that holds the last part of `location`."""
    section: Any = schema
    for part in location[:-1]:
        settings = settings[str(part)]
        section = _section(section, str(part), settings)
    return section


def _section(parent: Any, key: str, settings: Mapping[str, Any]) -> Any:
    """Return the type of the section `key` in `parent`, a class of settings or a mapping from names to settings."""
    if isinstance(parent, type) and issubclass(parent, BaseModel):
        annotation, metadata = parent.model_fields[key].annotation, parent.model_fields[key].metadata
    else:
        annotation, *metadata = get_args(get_args(parent)[1])
    for item in metadata:
        if isinstance(item, ByKind):
            return item.class_of(settings)
    return annotation
