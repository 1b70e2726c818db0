"""The kinds of models, and the settings of the models by name.

A kind is a subclass of ModelConfig in a file of this package. The file must not import Keras at its top, because
settings are validated before TensorFlow is loaded. For example, model/networks/gru.py:

    from typing import Any, Literal

    from model.config import Count, ModelConfig


    class Gru(ModelConfig):
        \"\"\"Sequence classifier: the last output of a GRU.\"\"\"

        kind: Literal["gru"] = "gru"
        batch_size: Count = 100
        max_epochs: Count = 20
        units: Count = 100

        def network(self, x: Any) -> Any:
            \"\"\"Return (batch, units) for sequences (batch, timestep, feature).\"\"\"
            import keras

            return keras.layers.GRU(self.units)(x)

One line in `KINDS` registers it. `build.build` adds the layers that all networks share: normalisation before the
layers of the kind, and the output layer after them.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from model.config import ModelConfig
from model.networks.basic import Ann, Lstm
from pipeline.kinds import ByKind, refusal
from pipeline.schema import AS_OF

KINDS: Final[dict[str, type[ModelConfig]]] = {
    "ann": Ann,
    "lstm": Lstm,
}
"""The kinds of models by the key `kind` of their settings."""

NAME = re.compile(rf"(?!\.|{re.escape(AS_OF)})[A-Za-z0-9_.-]+")
"""Names of models: they are names of folders, and distinct from those of evaluations as of a date."""


def _named(models: Any) -> Any:
    """Check the names of the models, and leave out those that are null."""
    if not isinstance(models, Mapping):
        return models
    for name, settings in models.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise refusal(
                "a model's name consists of letters, digits, '_', '-' and '.', and does not begin with '.' or "
                f"{AS_OF!r}",
                str(name), settings,
            )  # fmt: skip
    return {name: settings for name, settings in models.items() if settings is not None}


Models = Annotated[
    Mapping[str, Annotated[ModelConfig, ByKind("kind of model", KINDS, default=None)]], BeforeValidator(_named)
]
"""Settings of the models by name, without those that are null."""

DEFAULT_MODELS: Final[Models] = {"ann": Ann(), "lstm": Lstm()}
