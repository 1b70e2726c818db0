"""Name the language of recordings: `python -m model.predict MODEL AUDIO…`."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at once and without a traceback: there is nothing to clean up

import click
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from rich.table import Column, Table
from upath import UPath

from model.bundle import DESCRIPTION, FILES, NETWORK, Bundle, ModelFiles
from model.registry import registry
from model.tensorflow_setup import load_tensorflow
from pipeline import environment
from pipeline.errors import PipelineError, UsageError
from pipeline.features.audio import AudioError, Blocks, DecodersDisagreeError, read_blocks, read_header
from pipeline.features.audio_source import AudioSource
from pipeline.features.frontend import BY_KIND, Frontend
from pipeline.storage import folder_at, reaching

MIN_SAMPLE_RATE_HZ = 4_000
"""As the default of corpus.min_sample_rate_hz."""
MAX_FRAMES = 2**15
"""Frames that are classified at a time: 5 minutes with a hop of 10 ms."""


@dataclass(frozen=True)
class Classifier:
    """A trained model with the settings of the features that it takes."""

    bundle: Bundle
    features: Frontend

    @classmethod
    def load(cls, model: str | os.PathLike[str]) -> Self:
        """Load the folder models/NAME (or the model.keras in it), or the champion of the folder OUT/registry.

        `model` is a path or a URL. Raises UsageError if there is no complete model, and PipelineError if its server
        does not answer.
        """
        place = folder_at(os.fspath(model))
        with reaching(place, "MODEL"):
            try:
                return cls._read(_folder_of(place))
            except UsageError:
                raise
            except PipelineError as error:
                raise UsageError(f"MODEL {error}") from None

    @classmethod
    def _read(cls, folder: UPath) -> Self:
        """Load a complete model from its folder."""
        for file in FILES:
            if not (folder / file).exists():
                raise UsageError(f"MODEL {folder / file} is missing; give a folder like OUT/models/lstm")
        files = ModelFiles.read(folder)
        try:
            features = BY_KIND.validate(files.description.features)
        except ValidationError:
            raise UsageError(
                f"MODEL {folder / DESCRIPTION}: its features are not those of this version; run train again"
            ) from None
        load_tensorflow()
        return cls(Bundle.of(files), features)

    def probabilities(self, uri: str) -> NDArray[np.float64]:
        """Return the probability of each label for one recording: (label,) float64, with sum 1; see `predict`."""
        return self.predict(uri)[0]

    def predict(self, uri: str) -> tuple[NDArray[np.float64], str]:
        """Return the probability of each label, (label,) float64 with sum 1, and why audio is missing, or "".

        As in evaluation, it is the mean log posterior over the recording's sequences, normalised. Memory does not grow
        with the recording. Raises AudioError if the recording cannot be read, is shorter than one sequence or holds no
        sound.
        """
        source = AudioSource(uri)
        rate_hz = read_header(source).sample_rate_hz
        if rate_hz < MIN_SAMPLE_RATE_HZ:
            raise AudioError(f"its header names a sample rate of {rate_hz} Hz, below {MIN_SAMPLE_RATE_HZ} Hz")
        try:
            return self._predict(source, careful=False)
        except DecodersDisagreeError:
            return self._predict(source, careful=True)

    def _predict(self, source: AudioSource, *, careful: bool) -> tuple[NDArray[np.float64], str]:
        readings: list[Blocks] = []

        def read() -> Blocks:
            readings.append(read_blocks(source, self.features.sample_rate_hz, careful=careful))
            return readings[-1]

        timesteps = self.bundle.description.timesteps
        total, steps = np.zeros(len(self.bundle.description.labels)), 0
        for sequences in _sequences(self.features.stream(read)[1], timesteps):
            posteriors = self.bundle.log_posteriors(sequences)  # (sequence, step, label)
            total += posteriors.sum(axis=(0, 1))
            steps += posteriors.shape[0] * posteriors.shape[1]
        loss = next((blocks.loss for blocks in readings if blocks.loss), "")
        if not steps:
            shortest = f"shorter than one sequence of {timesteps * self.features.hop_s:g} s"
            raise AudioError(f"{shortest}: {loss}" if loss else shortest)
        if silence := readings[0].silence:
            raise AudioError(f"no speech: {silence}")
        mean = total / steps
        weights = np.exp(mean - mean.max())
        posterior: NDArray[np.float64] = weights / weights.sum()
        return posterior, loss


def _sequences(blocks: Iterator[NDArray[np.float32]], timesteps: int) -> Iterator[NDArray[np.float32]]:
    """Yield (frame, feature) blocks as (sequence, timestep, feature), up to MAX_FRAMES at a time."""
    held: list[NDArray[np.float32]] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) >= MAX_FRAMES:
            frames = np.concatenate(held)
            count = len(frames) // timesteps
            yield frames[: count * timesteps].reshape(count, timesteps, -1)
            held = [frames[count * timesteps :].copy()]
    frames = np.concatenate(held) if held else np.zeros((0, 1), np.float32)
    if count := len(frames) // timesteps:
        yield frames[: count * timesteps].reshape(count, timesteps, -1)


def _folder_of(place: UPath) -> UPath:
    """Return the folder of the model at `place`; raises UsageError if a registry has no champion."""
    folder = place.parent if place.name == NETWORK else place
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
Exit codes: 0 success; 1 a file could not be read, or the model's server did not answer (reported on stderr); 2 wrong
usage.
"""


class _Name(click.ParamType[str]):
    name = "path or URL"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse an empty name, which stands for the working folder."""
        return value if value.strip() else self.fail("it is empty", param, ctx)


@click.command(epilog=EPILOG)
@click.argument("model", type=_Name())
@click.argument("audio", type=_Name(), nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
def main(model: str, audio: tuple[str, ...], as_json: bool) -> None:
    """Name the language of each recording AUDIO with MODEL: a folder like OUT/models/lstm, or OUT/registry.

    Both may be paths or URLs.
    """
    environment.open_standard_streams()
    try:
        environment.check()
        classifier = Classifier.load(model)
    except PipelineError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    rows, failed = [], False
    for file in audio:
        try:
            probabilities, loss = classifier.predict(file)
            rows.append(_row(classifier.bundle.description.labels, file, probabilities))
            if loss:
                click.echo(f"{file}: {loss}; the language is that of the audio that was read", err=True)
        except AudioError as error:
            failed = True
            click.echo(f"{file}: {error}", err=True)
        except PipelineError as error:
            click.echo(f"MODEL {model}: {error}", err=True)
            sys.exit(UsageError.exit_code)
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False))
    elif rows:
        _show(rows)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
