"""Name the language of recordings: `python -m model.predict MODEL AUDIO…`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from rich.table import Column, Table
from upath import UPath

from model.bundle import DESCRIPTION, FILES, NETWORK, Bundle, Description
from model.registry import registry
from model.tensorflow_setup import load_tensorflow
from pipeline.errors import PipelineError, UsageError
from pipeline.features.audio import AudioError, read_blocks
from pipeline.features.audio_source import AudioSource
from pipeline.features.frontend import BY_KIND, Frontend


@dataclass(frozen=True)
class Classifier:
    """A trained model with the settings of the features that it takes."""

    bundle: Bundle
    features: Frontend

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load the folder models/NAME (or the model.keras in it), or the champion of the folder OUT/registry.

        Raises UsageError if there is no complete model.
        """
        folder = _folder_of(path)
        for file in FILES:
            if not (folder / file).exists():
                raise UsageError(f"MODEL {folder / file} is missing; give a folder like OUT/models/lstm")
        try:
            features = BY_KIND.validate(Description.read(folder).features)
            load_tensorflow()
            return cls(Bundle.load(folder), features)
        except ValidationError:
            raise UsageError(
                f"MODEL {folder / DESCRIPTION}: its features are not those of this version; run train again"
            ) from None
        except PipelineError as error:
            raise UsageError(f"MODEL {error}") from None

    def probabilities(self, uri: str) -> NDArray[np.float64]:
        """Return the probability of each label for one recording: (label,) float64, with sum 1.

        As in evaluation, it is the mean log posterior over the recording's sequences, normalised. Raises AudioError
        if the recording cannot be read or is shorter than one sequence.
        """
        frames = self.features.extract(read_blocks(AudioSource(uri), self.features.sample_rate_hz)).values
        timesteps = self.bundle.description.timesteps
        sequences = len(frames) // timesteps
        if not sequences:
            raise AudioError(f"shorter than one sequence of {timesteps * self.features.hop_s:g} s")
        features = frames[: sequences * timesteps].reshape(sequences, timesteps, -1)
        mean = self.bundle.log_posteriors(features).mean(axis=(0, 1))  # (label,)
        weights = np.exp(mean - mean.max())
        posterior: NDArray[np.float64] = weights / weights.sum()
        return posterior


def _folder_of(path: Path) -> UPath:
    """Return the folder of the model that `path` names; raises UsageError if a registry has no champion."""
    folder = UPath(path.parent if path.name == NETWORK else path)
    if not registry.is_registry(folder):
        return folder
    champion = registry.champion_folder(folder)
    if champion is None:
        raise UsageError(f"MODEL {folder}: no model has been promoted yet; give a folder like OUT/models/lstm")
    return champion


def _row(labels: tuple[str, ...], file: str, probabilities: NDArray[np.float64]) -> dict[str, Any]:
    """Return the JSON object for one recording."""
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
    """Print the rows as a table."""
    table = Table(Column("file", overflow="fold"), "language", "probability", "runner-up", box=None, pad_edge=False)
    for row in rows:
        runner_up = f"{row['runner_up']} {row['runner_up_probability']:.1%}"
        table.add_row(row["file"], row["language"], f"{row['probability']:.1%}", runner_up)
    # a file or a pipe has no width limit
    Console(width=None if sys.stdout.isatty() else 10_000, markup=False, highlight=False).print(table)


EPILOG = """
\b
Examples:
  python -m model.predict out/demo/models/lstm recording.wav
  python -m model.predict out/demo/models/lstm *.flac --json
  python -m model.predict out/demo/registry recording.wav

\b
Exit codes: 0 success; 1 a file could not be read (reported on stderr); 2 wrong usage.
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
            rows.append(_row(classifier.bundle.description.labels, file, classifier.probabilities(file)))
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
