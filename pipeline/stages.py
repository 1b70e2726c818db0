"""The stages: each skips itself if nothing changed, calls the module that does its work, and records the result."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Final

from rich.console import Console
from upath import UPath

from model.metrics.metrics_file import metrics_of_models
from model.registry import registry
from model.training_history import histories_of_models
from pipeline import run_record
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.manifest_summary import masked_count, masked_recordings
from pipeline.digests import list_digest, value_digest
from pipeline.errors import PipelineError, UsageError, counted, few
from pipeline.extraction import lifecycle, repair
from pipeline.extraction.pending import find_pending
from pipeline.extraction.plan import Plan
from pipeline.model_stages import evaluate_stage, train_stage
from pipeline.outputs import OutputFolder
from pipeline.run_context import Facts, Run
from pipeline.run_record import ExtractRecord, RunRecord, VerifyRecord, reported
from pipeline.scan_stage import recorded_digest, scan_stage, stored_attributes
from pipeline.storage import file_digest
from pipeline.store import feature_store

MOST_NAMED: Final = 100
"""Damaged files that verify names in the log, one in a line."""

log = logging.getLogger(__name__)


def _extract_key(run: Run, manifest: ManifestFile) -> str:
    silent = [] if run.config.corpus.silent == "keep" else [run.config.corpus.silent]
    return list_digest(
        chain([run.config.pipeline.config_hash, manifest.digest()], masked_recordings(manifest), silent)
    )


def _extract_outputs(output: OutputFolder) -> Iterator[UPath]:
    """Yield the files beside the shards, once they are written."""
    # the copy of the metadata: what other programs add to the store changes no result
    yield from (output.ledger, output.metadata, output.shard_digests)
    yield from feature_store.unsharded_objects(output)


def extract_stage(run: Run) -> None:
    """Manifest → store and ledger."""
    manifest = run.manifest()
    filter_silent = run.config.corpus.silent == "filter"
    plan = Plan.of(manifest, run.config.pipeline)
    lifecycle.check_room(run.output, manifest, plan)
    complete = stored_attributes(run, manifest) is not None and not run.repair
    repair.restore_digests(run.output, plan, recorded_digest(run, run.output.shard_digests), run.executor)
    pending = find_pending(run.output, plan, filter_silent=filter_silent, executor=run.executor)
    if len(pending.again):
        again, names = counted(len(pending.again), "recording"), manifest.names(pending.again)
        log.info("extract: %s that failed can be tried again: %s", again, names)

    def work() -> Facts:
        from pipeline.extraction import extract, ledger  # noqa: PLC0415

        result = extract.extract(
            run.output, manifest, run.config.pipeline, run.executor(), filter_silent=filter_silent, repair=run.repair,
            pending=pending,
        )  # fmt: skip
        counts = ledger.counts(run.output)
        log.info("extract: %s", ", ".join(f"{n} {status}" for status, n in counts.items()))
        silent = ledger.rows_where(run.output, ["reason"], ledger.silent_rows)
        if len(silent):
            kept = "filtered" if filter_silent else "kept; --set corpus.silent=filter leaves them out"
            names = manifest.names(silent)
            log.warning("extract: %s without sound: %s; %s", counted(len(silent), "recording"), names, kept)
        return {
            **asdict(result), "recordings": counts, "audio_h_per_core_h": result.audio_h_per_core_h,
            "price_per_1000_audio_h": result.price_per_1000_audio_h(run.price_per_core_hour),
            "progress": run.record.digests([run.output.series, run.output.performance]),
        }  # fmt: skip

    complete = complete and not len(pending.shards)
    if complete and _finish_again(run, manifest, plan):
        return
    run.perform("extract", _extract_key(run, manifest), _extract_outputs(run.output), work, complete=complete)


def _finish_again(run: Run, manifest: ManifestFile, plan: Plan) -> bool:
    """Make the files again that follow from the shards, if nothing else is to do; return whether any were damaged.

    A folder of an earlier version gets the files that it did not have.
    """
    extracted, key = run.record.stages.get("extract"), _extract_key(run, manifest)
    changed = run.record.changed_outputs("extract")
    if extracted is None or extracted.key != key or not (changed or not run.record.file.accounted):
        return False
    log.warning("extract: %s missing or damaged, written again", few(changed or [run.output.shard_digests.name]))
    lifecycle.finish(run.output, manifest, plan, run.executor)
    run.record.confirm("extract", key, _extract_outputs(run.output))
    if "scan" in run.record.stages:
        run.record.confirm("scan", run.record.stages["scan"].key, [run.output.manifest])
    return True


def verify_stage(run: Run) -> None:
    """Read every recorded file of the output folder, and compare it with what was written."""
    key = run.unchecked_store_key()
    last = run.record.stages.get("verify")
    if not (isinstance(last, VerifyRecord) and last.damaged) and run.skips("verify", key):
        return
    log.info("verify: begins")
    from pipeline.extraction import verify  # noqa: PLC0415

    started_s = time.perf_counter()
    found = verify.verify(run.output, run.manifest(), run.config.pipeline, run.record.file, run.executor())
    damaged = {**found.damaged, **registry.damaged(run.output)}
    if run.record.altered:
        damaged[run.output.run.name] = f"if nobody has edited {run.output.run.name}, {run_record.DELETE}"
    run.record.finish(
        "verify", key, [], wall_s=time.perf_counter() - started_s, shards=found.shards, files=found.files,
        size_bytes=found.size_bytes, damaged=len(damaged),
    )  # fmt: skip
    read = f"{counted(found.shards, 'shard')}, {counted(found.files, 'file')}, {found.size_bytes / 2**20:,.1f} MiB"
    if not damaged:
        log.info("verify: %s read, all match their checksums; the ledger matches the store", read)
        return
    for name in list(damaged)[:MOST_NAMED]:
        log.error("verify: %s is damaged or missing", run.output.root / name)
    remedies = "; ".join(dict.fromkeys(damaged.values()))
    raise PipelineError(
        f"--out {run.output.root}: {counted(len(damaged), 'file')} damaged or missing ({few(list(damaged))}); "
        f"{remedies}"
    )


def compact_stage(run: Run) -> None:
    """Store with appends or masked recordings → the store that a single run would have written."""
    manifest = run.manifest()
    appends, masked = manifest.last_append, masked_count(manifest)
    if "extract" in run.record.stages:
        run.store_key()  # raises an error for what is damaged
    if not appends and not masked:
        log.info("compact: nothing to do")
        return
    if not run.record.unchanged("extract", _extract_key(run, manifest)):
        raise UsageError(f"--out {run.output.root}: the store does not match the manifest; run extract first")
    verify_stage(replace(run, recheck=True))  # the sequences are copied under new checksums
    key = run.store_key()

    def work() -> Facts:
        from pipeline.extraction import compact  # noqa: PLC0415

        sequences = compact.compact(run.output, run.config.pipeline, key, run.executor())
        facts = {"appends": appends, "masked": masked, "sequences": sequences}
        scanned = run.record.stages.get("scan")
        scan = {} if scanned is None else scanned.model_dump(include={"recordings", "ignored_files", "wall_s"})
        extract_key = _extract_key(run, ManifestFile.at(run.output.compacted.manifest))
        completion = compact.Completion(key=key, extract_key=extract_key, scan=scan, **facts)
        compact.mark_complete(run.output, completion)
        finish_compaction(run.output, run.record)
        log.info("compact: %s, as a single run would have written them", counted(sequences, "sequence"))
        return facts

    run.perform("compact", key, [], work, complete=False)


def finish_compaction(output: OutputFolder, record: RunRecord) -> None:
    """Put the store of a complete compaction into its place, and record that; after a kill, this can be repeated."""
    from pipeline.extraction import compact  # noqa: PLC0415

    done = compact.swap(output)
    if done is None:
        record.forget("scan", "extract")
    else:
        # the next scan compares the corpus with it
        record.finish("scan", done.key, [output.manifest], **done.scan)
        record.confirm("extract", done.extract_key, _extract_outputs(output))
        record.finish("compact", done.key, [], **done.model_dump(exclude={"key", "extract_key", "scan"}))
    compact.remove_old(output)


def report_key(run: Run, store_key: str) -> str:
    """Return a digest of all that a report shows, of the store with its key, and of the settings of this run."""
    stages = {name: dict(stage.outputs) for name, stage in reported(run.record.stages).items()}
    history, settings = registry.read(run.output), run.config.model_dump(mode="json", exclude={"demo"})
    return value_digest([store_key, stages, history.model_dump(mode="json"), settings])


def complete(run: Run) -> bool:
    """Whether the corpus of the last scan has been extracted and reported with the settings of this run.

    It has not if an extraction was interrupted, or if what it wrote is damaged.
    """
    if "extract" not in run.record.stages or run.record.changed_outputs("extract"):
        return False
    return run.record.unchanged("report", report_key(run, run.unchecked_store_key()))


def _check_progress(run: Run) -> None:
    """Raise PipelineError for a file on the progress of the last extraction that is damaged; it may be missing."""
    extracted = run.record.stages.get("extract")
    for name, digest in (extracted.progress if isinstance(extracted, ExtractRecord) else {}).items():
        found = file_digest(run.output.root / name)
        if found and found.digest != digest:
            raise PipelineError(
                f"{run.output.root / name} is damaged (its digest in run.json is another); delete it: the report is "
                "then without the progress of the last extraction"
            )


def report_stage(run: Run) -> None:
    """All results → one page."""
    page = run.output.report / "index.html"

    def work() -> Facts:
        from pipeline.report.page import write_report  # noqa: PLC0415 matplotlib is for this stage alone

        metrics = metrics_of_models(run.output, run.config.models)
        write_report(
            run.output, registry.read(run.output), metrics, histories_of_models(run.output, run.config.models)
        )
        return {}

    for name in run.config.models:
        run.require_outputs(f"train/{name}")
        run.require_outputs(f"evaluate/{name}")
    _check_progress(run)
    run.perform("report", report_key(run, run.store_key()), _report_files(run.output), work)
    log.info("report: %s", page)


def _report_files(output: OutputFolder) -> Iterator[UPath]:
    """Yield the files of the report, once they are written; extraction records those that show its progress."""
    yield from sorted({*output.report.glob("*.png"), output.report / "index.html"}, key=str)


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
