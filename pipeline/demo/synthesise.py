"""The demo's corpus: synthesised below the output folder, on any machine the same."""

import logging
from functools import partial
from pathlib import Path

from pipeline.config import DemoConfig, digest
from pipeline.demo.speech import Recording, recordings, write
from pipeline.errors import UsageError
from pipeline.monitoring.progress import track
from pipeline.outputs import OutputFolder
from pipeline.runtime.executor import Executor, completed
from pipeline.storage import is_local, write_atomically

log = logging.getLogger(__name__)


def make_corpus(output: OutputFolder, config: DemoConfig, executor: Executor) -> None:
    """Synthesise what is missing of the corpus; raises UsageError for an output folder that is not on this machine."""
    if not is_local(output.root):
        raise UsageError(f"--out {output.root}: the demo needs a folder on this machine")
    root = Path(str(output.demo_corpus))
    key_file, key = output.demo_key, digest(config.model_dump())
    if key_file.exists() and key_file.read_text() != key:
        raise UsageError(
            f"--out {output.root} holds a demo of other settings ({key_file.read_text()}, this one is {key}); take "
            "another --out"
        )
    write_atomically(key_file, key.encode())
    missing = [recording for recording in recordings(config) if not (root / recording.path).exists()]
    if not missing:
        log.info("demo: the corpus is there already")
        return
    with track("demo", len(missing), "recordings", executor.monitor.dashboard) as progress:
        for _ in completed(executor.run(partial(_write, root=root, config=config), missing)):
            progress.advance(audio_s=config.utterance_s)


def _write(recording: Recording, *, root: Path, config: DemoConfig) -> None:
    write(root, config, recording)
