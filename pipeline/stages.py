"""The stages: each skips itself where nothing changed, calls the module that does its work, and records the result."""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from upath import UPath

from model.bundle import version_of
from model.config import ModelConfig
from model.registry import registry
from model.registry.history import Moment, PromotionRequest
from model.tensorflow_setup import load_tensorflow
from pipeline import storage
from pipeline.config import digest
from pipeline.corpus import manifest
from pipeline.corpus.diff import CorpusDiff, compare
from pipeline.corpus.listing import Listing, list_recordings
from pipeline.errors import UsageError, few
from pipeline.extraction import lifecycle
from pipeline.extraction.plan import Plan
from pipeline.outputs import OutputFolder
from pipeline.run_config import RunConfig
from pipeline.run_record import RunRecord
from pipeline.runtime.executor import Executor
from pipeline.schema import AS_OF
from pipeline.store import records

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What every stage is given. `start` makes the executor, for the first stage that has work for it."""

    output: OutputFolder
    config: RunConfig
    state: RunRecord
    start: Callable[[], Executor]
    corpus: str | None
    recheck: bool
    prune: bool
    price_per_core_hour: float | None = None
    as_of: Moment | None = None
    run_key: str | None = None
    kept_exit_code: int = 0

    @cached_property
    def executor(self) -> Executor:
        """Where tasks run."""
        return self.start()

    def release(self) -> None:
        """Stop what `start` started; a later stage starts it again."""
        if "executor" in vars(self):
            self.executor.close()

    def skips(self, stage: str, key: str, *, complete: bool = True) -> bool:
        """Whether `stage` has nothing to do; says so. `complete`: nothing is missing that only the stage knows of."""
        if self.recheck or not complete or not self.state.unchanged(stage, key):
            log.info("%s: begins", stage)
            return False
        log.info("%s: unchanged, nothing to do", stage)
        return True

    def manifest(self) -> pd.DataFrame:
        """Return the manifest; raises UsageError where there is none, or one of an earlier version."""
        if not self.output.manifest.exists():
            raise UsageError(f"--out {self.output.root}: there is no manifest yet; run scan first")
        return manifest.read(self.output)

    def speakers(self) -> NDArray[np.int64]:
        """Return a number for the speaker of each row of the manifest."""
        return manifest.speaker_codes(self.manifest())

    def store_key(self) -> str:
        """Digest of the finished store; raises UsageError where there is none."""
        extracted = self.state.stages.get("extract")
        if extracted is None:
            raise UsageError(f"--out {self.output.root}: nothing is extracted yet; run extract first")
        return digest([extracted["key"], extracted["outputs"]])


def scan_stage(run: Run) -> None:
    """Corpus → manifest, or what is new in the corpus → more of the manifest that the store was begun with."""
    if run.corpus is None:
        raise UsageError("--corpus is missing: the folder LANGUAGE/[SPEAKER/]file of recordings")
    output, config = run.output, run.config.pipeline
    listing = list_recordings(run.corpus)
    key = digest([listing.digest, run.corpus, config.store_hash])
    if not run.prune and run.skips("scan", key):
        return
    started_s = time.perf_counter()
    known = run.manifest() if records.attributes(output) and output.manifest.exists() else None
    changes = None if known is None else _changes(run, known, listing)
    if changes is not None and not changes:
        log.info("scan: nothing new")
        run.state.confirm("scan", key, [output.manifest])
        return
    from pipeline.corpus import scan  # noqa: PLC0415 as in all stages: what only work needs is loaded where there is some

    if known is None or changes is None:
        table = scan.scan(listing, output, config, run.executor)
    else:
        table = scan.update(listing, changes, known, output, config, run.executor)
    run.state.record(
        "scan", key, [output.manifest], wall_s=time.perf_counter() - started_s, recordings=len(table),
        others=len(listing.others), appends=int(table["append_index"].max()), masked=int(manifest.masked(table).sum()),
    )  # fmt: skip


def _changes(run: Run, table: pd.DataFrame, listing: Listing) -> CorpusDiff:
    """Return what is to be taken into the manifest, and say what the corpus has no more, or otherwise."""
    changes = compare(table, listing)
    fate = "masked" if run.prune else "the store keeps what it has of them; --prune masks it"
    for rows, what in ((changes.gone, "gone"), (changes.changed, "changed")):
        if len(rows):
            names = few(list(table["recording_id"].iloc[rows]))
            log.warning("scan: %d recordings of the manifest are %s: %s; %s", len(rows), what, names, fate)
    return changes if run.prune else changes.without_masking()


def _extract_key(run: Run, table: pd.DataFrame) -> str:
    rows = np.flatnonzero(manifest.masked(table)).tolist()
    masked = zip(rows, table["masked"].iloc[rows], strict=True)
    return digest([run.config.pipeline.store_hash, manifest.digest(table), *masked])


def _extract_outputs(output: OutputFolder) -> list[UPath]:
    return [output.ledger, output.store / "zarr.json", output.store / "train_count" / "c"]


def extract_stage(run: Run) -> None:
    """Manifest → store and ledger."""
    table = run.manifest()
    key = _extract_key(run, table)
    pending = lifecycle.unfinished(run.output, Plan(table, run.config.pipeline))
    if run.skips("extract", key, complete=not len(pending)):
        return
    from pipeline.extraction import extract, ledger  # noqa: PLC0415

    result = extract.extract(run.output, table, run.config.pipeline, run.executor)
    counts = ledger.counts(storage.read_parquet(run.output.ledger))
    log.info("extract: %s", ", ".join(f"{n} {status}" for status, n in counts.items()))
    speed, price = result.audio_h_per_core_h, result.price_per_1000_audio_h(run.price_per_core_hour)
    run.state.record(
        "extract", key, _extract_outputs(run.output), recordings=counts, audio_h_per_core_h=speed,
        price_per_1000_audio_h=price, **asdict(result),
    )  # fmt: skip


def verify_stage(run: Run) -> None:
    """Check the store against its checksums, and the ledger against the store."""
    key = run.store_key()
    if run.skips("verify", key):
        return
    from pipeline.extraction import verify  # noqa: PLC0415

    started_s = time.perf_counter()
    shards = verify.verify(run.output, run.manifest(), run.config.pipeline, run.executor)
    log.info("verify: %d shards are as they were written, the ledger closes", shards)
    run.state.record("verify", key, [], wall_s=time.perf_counter() - started_s, shards=shards)


def compact_stage(run: Run) -> None:
    """Store that grew → store of one run."""
    table = run.manifest()
    appends, masked = int(table["append_index"].max()), int(manifest.masked(table).sum())
    if not appends and not masked:
        log.info("compact: nothing to do")
        return
    if not run.state.unchanged("extract", _extract_key(run, table)):
        raise UsageError(f"--out {run.output.root}: the store is not what the manifest says; run extract first")
    verify_stage(run)  # what is moved goes under new checksums
    from pipeline.extraction import compact  # noqa: PLC0415

    started_s = time.perf_counter()
    key = run.store_key()
    sequences = compact.compact(run.output, table, run.config.pipeline, key, run.executor)
    run.state.confirm("extract", _extract_key(run, run.manifest()), _extract_outputs(run.output))
    wall_s = time.perf_counter() - started_s
    run.state.record("compact", key, [], wall_s=wall_s, appends=appends, masked=masked, sequences=sequences)
    log.info("compact: %d sequences, as one run would have written them", sequences)


def _model_key(run: Run, name: str, config: ModelConfig) -> str:
    return digest([run.store_key(), name, config.model_dump(mode="json"), run.config.seed])


def train_stage(run: Run) -> None:
    """Store → models."""
    for name, config in run.config.models.chosen().items():
        stage, key = f"train/{name}", _model_key(run, name, config)
        if run.skips(stage, key):
            continue
        load_tensorflow()
        from model.train import train  # noqa: PLC0415 TensorFlow takes seconds to load

        started_s = time.perf_counter()
        facts = train(run.output, name, config, run.config.seed, key)
        folder = run.output.model(name)
        outputs = [folder / file for file in ("model.keras", "labels.json", "history.csv")]
        run.state.record(stage, key, outputs, wall_s=time.perf_counter() - started_s, **facts)


def evaluate_stage(run: Run) -> None:
    """Models → metrics."""
    if run.as_of is not None:
        _evaluate_as_of(run, run.as_of)
        return
    for name in run.config.models.chosen():
        trained = run.state.stages.get(f"train/{name}")
        if trained is None:
            raise UsageError(f"--out {run.output.root}: the model {name} is not trained yet; run train first")
        stage, key = f"evaluate/{name}", digest([run.store_key(), trained["outputs"]])
        if run.skips(stage, key):
            continue
        load_tensorflow()
        from model.evaluate import evaluate  # noqa: PLC0415 TensorFlow takes seconds to load

        started_s = time.perf_counter()
        facts = {"model": name, "config_hash": digest(run.config.model_dump(mode="json"))}
        metrics = evaluate(run.output, name, run.output.model(name), facts, run.speakers(), run.config.seed)
        levels = [level for level in ("frame", "sequence", "recording") if level in metrics]
        accuracies = {f"{level}_accuracy": metrics[level]["accuracy"] for level in levels}
        log.info("evaluate %s: %s", name, ", ".join(f"{k} {v:.2%}" for k, v in accuracies.items()))
        run.state.record(stage, key, [run.output.metrics(name)], wall_s=time.perf_counter() - started_s, **accuracies)


def _evaluate_as_of(run: Run, moment: Moment) -> None:
    """Evaluate the model that served at `moment` on the store as it is now."""
    run.store_key()
    version = registry.read(run.output).served(moment)
    load_tensorflow()
    from model.evaluate import evaluate  # noqa: PLC0415 TensorFlow takes seconds to load

    name, facts = f"{AS_OF}{moment.name}", {"version": version, "as_of": moment.at.isoformat()}
    folder = registry.checked(run.output, version)
    recording = evaluate(run.output, name, folder, facts, run.speakers(), run.config.seed)["recording"]
    log.info("evaluate %s: %s served, macro F1 a recording %.3f", name, version, recording["macro_f1"])


def promote_stage(run: Run) -> None:
    """Model → registry, where it is better than the one that serves; else exit with `kept_exit_code`."""
    settings = run.config.promotion
    if settings.model not in run.config.models.chosen() or f"train/{settings.model}" not in run.state.stages:
        raise UsageError(
            f"--out {run.output.root}: the model {settings.model} is not trained yet; run train first, or choose "
            "another by --set promotion.model=…"
        )
    run.store_key()
    attributes = records.attributes(run.output) or {}
    request = PromotionRequest(
        challenger=version_of(run.output.model(settings.model)), model=settings.model,
        store={key: attributes[key] for key in ("config_hash", "manifest_digest")},
        rule=settings.model_dump(exclude={"model"}),
    )  # fmt: skip

    def judge(folder: UPath, champion: UPath | None) -> tuple[dict[str, Any], dict[str, Any]]:
        load_tensorflow()
        from model.evaluate import compare  # noqa: PLC0415 TensorFlow takes seconds to load

        verdict, metrics = compare(run.output, folder, champion, settings, run.speakers(), run.config.seed)
        return asdict(verdict), metrics

    if not registry.promote(run.output, request, run.run_key, judge) and run.kept_exit_code:
        sys.exit(run.kept_exit_code)


def report_key(run: Run) -> str:
    """Digest of all that a report tells of, and of the settings of this run."""
    stages = {name: stage["outputs"] for name, stage in run.state.stages.items() if name != "report"}
    history, settings = registry.read(run.output), run.config.model_dump(mode="json", exclude={"demo"})
    return digest([run.store_key(), stages, history.model_dump(mode="json"), settings])


def complete(run: Run) -> bool:
    """Whether what the last scan found has come as far as a report, with the settings of this run."""
    return "extract" in run.state.stages and run.state.unchanged("report", report_key(run))


def report_stage(run: Run) -> None:
    """Everything → one page."""
    key = report_key(run)
    page = run.output.report / "index.html"
    if not run.skips("report", key):
        from pipeline.report.page import write_report  # noqa: PLC0415 matplotlib is for this stage alone

        started_s = time.perf_counter()
        write_report(run.output, registry.read(run.output))
        run.state.record("report", key, [page], wall_s=time.perf_counter() - started_s)
    log.info("report: %s", page)


def moment(text: str) -> Moment:
    """Return the time that `--as-of` names; raises UsageError where it names none, or one in the future."""
    return Moment.of(text, datetime.now(UTC))


def roll_back(output: OutputFolder, to: str | None, reason: str | None) -> None:
    """Restore the previous champion, or the version `to`."""
    registry.roll_back(output, to, reason)


def show_status(output: OutputFolder) -> None:
    """Print how far an output folder is."""
    from pipeline.report import status  # noqa: PLC0415 not for a run that does nothing

    status.show(output, registry.read(output), Console())


STAGES: dict[str, Callable[[Run], None]] = {
    "scan": scan_stage,
    "extract": extract_stage,
    "verify": verify_stage,
    "train": train_stage,
    "evaluate": evaluate_stage,
    "report": report_stage,
}
ON_REQUEST: dict[str, Callable[[Run], None]] = {"compact": compact_stage, "promote": promote_stage}
"""Stages that `all` leaves out."""
ON_CLUSTER = ("scan", "extract", "verify", "compact")


def execute(run: Run, stages: list[str]) -> None:
    """Run stages one after the other; the cluster is gone before training needs the cores."""
    for name in stages:
        if name not in ON_CLUSTER:
            run.release()
        {**STAGES, **ON_REQUEST}[name](run)
