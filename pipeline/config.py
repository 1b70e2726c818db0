"""Configuration: frozen, typed, unknown keys refused, units in the names."""

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import toolz
import xxhash
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UsageError

Fraction = Annotated[float, Field(ge=0, le=1)]


class FeatureConfig(BaseModel):
    """MFCC parameters, with librosa's names and the unit in the key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rate_hz: Annotated[int, Field(ge=1000, le=192_000)] = 16_000
    window_s: Annotated[float, Field(gt=0, le=1)] = 0.025
    hop_s: Annotated[float, Field(gt=0, le=1)] = 0.010
    n_mels: Annotated[int, Field(ge=1, le=512)] = 128
    n_mfcc: Annotated[int, Field(ge=1, le=512)] = 40
    fmin_hz: Annotated[float, Field(ge=0)] = 0.0
    fmax_hz: float | None = None
    top_db: Annotated[float, Field(gt=0)] | None = 80.0
    center: bool = True

    @property
    def n_fft(self) -> int:
        """Samples in a window, which is also the length of the Fourier transform."""
        return round(self.window_s * self.sample_rate_hz)

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""
        return round(self.hop_s * self.sample_rate_hz)

    def frames(self, samples: int) -> int:
        """Return how many frames librosa makes of `samples` samples."""
        padding = 2 * (self.n_fft // 2) if self.center else 0
        return max(0, 1 + (samples + padding - self.n_fft) // self.hop_length) if samples else 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n_mfcc > self.n_mels:
            raise ValueError(f"n_mfcc {self.n_mfcc} must not be larger than n_mels {self.n_mels}")
        if self.hop_length < 1 or self.n_fft <= 1:
            raise ValueError("window_s must hold at least 2 samples and hop_s at least 1")
        if not math.isclose(self.hop_s * self.sample_rate_hz, self.hop_length, rel_tol=1e-6):
            nearest_s = self.hop_length / self.sample_rate_hz
            raise ValueError(f"hop_s {self.hop_s} is not a whole number of samples; the nearest is {nearest_s:.9g}")
        if self.fmax_hz is not None and not self.fmin_hz < self.fmax_hz <= self.sample_rate_hz / 2:
            raise ValueError(f"fmax_hz {self.fmax_hz} must lie between fmin_hz and half of sample_rate_hz")
        if not self.fmin_hz < self.sample_rate_hz / 2:
            raise ValueError(f"fmin_hz {self.fmin_hz} must lie below half of sample_rate_hz")
        return self


class SplitConfig(BaseModel):
    """Fractions of each language's duration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Fraction = 0.70
    validation: Fraction = 0.15
    test: Fraction = 0.15

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1) or self.train == 0:
            raise ValueError(f"train, validation and test must sum to 1 with train above 0; they sum to {total:g}")
        return self


class StoreConfig(BaseModel):
    """The shape of what is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timesteps: Annotated[int, Field(ge=1, le=10_000)] = 20
    sequences_per_chunk: Annotated[int, Field(ge=1)] = 256
    chunks_per_shard: Annotated[int, Field(ge=1)] = 16
    mantissa_bits: Annotated[int, Field(ge=1, le=23)] | None = None

    @property
    def sequences_per_shard(self) -> int:
        """Sequences in a shard, the unit of work."""
        return self.sequences_per_chunk * self.chunks_per_shard


class PipelineConfig(BaseModel):
    """All that decides what a store holds, and nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 1
    features: FeatureConfig = FeatureConfig()
    split: SplitConfig = SplitConfig()
    store: StoreConfig = StoreConfig()

    @property
    def store_hash(self) -> str:
        """Digest of the settings that the store's bytes depend on."""
        return digest(self.model_dump(include=set(PipelineConfig.model_fields)))


class DemoConfig(BaseModel):
    """Size and seed of the demo's corpus; the defaults make one hour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=1, ge=0)
    speakers_per_language: int = Field(default=20, ge=1, le=100)
    utterances_per_speaker: int = Field(default=10, ge=1, le=1000)
    utterance_s: float = Field(default=6.0, ge=0.2, le=60.0)


def digest(value: Any) -> str:
    """Return a short stable digest of JSON-like data (dictionaries may come in any order)."""
    return xxhash.xxh3_128_hexdigest(yaml.safe_dump(value, sort_keys=True).encode())[:16]


Model = TypeVar("Model", bound=BaseModel)


def load(schema: type[Model], file: Path | None, overrides: Iterable[str]) -> Model:
    """Read a configuration: defaults, then the YAML `file`, then `key.sub=value` overrides.

    Raises UsageError with the key, the value and what is allowed.
    """
    layers: list[Mapping[str, Any]] = [schema().model_dump()]
    if file is not None:
        layers.append(_read_yaml(file))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {override}: write it as key.sub=value, for example --set features.n_mfcc=20")
        try:
            layers.append(toolz.assoc_in({}, key.split("."), yaml.safe_load(text)))
        except yaml.YAMLError:
            raise UsageError(f"--set {override}: the value is not YAML; quote it") from None
    try:
        return schema.model_validate(reduce(_merged, layers))
    except ValidationError as error:
        raise UsageError(_explain(schema, error)) from None


def _merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return `lower` with the values of `upper`, mapping by mapping."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _read_yaml(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise UsageError(f"--config {file}: expected keys and values at the top, not {content!r}")
    return content


def _explain(schema: type[BaseModel], error: ValidationError) -> str:
    """One line for the first thing wrong, and how many more there are."""
    first, *others = error.errors()
    key = ".".join(str(part) for part in first["loc"]) or "configuration"
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(_siblings(schema, first["loc"]))
        return f"{key} = {first['input']!r}: there is no such key; allowed here: {allowed}{more}"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if isinstance(first["input"], Mapping) else f" = {first['input']!r}"
    return f"{key}{value}: {message[0].lower()}{message[1:]}{more}"


def _siblings(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys that are allowed beside the last part of `location`."""
    for part in location[:-1]:
        annotation = schema.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        schema = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(schema.model_fields)
