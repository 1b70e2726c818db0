"""Writing the corpus of the demo below the output folder; its bytes are the same on every machine."""

import io
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import soundfile
from upath import UPath

from pipeline.config import DemoConfig
from pipeline.demo.speech import LANGUAGES, SAMPLE_RATE_HZ, utterance
from pipeline.digests import value_digest
from pipeline.durable_files import PARTIAL, clear_partial_files, write_atomically
from pipeline.errors import UsageError
from pipeline.monitoring.progress import track
from pipeline.outputs import OutputFolder
from pipeline.runtime.executor import Executor, completed
from pipeline.storage import is_local

log = logging.getLogger(__name__)


class Recording(NamedTuple):
    """A file of the corpus: `language` is an index into LANGUAGES, `path` is relative to the corpus."""

    language: int
    speaker: int
    number: int
    path: Path


def make_corpus(output: OutputFolder, config: DemoConfig, executor: Executor) -> None:
    """Write the recordings that the corpus still lacks.

    Raises UsageError if the output folder is not on this machine, or holds a corpus of other settings.
    """
    if not is_local(output.root):
        raise UsageError(f"--out {output.root}: the demo needs a folder on this machine")
    key_file, key = output.demo_key, value_digest(config.model_dump())
    if key_file.exists() and key_file.read_text() != key:
        raise UsageError(
            f"--out {output.root} holds a demo of other settings ({key_file.read_text()}, this one is {key}); take "
            "another --out"
        )
    write_atomically(key_file, key.encode())
    root = output.demo_corpus
    clear_partial_files(root.rglob(f"*{PARTIAL}"))
    missing = [recording for recording in recordings(config) if not (root / recording.path).exists()]
    if not missing:
        log.info("demo: the corpus is complete already")
        return
    with track("demo", len(missing), "recordings", executor.monitor.dashboard) as progress:
        for _ in completed(executor.run(partial(write, root=root, config=config), missing)):
            progress.advance(audio_s=config.utterance_s)


def recordings(config: DemoConfig) -> Iterator[Recording]:
    """Yield every file of the corpus, ordered by language, speaker and number."""
    for language, name in enumerate(LANGUAGES):
        for speaker in range(config.speakers_per_language):
            folder = Path(name, f"speaker_{speaker:02d}")
            for number in range(config.utterances_per_speaker):
                yield Recording(language, speaker, number, folder / f"utterance_{number:03d}.flac")


def write(recording: Recording, *, root: UPath, config: DemoConfig) -> None:
    """Write a recording below `root` as 16-bit FLAC, atomically."""
    samples = utterance(config, recording.language, recording.speaker, recording.number)
    content = io.BytesIO()
    soundfile.write(content, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    write_atomically(root / recording.path, content.getvalue())
