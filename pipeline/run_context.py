"""What every stage of a run gets: the output folder, the settings, the record, and where tasks run."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from upath import UPath

from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.speakers import SpeakerCodes
from pipeline.digests import value_digest
from pipeline.errors import PipelineError, UsageError, few
from pipeline.outputs import OutputFolder
from pipeline.run_config import RunConfig
from pipeline.run_record import RunRecord
from pipeline.runtime.executor import Executor
from pipeline.store import metadata, records

log = logging.getLogger("pipeline.stages")

METADATA_COPY: Final = "shards/_metadata"
IDENTITY: Final = ("ledger.parquet", METADATA_COPY, "features.zarr/train_count/c")
"""The outputs of an extraction that determine the key of a store; the others follow from these and the settings."""

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
    """What every stage gets.

    With `recheck` no stage is skipped; with `prune` missing recordings are masked; with `repair` an extraction reads
    all shards and makes again those that are damaged.
    """

    output: OutputFolder
    config: RunConfig
    record: RunRecord
    executor: LazyExecutor
    corpus: str | None
    recheck: bool = False
    prune: bool = False
    repair: bool = False
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

    def manifest(self) -> ManifestFile:
        """Open the manifest; raises UsageError if there is none, or one of an earlier version.

        Raises PipelineError for one that is not as the last scan or compaction left it.
        """
        if not self.output.manifest.exists():
            raise UsageError(f"--out {self.output.root}: there is no manifest.parquet; run scan first")
        self.check_manifest()
        return ManifestFile.at(self.output.manifest, whole=True)

    def check_manifest(self) -> None:
        """Raise PipelineError for a manifest that is not as the last scan or compaction left it."""
        if self.manifest_changed():
            raise PipelineError(
                f"{self.output.manifest} is not as scan left it (its digest in run.json is another); run scan, which "
                "compares it with the recordings, or restore it from a backup"
            )

    def manifest_changed(self) -> bool:
        """Whether the manifest is not as the last scan or compaction left it.

        It is damaged then, or scan was interrupted. Earlier versions did not record a compacted manifest.
        """
        recorded = self.record.file.accounted or "extract" not in self.record.stages
        return recorded and bool(self.record.changed_outputs("scan"))

    def speakers(self) -> SpeakerCodes:
        """Return a number for the speaker of each test recording."""
        return SpeakerCodes.of(self.manifest(), self.output.root)

    def store_key(self) -> str:
        """Return a digest of the finished store.

        Raises UsageError if there is none, and PipelineError if other programs have changed its attributes, or if the
        manifest or a file beside the shards is damaged.
        """
        key, store = self.unchecked_store_key(), self.output.store
        self.check_manifest()
        attributes, damaged = records.read_attributes(self.output), self.record.changed_outputs("extract")
        if METADATA_COPY not in damaged:  # with which the metadata of the store is compared
            files = [str(path) for path in metadata.damaged_files(self.output)]
            changed = metadata.changed_attributes(self.output)
            if changed or attributes is None:
                what = f"changed or removed {few(changed)} in {few(files)}" if changed else "removed attributes"
                raise PipelineError(f"{store}: another program has {what}; run extract, which restores them")
            damaged = [*files, *damaged]
        if damaged:
            raise PipelineError(
                f"--out {self.output.root}: {few(damaged)} missing or not as extraction left it; run extract "
                "--repair, which makes it again"
            )
        return key

    def unchecked_store_key(self) -> str:
        """Return a digest of the finished store as it was recorded; raises UsageError if there is none."""
        extracted = self.record.stages.get("extract")
        if extracted is None:
            raise UsageError(f"--out {self.output.root}: nothing is extracted yet; run extract first")
        outputs = {name: digest for name, digest in extracted.outputs.items() if name in IDENTITY}
        return value_digest([extracted.key, outputs])
