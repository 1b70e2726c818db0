"""What every stage of a run gets: the output folder, the settings, the record, and where tasks run."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from upath import UPath

from pipeline.corpus.manifest import read_manifest
from pipeline.corpus.splits import speaker_codes
from pipeline.digests import value_digest
from pipeline.errors import PipelineError, UsageError, few
from pipeline.outputs import OutputFolder
from pipeline.run_config import RunConfig
from pipeline.run_record import RunRecord
from pipeline.runtime.executor import Executor
from pipeline.store import metadata, records

log = logging.getLogger("pipeline.stages")

Facts = Mapping[str, Any]
"""The facts of a stage's record in run.json, see `run_record`."""


class LazyExecutor:
    """The executor of a run: started by the first stage that has work for it, and stopped before the models train."""

    def __init__(self, start: Callable[[], Executor]) -> None:
        self._start = start
        self._executor: Executor | None = None

    def __call__(self) -> Executor:
        """Return the executor, started if it was not."""
        if self._executor is None:
            self._executor = self._start()
        return self._executor

    def release(self) -> None:
        """Stop what was started, so that training has the cores; the next task starts it again."""
        if self._executor is not None:
            self._executor.close()


@dataclass(frozen=True)
class Run:
    """What every stage gets. With `recheck` no stage is skipped; with `prune` missing recordings are masked."""

    output: OutputFolder
    config: RunConfig
    record: RunRecord
    executor: LazyExecutor
    corpus: str | None
    recheck: bool = False
    prune: bool = False
    price_per_core_hour: float | None = None

    def skips(self, stage: str, key: str) -> bool:
        """Return, and log, whether `stage` has nothing to do for this `key`."""
        if self.recheck or not self.record.unchanged(stage, key):
            return False
        log.info("%s: unchanged, nothing to do", stage)
        return True

    def perform(
        self, stage: str, key: str, outputs: Iterable[UPath], work: Callable[[], Facts], *, complete: bool = True
    ) -> None:
        """Do `work` and record it, unless `stage` has done it for this `key`.

        `outputs` is iterated over after the work. `complete` is false if the stage knows of missing work that the
        record does not show.
        """
        if complete and self.skips(stage, key):
            return
        log.info("%s: begins", stage)
        started_s = time.perf_counter()
        facts = work()
        self.record.finish(stage, key, outputs, **{"wall_s": time.perf_counter() - started_s, **facts})

    def require_outputs(self, stage: str) -> None:
        """Raise PipelineError if an output of `stage` is not as the stage left it; nothing for a stage without record.

        A damaged file that can be read would silently give another result.
        """
        changed = self.record.changed_outputs(stage)
        if changed:
            names = few([str(self.output.root / name) for name in changed])
            command = stage.partition("/")[0]
            raise PipelineError(
                f"{names}: missing or changed since {stage} ended; run {command} again, which restores it"
            )

    @contextmanager
    def results(self) -> Iterator[OutputFolder]:
        """Yield where results are written: the output folder, or a temporary one where that cannot be written."""
        if self.record.saved:
            yield self.output
            return
        with tempfile.TemporaryDirectory() as folder:
            yield OutputFolder.at(folder)

    def manifest(self) -> pd.DataFrame:
        """Return the manifest; raises UsageError if there is none, or one of an earlier version."""
        if not self.output.manifest.exists():
            raise UsageError(f"--out {self.output.root}: there is no manifest yet; run scan first")
        return read_manifest(self.output)

    def speakers(self) -> NDArray[np.int64]:
        """Return a number for the speaker of each row of the manifest: (row,)."""
        return speaker_codes(self.manifest())

    def store_key(self) -> str:
        """Return a digest of the finished store.

        Raises UsageError if there is none, and PipelineError if other programs have changed its attributes.
        """
        extracted = self.record.stages.get("extract")
        if extracted is None:
            raise UsageError(f"--out {self.output.root}: nothing is extracted yet; run extract first")
        store = self.output.store
        changed = metadata.changed_attributes(self.output)
        if changed or records.read_attributes(self.output) is None:
            what = f"changed or removed {few(changed)}" if changed else "removed attributes"
            raise PipelineError(f"{store}: another program has {what}; run extract, which restores them")
        return value_digest([extracted.key, dict(extracted.outputs)])
