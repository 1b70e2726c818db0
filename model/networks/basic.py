"""The two networks of the 2018 experiment: a per-frame baseline and an LSTM."""

from typing import Any, Literal

from model.config import Count, ModelConfig


class AnnConfig(ModelConfig):
    """Frame classifier, the baseline: two hidden dense layers."""

    kind: Literal["ann"] = "ann"
    batch_size: Count = 2000
    max_epochs: Count = 10
    hidden_units: tuple[Count, Count] = (128, 128)


def ann(x: Any, config: AnnConfig) -> Any:
    """Return the hidden representation (batch, hidden_units[1]) of frames `x` (batch, feature)."""
    import keras

    for units in config.hidden_units:
        x = keras.layers.Dense(units, activation="relu")(x)
    return x


class LstmConfig(ModelConfig):
    """Sequence classifier: an LSTM whose outputs at all timesteps are flattened."""

    kind: Literal["lstm"] = "lstm"
    batch_size: Count = 100
    max_epochs: Count = 20
    units: Count = 100


def lstm(x: Any, config: LstmConfig) -> Any:
    """Return the LSTM's outputs (batch, timestep × units) for sequences `x` (batch, timestep, feature)."""
    import keras

    x = keras.layers.LSTM(config.units, return_sequences=True)(x)  # (batch, timestep, units)
    return keras.layers.Flatten()(x)  # (batch, timestep × units)
