"""Settings of the models, their training and their promotion: frozen, typed, unknown keys refused."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]


class TrainingConfig(BaseModel):
    """What training any model needs; `batch_size` counts what the model classifies: frames or sequences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: Count
    max_epochs: Count
    patience: Count = 3
    learning_rate: Annotated[float, Field(gt=0)] = 0.001
    balance_labels: bool = True


class AnnConfig(TrainingConfig):
    """The classifier of single frames that a sequence model has to beat: three dense layers, Adam."""

    batch_size: Count = 2000
    max_epochs: Count = 10
    hidden_units: Annotated[tuple[Count, Count], Field()] = (128, 128)


class LstmConfig(TrainingConfig):
    """The classifier of sequences: LSTM over all timesteps, flattened, one dense layer, RMSprop."""

    batch_size: Count = 100
    max_epochs: Count = 20
    units: Count = 100


ModelConfig = AnnConfig | LstmConfig


class ModelsConfig(BaseModel):
    """The models to train, by name; null leaves one out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ann: AnnConfig | None = AnnConfig()
    lstm: LstmConfig | None = LstmConfig()

    def chosen(self) -> dict[str, ModelConfig]:
        """Return the models to train by name, in the order of training."""
        settings: dict[str, ModelConfig | None] = {"ann": self.ann, "lstm": self.lstm}
        return {name: config for name, config in settings.items() if config is not None}


class PromotionConfig(BaseModel):
    """Which model may take the place of the one that serves, and how much better it has to be.

    Its macro F1 over the test recordings must be higher by more than `min_gain`, and that in at least the fraction
    `confidence` of resamples of the speakers, too; 0 asks for no such proof.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal["ann", "lstm"] = "lstm"
    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.9
