"""The kinds of models, chosen by the key `kind` in the settings of a model.

A kind consists of a settings class and a function that builds its hidden layers. Both are in one file of this
package, which must not import Keras at its top: settings are validated before TensorFlow is loaded. `KINDS` registers
the kind in one line. For example, model/networks/gru.py:

    from typing import Any, Literal

    from model.config import Count, ModelConfig


    class GruConfig(ModelConfig):
        kind: Literal["gru"] = "gru"
        batch_size: Count = 100
        max_epochs: Count = 20
        units: Count = 100


    def gru(x: Any, config: GruConfig) -> Any:
        import keras

        return keras.layers.GRU(config.units)(x)  # (batch, units)

and in `KINDS`:

    "gru": Kind(GruConfig, gru),

`build.build` adds what all networks share: normalisation before these layers, the output layer after them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from model.config import ModelConfig
from model.networks.basic import AnnConfig, LstmConfig, ann, lstm
from pipeline.schema import AS_OF


@dataclass(frozen=True)
class Kind:
    """A kind of model and how it is trained.

    `network(x, config)` maps normalised features to a hidden representation (batch, width). `x` is a Keras tensor:
    (batch, feature) if `level` is "frame", (batch, timestep, feature) if it is "sequence". `optimizer` is the name of
    a class in keras.optimizers. `jit_compile` is passed to keras.Model.compile.
    """

    config: type[ModelConfig]
    network: Callable[[Any, Any], Any]
    level: Literal["frame", "sequence"] = "sequence"
    optimizer: str = "Adam"
    jit_compile: bool | Literal["auto"] = "auto"


KINDS: Final[dict[str, Kind]] = {
    "ann": Kind(AnnConfig, ann, level="frame"),
    # compiled by XLA, a step takes longer, and the first one waits for seconds
    "lstm": Kind(LstmConfig, lstm, optimizer="RMSprop", jit_compile=False),
}

NAME = re.compile(rf"(?!\.|{re.escape(AS_OF)})[A-Za-z0-9_.-]+")
"""What a model may be called: the name of a folder that is neither hidden nor mistaken for an evaluation as of a
date."""


def _named(models: Any) -> Any:
    """Check the names of the models, and leave out those that are null."""
    if not isinstance(models, Mapping):
        return models
    for name, settings in models.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise _refusal(
                "a model's name consists of letters, digits, '_', '-' and '.', and does not begin with '.' or "
                f"{AS_OF!r}",
                str(name), settings,
            )  # fmt: skip
    return {name: settings for name, settings in models.items() if settings is not None}


def _of_kind(settings: Any) -> ModelConfig:
    """Validate the settings of one model by the class of their kind."""
    if isinstance(settings, ModelConfig):
        return settings
    choices = ", ".join(KINDS)
    if not isinstance(settings, Mapping):
        raise ValueError(f"expected the settings of a model, or null; kind is one of {choices}")
    if "kind" not in settings:
        raise ValueError(f"kind is missing; a new model needs one of {choices}")
    kind = settings["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise _refusal(f"there is no such kind; choose one of {choices}", "kind", kind)
    config = KINDS[kind].config
    for key in settings:
        if key not in config.model_fields:
            allowed = ", ".join(config.model_fields)
            raise _refusal(f"there is no such key; allowed for kind {kind}: {allowed}", str(key), settings[key])
    return config.model_validate(settings)


def _refusal(message: str, key: str, value: Any) -> ValidationError:
    """Return an error at `key`; pydantic prepends the keys above it."""
    error = PydanticCustomError("model", "{message}", {"message": message})
    return ValidationError.from_exception_data("model", [InitErrorDetails(type=error, loc=(key,), input=value)])


Models = Annotated[
    Mapping[str, Annotated[SerializeAsAny[ModelConfig], BeforeValidator(_of_kind)]], BeforeValidator(_named)
]
"""Settings of the models by name. Each is validated by the class of its kind; a model that is null is left out."""

DEFAULT_MODELS: Final[Models] = {"ann": AnnConfig(), "lstm": LstmConfig()}
