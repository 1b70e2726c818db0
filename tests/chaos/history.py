"""A history of commands on a corpus that grows and shrinks, and what each of them has to leave."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

RATE_HZ = 16_000
SETTINGS = (
    "--set=store.sequences_per_chunk=4", "--set=store.chunks_per_shard=2",
    "--set=models.ann.max_epochs=2", "--set=promotion.model=ann", "--set=promotion.confidence=0",
)  # fmt: skip
TIMINGS = ["wall_s", "steps_per_s", "input_wait"]
"""Columns of history.csv that no seed decides."""
UNSTABLE = {"at", "wall_s", "evaluated_at", "trained_at"}
"""Keys of JSON files that no seed decides."""


@dataclass(frozen=True)
class Step:
    """A command, and what happens to the corpus before it."""

    name: str
    stage: str
    options: tuple[str, ...] = ()
    added: str = ""
    """A language whose recordings are added."""
    deleted: str = ""
    """A pattern of recordings that are deleted."""

    @property
    def uses_workers(self) -> bool:
        """Whether the command runs tasks on a cluster."""
        return self.stage in ("scan", "extract", "compact")


HISTORY = (
    Step("scan", "scan"),
    Step("extract", "extract"),
    Step("scan of new recordings", "scan", added="fr"),
    Step("append", "extract"),
    Step("scan with --prune", "scan", ("--prune",), deleted="en/*/0.flac"),
    Step("masking", "extract"),
    Step("compact", "compact"),
    Step("train", "train"),
    Step("evaluate", "evaluate"),
    Step("report", "report"),
    Step("promote", "promote"),
)


@dataclass(frozen=True)
class Place:
    """A folder with the corpus of a history so far, and its output folder."""

    folder: Path
    speakers: int
    recordings: int

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def prepare(self, step: Step) -> None:
        """Change the corpus as it changes before `step`."""
        languages = ("de", "en") if step == HISTORY[0] else tuple(filter(None, [step.added]))
        for language in languages:
            self._write(language)
        for path in self.corpus.glob(step.deleted) if step.deleted else ():
            path.unlink()

    def copy_out(self, target: Path) -> Path:
        """Make `target` a copy of the output folder, with the times of its files; none if there is none yet."""
        shutil.rmtree(target, ignore_errors=True)
        if self.out.exists():
            shutil.copytree(self.out, target)
        return target

    def restore_out(self, source: Path) -> None:
        """Make the output folder a copy of `source`."""
        shutil.rmtree(self.out)
        if source.exists():
            shutil.copytree(source, self.out)

    def arguments(self, step: Step) -> tuple[str, ...]:
        """Return the arguments of the command of `step`."""
        return (step.stage, "--corpus", str(self.corpus), "--out", str(self.out), *SETTINGS, *step.options)

    def _write(self, language: str) -> None:
        """Write tones in noise: each language has a pitch, so that a model learns them in a few steps."""
        for speaker in range(self.speakers):
            folder = self.corpus / language / f"{language}_{speaker}"
            folder.mkdir(parents=True)
            for number in range(self.recordings):
                random = np.random.default_rng([*language.encode(), speaker, number])
                time_s = np.arange(random.integers(RATE_HZ, 2 * RATE_HZ)) / RATE_HZ
                tone = np.sin(2 * np.pi * 40 * language.encode()[0] * time_s)
                soundfile.write(
                    folder / f"{number}.flac", 0.2 * tone + 0.02 * random.standard_normal(len(time_s)), RATE_HZ
                )


def outcome(out: Path) -> dict[str, str]:
    """Return a digest of each file below `out` by its path, without what depends on the clock.

    Files that hold a time, or the digest of one, are present or absent: run.json, the report's page and pictures, and
    the digests of the registry. Left out are checkpoints and TensorBoard's files, older states of the training whose
    names depend on when it was killed, and Dask's report, which a run that is killed after its last shard lacks.
    """
    return {
        str(path.relative_to(out)): hashlib.blake2b(content, digest_size=8).hexdigest()
        for path, content in _contents(out)
    }


def _contents(out: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(out.rglob("*")):
        if not path.is_file():
            continue
        place = path.relative_to(out).parts
        if "tensorboard" in place or "checkpoints" in place or place == ("report", "dask.html"):
            continue
        if place in (("run.json",), ("registry", "digests.json")) or place[0] == "report":
            yield path, b""
        elif path.name == "history.csv":
            yield path, pd.read_csv(path).drop(columns=TIMINGS).to_csv().encode()
        elif path.suffix == ".keras":  # the rest of it holds the time, and numbers that Keras gives its objects
            yield path, zipfile.ZipFile(path).read("model.weights.h5")
        elif path.suffix == ".json" and place[0] in ("metrics", "registry"):
            yield path, json.dumps(_stable(json.loads(path.read_bytes()))).encode()
        else:
            yield path, path.read_bytes()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(item) for key, item in value.items() if key not in UNSTABLE}
    return [_stable(item) for item in value] if isinstance(value, list) else value


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Return the files that differ, are missing or are too many."""
    return [
        f"{name} {'is missing' if name not in found else 'is left over' if name not in expected else 'differs'}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
