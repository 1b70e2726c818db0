"""Settings of the models and of promotion: frozen, typed, unknown keys refused."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.settings import MAX_COUNT, Settings

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]


class ModelConfig(Settings, ABC):
    """A kind of model: its fields are the settings of one model, and `network` builds the layers that they describe.

    `batch_size` counts what the model classifies: frames or sequences. Training ends after `max_epochs` epochs, or
    after `patience` epochs without a lower validation loss.
    """

    level: ClassVar[Literal["frame", "sequence"]] = "sequence"
    """What the model classifies."""
    optimizer: ClassVar[str] = "Adam"
    """A class in keras.optimizers."""
    jit_compile: ClassVar[bool | Literal["auto"]] = "auto"
    """Whether XLA compiles the training step, as in keras.Model.compile."""

    kind: str
    batch_size: Count
    max_epochs: Count
    patience: Count = 3
    learning_rate: Annotated[float, Field(gt=0)] = 0.001
    balance_labels: bool = True

    @abstractmethod
    def network(self, x: Any) -> Any:
        """Return the hidden representation, a Keras tensor (batch, width), of normalised features `x`.

        `x` is a Keras tensor: (batch, feature) if `level` is "frame", (batch, timestep, feature) if it is "sequence".
        """


class PromotionConfig(Settings):
    """Conditions under which a trained model replaces the champion.

    Its macro F1 over the test recordings must exceed the champion's by more than `min_gain`, also in at least the
    fraction `confidence` of resamples of the speakers; with `confidence` 0 resamples are not considered.
    """

    model: str = "lstm"
    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.9
