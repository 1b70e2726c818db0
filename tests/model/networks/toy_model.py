"""A kind of model as somebody would add it: one file, which does not import Keras at its top."""

from typing import Any, Literal

from model.config import Count, ModelConfig


class Toy(ModelConfig):
    """Sequence classifier: one convolution over time, averaged."""

    kind: Literal["toy"] = "toy"
    batch_size: Count = 8
    max_epochs: Count = 4
    filters: Count = 6

    def network(self, x: Any) -> Any:
        """Return (batch, filters) for sequences (batch, timestep, feature)."""
        import keras

        x = keras.layers.Conv1D(self.filters, 2, activation="relu")(x)  # (batch, timestep - 1, filters)
        return keras.layers.GlobalAveragePooling1D()(x)  # (batch, filters)
