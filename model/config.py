"""Settings of the models and of promotion: frozen, typed, unknown keys refused."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]


class ModelConfig(BaseModel):
    """Settings that every kind of model has; a subclass per kind adds its own.

    `batch_size` counts what the model classifies: frames or sequences. Training ends after `max_epochs` epochs, or
    after `patience` epochs without a lower validation loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    batch_size: Count
    max_epochs: Count
    patience: Count = 3
    learning_rate: Annotated[float, Field(gt=0)] = 0.001
    balance_labels: bool = True


class PromotionConfig(BaseModel):
    """Conditions under which a trained model replaces the champion.

    Its macro F1 over the test recordings must exceed the champion's by more than `min_gain`, also in at least the
    fraction `confidence` of resamples of the speakers; with `confidence` 0 resamples are not considered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "lstm"
    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.9
