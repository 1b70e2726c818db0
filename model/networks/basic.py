"""The two networks of the 2018 experiment: a per-frame baseline and an LSTM."""

from typing import Any, Literal

from model.config import Count, ModelConfig


class Ann(ModelConfig):
    """Frame classifier, the baseline: two hidden dense layers."""

    level = "frame"

    kind: Literal["ann"] = "ann"
    batch_size: Count = 2000
    max_epochs: Count = 10
    hidden_units: tuple[Count, Count] = (128, 128)

    def network(self, x: Any) -> Any:
        """Return (batch, hidden_units[1]) for frames (batch, feature)."""
        import keras

        for units in self.hidden_units:
            x = keras.layers.Dense(units, activation="relu")(x)
        return x


class Lstm(ModelConfig):
    """Sequence classifier: an LSTM whose outputs at all timesteps are flattened."""

    optimizer = "RMSprop"
    jit_compile = False  # with XLA a step takes longer, and the first one takes seconds

    kind: Literal["lstm"] = "lstm"
    batch_size: Count = 100
    max_epochs: Count = 20
    units: Count = 100

    def network(self, x: Any) -> Any:
        """Return (batch, timestep × units) for sequences (batch, timestep, feature)."""
        import keras

        x = keras.layers.LSTM(self.units, return_sequences=True)(x)  # (batch, timestep, units)
        return keras.layers.Flatten()(x)  # (batch, timestep × units)
