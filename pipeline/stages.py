"""The stages: each skips itself if nothing changed, calls the module that does its work, and records the result."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pandas as pd
from rich.console import Console
from upath import UPath

from model.bundle import FILES, version_of
from model.config import ModelConfig
from model.metrics.metrics_file import Metrics, metrics_of_models
from model.metrics.scores import METRICS
from model.registry import registry
from model.registry.history import Comparison, Moment, PromotionRequest
from model.tensorflow_setup import load_tensorflow
from pipeline import storage
from pipeline.corpus.diff import CorpusDiff, compare
from pipeline.corpus.listing import Listing, list_recordings
from pipeline.corpus.manifest import (
    impossible_rows,
    manifest_digest,
    masked_rows,
    rows_before,
    stored_rows,
    unread_rows,
)
from pipeline.digests import value_digest
from pipeline.errors import UsageError, counted, few
from pipeline.extraction import lifecycle
from pipeline.extraction.plan import Plan
from pipeline.monitoring.progress import track
from pipeline.outputs import OutputFolder
from pipeline.run_context import Facts, Run
from pipeline.schema import AS_OF
from pipeline.store import records
from pipeline.store.records import StoreAttributes

log = logging.getLogger(__name__)


def scan_stage(run: Run) -> None:
    """Corpus → manifest. Once a store was begun, only what the corpus gained or lost changes the manifest."""
    if run.corpus is None:
        raise UsageError("--corpus is missing: the folder LANGUAGE/[SPEAKER/]file of recordings")
    output, config = run.output, run.config.pipeline
    listing = list_recordings(run.corpus)
    key = value_digest([listing.digest, run.corpus, config.config_hash, run.config.corpus.model_dump(mode="json")])

    def work() -> Facts:
        from pipeline.corpus import scan  # noqa: PLC0415 like all stages: what only work needs is loaded for work

        if known is None or changes is None:
            scanned = scan.scan(listing, output, config, run.executor(), run.config.corpus)
        else:
            scanned = scan.update(listing, changes, known, output, config, run.executor(), run.config.corpus)
        return {
            "recordings": len(scanned), "ignored_files": len(listing.ignored),
            "appends": int(scanned["append_index"].max()), "masked": int(masked_rows(scanned).sum()),
        }  # fmt: skip

    unchanged = not run.prune and run.record.unchanged("scan", key)
    if unchanged and not len(unread_rows(run.manifest(), listing.recordings)) and run.skips("scan", key):
        return
    store = _stored_attributes(run) if output.manifest.exists() else None
    known = _sound_rows(run, stored_rows(run.manifest(), store.manifest_digest)) if store else None
    changes = None if known is None else _changes(run, known, listing)
    if changes is not None and not changes and len(changes.uri) == len(run.manifest()):
        log.info("scan: nothing new")
        run.record.confirm("scan", key, [output.manifest])
        return
    run.perform("scan", key, [output.manifest], work, complete=False)


def _stored_attributes(run: Run) -> StoreAttributes | None:
    """Return the attributes of the store, None if it has to be created.

    If another program has changed them, they are restored, and the store is verified again: it may have changed more.
    """
    if lifecycle.restore_metadata(run.output):
        run.record.forget("verify")
    return lifecycle.stored_attributes(run.output)


def _sound_rows(run: Run, manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a store before the first append with an impossible length; take the others out of the store.

    A recording of the first scan keeps its length, because all rows depend on it.
    """
    rows = impossible_rows(manifest)
    if not len(rows):
        return manifest
    names, first = few(manifest["recording_id"].iloc[rows].tolist()), int(manifest["append_index"].iloc[rows].min())
    if first == 0:
        log.warning("scan: %s: no file of its size can be so long; choose another --out to scan it anew", names)
        return manifest
    log.warning("scan: %s: no file of its size can be so long; append %d is taken back and made anew", names, first)
    kept = rows_before(manifest, first)
    lifecycle.roll_back(run.output, kept, run.config.pipeline)
    return kept


def _changes(run: Run, manifest: pd.DataFrame, listing: Listing) -> CorpusDiff:
    """Return the changes to apply to the manifest, and log recordings that are gone or differ."""
    changes = compare(manifest, listing)
    action = "masked" if run.prune else "kept in the store, unless --prune masks what is gone or has changed"
    for rows, what in ((changes.gone, "gone"), (changes.changed, "changed")):
        if len(rows):
            names = few(list(manifest["recording_id"].iloc[rows]))
            log.warning("scan: %s %s: %s; %s", counted(len(rows), "recording"), what, names, action)
    return changes if run.prune else changes.without_masking()


def _extract_key(run: Run, manifest: pd.DataFrame) -> str:
    rows = np.flatnonzero(masked_rows(manifest)).tolist()
    masked = zip(rows, manifest["masked"].iloc[rows], strict=True)
    silent = [] if run.config.corpus.silent == "keep" else [run.config.corpus.silent]
    return value_digest([run.config.pipeline.config_hash, manifest_digest(manifest), *masked, *silent])


def _extract_outputs(output: OutputFolder) -> list[UPath]:
    # the copy of the metadata: what other programs add to the store changes no result
    return [output.ledger, output.metadata, output.store / "train_count" / "c"]


def extract_stage(run: Run) -> None:
    """Manifest → store and ledger."""
    manifest = run.manifest()
    filter_silent = run.config.corpus.silent == "filter"
    plan = Plan(manifest, run.config.pipeline)
    lifecycle.check_room(run.output, manifest, plan)
    complete = _stored_attributes(run) is not None
    pending = lifecycle.pending_shards(run.output, plan, filter_silent=filter_silent)
    again = {recording for _, recording in lifecycle.retriable(run.output, plan)} if len(pending) else set()
    if again:
        names = few(manifest["recording_id"].iloc[sorted(again)].tolist())
        log.info("extract: %s that failed can be tried again: %s", counted(len(again), "recording"), names)

    def work() -> Facts:
        from pipeline.extraction import extract, ledger  # noqa: PLC0415

        result = extract.extract(
            run.output, manifest, run.config.pipeline, run.executor(), filter_silent=filter_silent
        )
        rows = storage.read_parquet(run.output.ledger)
        counts = ledger.counts(rows)
        log.info("extract: %s", ", ".join(f"{n} {status}" for status, n in counts.items()))
        silent = list(rows["recording_id"][ledger.silent_rows(rows)])
        if silent:
            kept = "filtered" if filter_silent else "kept; --set corpus.silent=filter leaves them out"
            log.warning("extract: %s without sound: %s; %s", counted(len(silent), "recording"), few(silent), kept)
        return {
            **asdict(result), "recordings": counts, "audio_h_per_core_h": result.audio_h_per_core_h,
            "price_per_1000_audio_h": result.price_per_1000_audio_h(run.price_per_core_hour),
        }  # fmt: skip

    complete = complete and not len(pending)
    run.perform("extract", _extract_key(run, manifest), _extract_outputs(run.output), work, complete=complete)


def verify_stage(run: Run) -> None:
    """Compare the store with its checksums, and the ledger with the store."""

    def work() -> Facts:
        from pipeline.extraction import verify  # noqa: PLC0415

        shards = verify.verify(run.output, run.manifest(), run.config.pipeline, run.executor())
        log.info(
            "verify: %s checked, all match their checksums; the ledger matches the store", counted(shards, "shard")
        )
        return {"shards": shards}

    run.perform("verify", run.store_key(), [], work)


def compact_stage(run: Run) -> None:
    """Store with appends or masked recordings → the store that a single run would have written."""
    manifest = run.manifest()
    appends, masked = int(manifest["append_index"].max()), int(masked_rows(manifest).sum())
    if not appends and not masked:
        log.info("compact: nothing to do")
        return
    if not run.record.unchanged("extract", _extract_key(run, manifest)):
        raise UsageError(f"--out {run.output.root}: the store does not match the manifest; run extract first")
    verify_stage(run)  # the sequences are copied under new checksums
    key = run.store_key()

    def work() -> Facts:
        from pipeline.extraction import compact  # noqa: PLC0415

        sequences = compact.compact(run.output, manifest, run.config.pipeline, key, run.executor())
        run.record.confirm("extract", _extract_key(run, run.manifest()), _extract_outputs(run.output))
        log.info("compact: %s, as a single run would have written them", counted(sequences, "sequence"))
        return {"appends": appends, "masked": masked, "sequences": sequences}

    run.perform("compact", key, [], work, complete=False)


def train_stage(run: Run) -> None:
    """Store → models."""
    for name, config in run.config.models.items():
        key = value_digest([run.store_key(), name, config.model_dump(mode="json"), run.config.seed])
        outputs = [run.output.model(name) / file for file in (*FILES, "history.csv")]
        run.perform(f"train/{name}", key, outputs, partial(_train, run, name, config, key))


def _train(run: Run, name: str, config: ModelConfig, key: str) -> Facts:
    load_tensorflow()
    from model.train import train  # noqa: PLC0415 TensorFlow takes seconds to load

    return train(
        run.output, name, config, run.config.seed, key,
        progress=_steps, replacing=partial(run.record.forget, f"train/{name}", f"evaluate/{name}"),
    )  # fmt: skip


@contextmanager
def _steps(title: str, steps: int) -> Iterator[Callable[[int], None]]:
    """Show the steps of an epoch; its bar makes room for the line that follows."""
    with track(title, steps, "steps", transient=True) as tracker:
        yield tracker.advance


def evaluate_stage(run: Run) -> None:
    """Models → metrics."""
    for name in run.config.models:
        trained = run.record.stages.get(f"train/{name}")
        if trained is None:
            raise UsageError(f"--out {run.output.root}: the model {name} is not trained yet; run train first")
        key = value_digest([run.store_key(), dict(trained.outputs), list(METRICS)])
        run.perform(
            f"evaluate/{name}", key, [run.output.metrics(name)], partial(_accuracies, run, name),
            complete=run.output.scores(name).exists(),
        )  # fmt: skip


def _accuracies(run: Run, name: str) -> Facts:
    facts = {"model": name, "config_hash": value_digest(run.config.model_dump(mode="json"))}
    metrics = _evaluate(run, name, run.output.model(name), facts)
    accuracies = {f"{name}_accuracy": level.accuracy for name, level in metrics.levels.items()}
    log.info("evaluate %s: %s", name, ", ".join(f"{k} {v:.2%}" for k, v in accuracies.items()))
    return accuracies


def _evaluate(run: Run, name: str, folder: UPath, facts: Facts) -> Metrics:
    load_tensorflow()
    from model.evaluate import evaluate  # noqa: PLC0415 TensorFlow takes seconds to load

    with run.results() as results:
        return evaluate(run.output, name, folder, facts, run.speakers(), run.config.seed, results)


def evaluate_as_of(run: Run, date: str) -> None:
    """Evaluate the model that was in service at a date or time on the store as it is now.

    Raises UsageError for text that names no time, a time in the future, or one before the first promotion.
    """
    moment = Moment.of(date, datetime.now(UTC))
    run.store_key()
    version = registry.read(run.output).served(moment)
    name, facts = f"{AS_OF}{moment.name}", {"version": version, "as_of": moment.at.isoformat()}
    recording = _evaluate(run, name, registry.checked(run.output, version), facts).recording
    log.info("evaluate %s: version %s, macro F1 per recording %.3f", name, version, recording.macro_f1)


def promote(run: Run, run_key: str | None) -> bool:
    """Promote the trained model if it is better than the champion; return whether it was promoted."""
    settings = run.config.promotion
    if settings.model not in run.config.models:
        raise UsageError(
            f"promotion.model = {settings.model!r}: this model is not configured; choose one of "
            f"{', '.join(run.config.models)}"
        )
    if f"train/{settings.model}" not in run.record.stages:
        raise UsageError(
            f"--out {run.output.root}: the model {settings.model} is not trained yet; run train first, or choose "
            "another by --set promotion.model=…"
        )
    run.store_key()
    found = records.read_attributes(run.output)
    request = PromotionRequest(
        challenger=version_of(run.output.model(settings.model)), model=settings.model,
        store=found.model_dump(include={"config_hash", "manifest_digest"}) if found else {},
        rule=settings.model_dump(exclude={"model"}),
    )  # fmt: skip

    def judge(folder: UPath, champion: UPath | None) -> tuple[Comparison, Metrics]:
        load_tensorflow()
        from model.evaluate import compare  # noqa: PLC0415 TensorFlow takes seconds to load

        return compare(run.output, folder, champion, settings, run.speakers(), run.config.seed)

    return registry.promote(run.output, request, run_key, judge)


def report_key(run: Run) -> str:
    """Return a digest of all that a report shows, and of the settings of this run."""
    stages = {name: dict(stage.outputs) for name, stage in run.record.stages.items() if name != "report"}
    history, settings = registry.read(run.output), run.config.model_dump(mode="json", exclude={"demo"})
    return value_digest([run.store_key(), stages, history.model_dump(mode="json"), settings])


def complete(run: Run) -> bool:
    """Whether the corpus of the last scan has been extracted and reported with the settings of this run."""
    return "extract" in run.record.stages and run.record.unchanged("report", report_key(run))


def report_stage(run: Run) -> None:
    """All results → one page."""
    page = run.output.report / "index.html"

    def work() -> Facts:
        from pipeline.report.page import write_report  # noqa: PLC0415 matplotlib is for this stage alone

        write_report(run.output, registry.read(run.output), metrics_of_models(run.output, run.config.models))
        return {}

    run.perform("report", report_key(run), [page], work)
    log.info("report: %s", page)


STAGES: Mapping[str, Callable[[Run], None]] = {
    "scan": scan_stage,
    "extract": extract_stage,
    "verify": verify_stage,
    "train": train_stage,
    "evaluate": evaluate_stage,
    "report": report_stage,
    "compact": compact_stage,
}
ALL = ("scan", "extract", "verify", "train", "evaluate", "report")
ON_CLUSTER = ("scan", "extract", "verify", "compact")


def execute(run: Run, stages: Sequence[str]) -> None:
    """Run stages one after the other; the cluster is stopped before training needs the cores."""
    for name in stages:
        if name not in ON_CLUSTER:
            run.executor.release()
        STAGES[name](run)


def roll_back(output: OutputFolder, to: str | None, reason: str | None) -> None:
    """Restore the previous champion, or the version `to`."""
    registry.roll_back(output, to, reason)


def show_status(output: OutputFolder) -> None:
    """Print the progress of an output folder."""
    from pipeline.report import status  # noqa: PLC0415

    status.show(output, registry.read(output), Console())
