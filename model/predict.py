"""Naming the language of recordings: `python -m model.predict MODEL AUDIO…`."""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from model.tensorflow_setup import load_tensorflow
from pipeline.config import FeatureConfig
from pipeline.errors import UsageError
from pipeline.features.audio import AudioError, read_blocks
from pipeline.features.mfcc import mfcc

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """A trained network with what it needs to take a recording."""

    network: "keras.Model"
    labels: tuple[str, ...]
    timesteps: int
    features: FeatureConfig

    @classmethod
    def load(cls, path: Path) -> "Classifier":
        """Load the folder models/NAME, its model.keras, or the champion of OUT/registry.

        Raises UsageError where there is none.
        """
        path = _champion(path) if (path / "registry.json").exists() else path
        folder = path if path.is_dir() else path.parent
        model_file = folder / "model.keras" if path.is_dir() else path
        for needed in (model_file, folder / "labels.json"):
            if not needed.exists():
                raise UsageError(f"MODEL {path}: {needed} is missing; give a folder like OUT/models/lstm")
        load_tensorflow()
        import keras  # noqa: PLC0415 loading takes seconds, and wrong usage should be told at once

        try:
            description = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
            labels, timesteps = tuple(description["labels"]), int(description["timesteps"])
            features = FeatureConfig.model_validate(description["features"])
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"MODEL {folder / 'labels.json'} is damaged; run train again") from None
        try:
            network = keras.saving.load_model(model_file, compile=False)
        except (ValueError, OSError) as error:
            raise UsageError(f"MODEL {model_file} is not a Keras model: {' '.join(str(error).split())}") from None
        return cls(network, labels, timesteps, features)

    def probabilities(self, uri: str) -> NDArray[np.float64]:
        """Return the probability of each label for one recording: (label,) float64, of sum 1.

        The mean log posterior over the recording's sequences, as evaluation has it. Raises AudioError for a
        recording that cannot be read or is shorter than one sequence.
        """
        from model.evaluate import log_posteriors  # noqa: PLC0415 as above

        frames = mfcc(read_blocks(uri, self.features.sample_rate_hz), self.features).mfcc
        sequences = len(frames) // self.timesteps
        if not sequences:
            raise AudioError(f"shorter than one sequence of {self.timesteps * self.features.hop_s:g} s")
        features = frames[: sequences * self.timesteps].reshape(sequences, self.timesteps, -1)
        mean = log_posteriors(self.network, features).mean(axis=(0, 1))  # (label,)
        weights = np.exp(mean - mean.max())
        posterior: NDArray[np.float64] = weights / weights.sum()
        return posterior


def _champion(registry: Path) -> Path:
    """Return the folder of the model that serves; raises UsageError where none does."""
    try:
        version = json.loads((registry / "registry.json").read_text(encoding="utf-8"))["champion"]
        champion: Path | None = None if version is None else registry / version
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"MODEL {registry / 'registry.json'} is damaged") from None
    if champion is None:
        raise UsageError(f"MODEL {registry}: no model has been promoted yet; give a folder like OUT/models/lstm")
    return champion


def _describe(labels: tuple[str, ...], file: str, probabilities: NDArray[np.float64]) -> dict[str, Any]:
    best, second = np.argsort(-probabilities, kind="stable")[:2].tolist()
    return {
        "file": file,
        "language": labels[best],
        "probability": round(float(probabilities[best]), 6),
        "runner_up": labels[second],
        "runner_up_probability": round(float(probabilities[second]), 6),
        "probabilities": {label: round(float(p), 6) for label, p in zip(labels, probabilities, strict=True)},
    }


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(Column("file", overflow="fold"), "language", "probability", "runner-up", box=None, pad_edge=False)
    for row in rows:
        runner_up = f"{row['runner_up']} {row['runner_up_probability']:.1%}"
        table.add_row(row["file"], row["language"], f"{row['probability']:.1%}", runner_up)
    # a file or a pipe has no width to keep to
    Console(width=None if sys.stdout.isatty() else 10_000, markup=False, highlight=False).print(table)


EPILOG = """
\\b
Examples:
  python -m model.predict out/demo/models/lstm recording.wav
  python -m model.predict out/demo/models/lstm *.flac --json
  python -m model.predict out/demo/registry recording.wav

\\b
Exit codes: 0 all files named; 1 some file could not be read (told on stderr); 2 wrong usage.
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("audio", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
def main(model: Path, audio: tuple[str, ...], as_json: bool) -> None:
    """Name the language of each recording AUDIO with MODEL: a folder like OUT/models/lstm, or OUT/registry."""
    try:
        classifier = Classifier.load(model)
    except UsageError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    rows, failed = [], False
    for file in audio:
        try:
            rows.append(_describe(classifier.labels, file, classifier.probabilities(file)))
        except AudioError as error:
            failed = True
            click.echo(f"{file}: {error}", err=True)
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    elif rows:
        _show(rows)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
