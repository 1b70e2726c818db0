"""What tests share: small synthetic corpora, probes without files, and hypothesis settings."""

import logging
import os
import signal
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import audioread
import fsspec
import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import settings
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.corpus.sources import PART_COLUMNS
from pipeline.schema import label_of_folder

# the same examples in every run: a failure can be repeated, a pass means what it meant yesterday
settings.register_profile("pipeline", deadline=None, max_examples=30, derandomize=True, database=None)
settings.load_profile("pipeline")

# what a shell starts with & ignores Ctrl-C, what nohup starts ignores SIGHUP, and so does what these start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

with warnings.catch_warnings():
    # librosa.load asks for these, and they import modules that Python is about to drop
    warnings.simplefilter("ignore", DeprecationWarning)
    audioread.available_backends()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests: at the end, short files keep all processes busy."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Give the next module the environment of this one, and its loggers.

    A nanny stopped while it starts a worker leaves variables, and a command line that is called sets up its log.
    """
    before = dict(os.environ)
    loggers = [logging.getLogger(name) for name in (None, "pipeline", "model")]
    logs = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    os.environ.clear()
    os.environ.update(before)
    for logger, (handlers, propagate, level) in zip(loggers, logs, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def noise(key: str, samples: int) -> NDArray[np.float64]:
    """Return white noise (sample,) float64 within ±0.5 that depends on `key` alone."""
    return np.random.default_rng(zlib.crc32(key.encode())).uniform(-0.5, 0.5, samples)


def make_corpus(
    root: Path,
    languages: Mapping[str, Mapping[str, int]],
    *,
    seconds: float = 1.0,
    rate: int = 16_000,
    extension: str = "flac",
) -> Path:
    """Write noise recordings LANGUAGE/SPEAKER/N.EXTENSION and return `root`.

    `languages` is {language: {speaker: recordings}}; an empty speaker puts its recordings right into the language's
    folder.
    """
    for language, speakers in languages.items():
        for speaker, count in speakers.items():
            folder = root / language / speaker
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / f"{number}.{extension}"
                soundfile.write(path, noise(path.relative_to(root).as_posix(), round(seconds * rate)), rate)
    return root


@pytest.fixture(name="make_corpus", scope="session")
def make_corpus_fixture() -> Callable[..., Path]:
    """The function `make_corpus`."""
    return make_corpus


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Let no test wait for the disk, which takes longer than most tests. The processes that tests start do wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


class Killed(BaseException):
    """The process is no more."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Holds how many files may yet be replaced, renamed or removed; a further attempt is the end of the process."""
    left = [10**9]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **options)

        return call

    for name in ("replace", "rename", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    return left


Probe = dict[str, str | int | None]
HEADER_NAMES = ("samples", "sample_rate_hz", "channels", "error", "transient")


def make_probe(recording_id: str, samples: int = 16_000, rate: int = 16_000, error: str | None = None) -> Probe:
    """Return what a scan finds of the recording LANGUAGE/[SPEAKER/]NAME, without a file."""
    language, *speaker, _ = recording_id.split("/")
    header = (0, 0, 0) if error else (samples, rate, 1)
    return {
        "recording_id": recording_id,
        "uri": f"/corpus/{recording_id}",
        **dict.fromkeys(PART_COLUMNS),
        "label": label_of_folder(language),
        "speaker": speaker[0] if speaker else None,
        "size_bytes": 2 * samples,
        "modified_ns": 0,
        "unusable": None,
        **dict(zip(HEADER_NAMES, (*header, error, False), strict=True)),
    }


def make_manifest(probes: list[Probe], config: PipelineConfig) -> pd.DataFrame:
    """Return the manifest of some recordings."""
    from tests.support.scans import build_manifest, probed

    return build_manifest(*probed(probes), config)


@pytest.fixture
def memory_url() -> Iterator[str]:
    """A folder in fsspec's memory, empty before and gone after."""
    files = fsspec.filesystem("memory")
    files.pseudo_dirs.append("/pipeline-tests")
    yield "memory://pipeline-tests"
    files.rm("/pipeline-tests", recursive=True)
