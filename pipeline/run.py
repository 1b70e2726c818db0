"""The command line: `python -m pipeline.run`. Its stages are the architecture, top to bottom."""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from upath import UPath

from model.config import ModelConfig, ModelsConfig, PromotionConfig
from model.startup import load_tensorflow
from pipeline import demo, extraction, interrupts, ledger, manifest, registry, status, store, tables, verification
from pipeline.cluster import load_profile
from pipeline.config import PipelineConfig, digest, load
from pipeline.corpus import Listing, list_recordings
from pipeline.dask_executor import DaskExecutor
from pipeline.decisions import Moment, Question
from pipeline.errors import PipelineError, UsageError, few
from pipeline.executors import Executor, SerialExecutor
from pipeline.plan import Plan
from pipeline.progress import set_up_logging
from pipeline.scan import scan
from pipeline.schema import AS_OF, Layout, folder_at
from pipeline.state import RunState
from pipeline.synthesis import DemoConfig

EXIT_TOO_MANY_FAILED = 3

log = logging.getLogger("pipeline.run")  # __name__ is __main__ here


class RunConfig(PipelineConfig):
    """All settings of a run."""

    models: ModelsConfig = ModelsConfig()
    promotion: PromotionConfig = PromotionConfig()
    demo: DemoConfig = DemoConfig()

    @property
    def pipeline(self) -> PipelineConfig:
        """The settings that the store depends on."""
        return PipelineConfig.model_validate(self.model_dump(include=set(PipelineConfig.model_fields)))


@dataclass(frozen=True)
class Run:
    """What every stage is given."""

    layout: Layout
    config: RunConfig
    state: RunState
    executor: Executor
    corpus: str | None
    recheck: bool
    price_per_core_hour: float | None = None
    as_of: Moment | None = None
    run_key: str | None = None
    kept_exit_code: int = 0

    def skips(self, stage: str, key: str, *, complete: bool = True) -> bool:
        """Whether `stage` has nothing to do; says so. `complete`: nothing is missing that only the stage knows of."""
        if self.recheck or not complete or not self.state.unchanged(stage, key):
            log.info("%s: begins", stage)
            return False
        log.info("%s: unchanged, nothing to do", stage)
        return True

    def manifest(self) -> pd.DataFrame:
        """Return the manifest; raises UsageError where there is none."""
        if not self.layout.manifest.exists():
            raise UsageError(f"--out {self.layout.root}: there is no manifest yet; run scan first")
        return tables.read(self.layout.manifest)

    def speakers(self) -> NDArray[np.int64]:
        """Return a number for the speaker of each row of the manifest."""
        return manifest.speaker_codes(self.manifest())

    def store_key(self) -> str:
        """Digest of the finished store; raises UsageError where there is none."""
        extracted = self.state.stages.get("extract")
        if extracted is None:
            raise UsageError(f"--out {self.layout.root}: nothing is extracted yet; run extract first")
        return digest([extracted["key"], extracted["outputs"]])


def scan_stage(run: Run) -> None:
    """Corpus → manifest."""
    if run.corpus is None:
        raise UsageError("--corpus is missing: the folder LANGUAGE/[SPEAKER/]file of recordings")
    listing = list_recordings(run.corpus)
    key = digest([listing.digest, run.corpus, run.config.pipeline.store_hash])
    if run.skips("scan", key) or _keeps_manifest(run, listing):
        return
    started_s = time.perf_counter()
    table = scan(listing, run.layout, run.config.pipeline, run.executor)
    run.state.record(
        "scan", key, [run.layout.manifest], wall_s=time.perf_counter() - started_s, recordings=len(table),
        others=len(listing.others),
    )  # fmt: skip


def _keeps_manifest(run: Run, listing: Listing) -> bool:
    """Whether the store's manifest stays although recordings went; raises UsageError where some came or changed."""
    if store.attributes(run.layout) is None or not run.layout.manifest.exists():
        return False
    known: dict[str, int] = dict(
        tables.read(run.layout.manifest)[["recording_id", "size_bytes"]].itertuples(index=False)
    )
    sizes: dict[str, int] = dict(listing.recordings[["recording_id", "size_bytes"]].itertuples(index=False))
    new = [name for name in sizes if sizes[name] != known.get(name)]
    gone = [name for name in known if name not in sizes]
    if new:
        raise UsageError(
            f"--corpus {run.corpus}: {len(new)} recordings are new or changed since the store in {run.layout.root} "
            f"was begun ({few(new)}); take another --out"
        )
    if gone:
        log.warning("scan: %d recordings of the manifest are gone: %s; the manifest stays", len(gone), few(gone))
    return bool(gone)


def extract_stage(run: Run) -> None:
    """Manifest → store and ledger."""
    table = run.manifest()
    key = digest([run.config.pipeline.store_hash, manifest.digest(table)])
    complete = len(store.finished(run.layout)) == len(Plan(table, run.config.pipeline))
    if run.skips("extract", key, complete=complete):
        return
    result = extraction.extract(run.layout, table, run.config.pipeline, run.executor)
    counts = ledger.counts(tables.read(run.layout.ledger))
    log.info("extract: %s", ", ".join(f"{n} {status}" for status, n in counts.items()))
    outputs = [run.layout.ledger, run.layout.store / "zarr.json", run.layout.store / "train_count" / "c"]
    speed, price = result.audio_h_per_core_h, result.price_per_1000_audio_h(run.price_per_core_hour)
    run.state.record(
        "extract", key, outputs, recordings=counts, audio_h_per_core_h=speed, price_per_1000_audio_h=price,
        **asdict(result),
    )  # fmt: skip


def verify_stage(run: Run) -> None:
    """Check the store against its checksums, and the ledger against the store."""
    key = run.store_key()
    if run.skips("verify", key):
        return
    started_s = time.perf_counter()
    shards = verification.verify(run.layout, run.manifest(), run.config.pipeline, run.executor)
    log.info("verify: %d shards are as they were written, the ledger closes", shards)
    run.state.record("verify", key, [], wall_s=time.perf_counter() - started_s, shards=shards)


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
        facts = train(run.layout, name, config, run.config.seed, key)
        folder = run.layout.model(name)
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
            raise UsageError(f"--out {run.layout.root}: the model {name} is not trained yet; run train first")
        stage, key = f"evaluate/{name}", digest([run.store_key(), trained["outputs"]])
        if run.skips(stage, key):
            continue
        load_tensorflow()
        from model.evaluate import evaluate  # noqa: PLC0415 TensorFlow takes seconds to load

        started_s = time.perf_counter()
        facts = {"model": name, "config_hash": digest(run.config.model_dump(mode="json"))}
        metrics = evaluate(run.layout, name, run.layout.model(name), facts, run.speakers(), run.config.seed)
        levels = [level for level in ("frame", "sequence", "recording") if level in metrics]
        accuracies = {f"{level}_accuracy": metrics[level]["accuracy"] for level in levels}
        log.info("evaluate %s: %s", name, ", ".join(f"{k} {v:.2%}" for k, v in accuracies.items()))
        run.state.record(stage, key, [run.layout.metrics(name)], wall_s=time.perf_counter() - started_s, **accuracies)


def _evaluate_as_of(run: Run, moment: Moment) -> None:
    """Evaluate the model that served at `moment` on the store as it is now."""
    run.store_key()
    version = registry.read(run.layout).served(moment)
    load_tensorflow()
    from model.evaluate import evaluate  # noqa: PLC0415 TensorFlow takes seconds to load

    name, facts = f"{AS_OF}{moment.name}", {"version": version, "as_of": moment.at.isoformat()}
    folder = registry.checked(run.layout, version)
    recording = evaluate(run.layout, name, folder, facts, run.speakers(), run.config.seed)["recording"]
    log.info("evaluate %s: %s served, macro F1 a recording %.3f", name, version, recording["macro_f1"])


def promote_stage(run: Run) -> None:
    """Model → registry, where it is better than the one that serves; else exit with `kept_exit_code`."""
    settings = run.config.promotion
    if settings.model not in run.config.models.chosen() or f"train/{settings.model}" not in run.state.stages:
        raise UsageError(
            f"--out {run.layout.root}: the model {settings.model} is not trained yet; run train first, or choose "
            "another by --set promotion.model=…"
        )
    run.store_key()
    attributes = store.attributes(run.layout) or {}
    question = Question(
        challenger=registry.version_of(run.layout.model(settings.model)), model=settings.model,
        store={key: attributes[key] for key in ("config_hash", "manifest_digest")},
        rule=settings.model_dump(exclude={"model"}),
    )  # fmt: skip

    def judge(folder: UPath, champion: UPath | None) -> tuple[dict[str, Any], dict[str, Any]]:
        load_tensorflow()
        from model.evaluate import compare  # noqa: PLC0415 TensorFlow takes seconds to load

        verdict, metrics = compare(run.layout, folder, champion, settings, run.speakers(), run.config.seed)
        return asdict(verdict), metrics

    if not registry.promote(run.layout, question, run.run_key, judge) and run.kept_exit_code:
        sys.exit(run.kept_exit_code)


def report_stage(run: Run) -> None:
    """Everything → one page."""
    stages = {name: stage["outputs"] for name, stage in run.state.stages.items() if name != "report"}
    key = digest([run.store_key(), stages, registry.read(run.layout).model_dump(mode="json")])
    page = run.layout.report / "index.html"
    if not run.skips("report", key):
        from pipeline.report import write_report  # noqa: PLC0415 matplotlib is for this stage alone

        started_s = time.perf_counter()
        write_report(run.layout)
        run.state.record("report", key, [page], wall_s=time.perf_counter() - started_s)
    log.info("report: %s", page)


STAGES: dict[str, Callable[[Run], None]] = {
    "scan": scan_stage,
    "extract": extract_stage,
    "verify": verify_stage,
    "train": train_stage,
    "evaluate": evaluate_stage,
    "report": report_stage,
}
ON_REQUEST: dict[str, Callable[[Run], None]] = {"promote": promote_stage}
"""Stages that `all` leaves out."""
ON_CLUSTER = ("scan", "extract", "verify")


def execute(run: Run, stages: list[str]) -> None:
    """Run stages one after the other; the cluster is gone before training needs the cores."""
    for name in stages:
        if name not in ON_CLUSTER:
            run.executor.close()
        {**STAGES, **ON_REQUEST}[name](run)


def _prepare(layout: Layout, config: RunConfig, corpus: str | None) -> RunState:
    """Check that the output folder can be written and is of this configuration, before any work."""
    found = store.attributes(layout)
    wanted = config.pipeline.store_hash
    if found is not None and found["config_hash"] != wanted:
        raise UsageError(
            f"--out {layout.root} holds a store of another configuration (hash {found['config_hash']}, this run has "
            f"{wanted}); take another --out, or the configuration that it was made with"
        )
    state = RunState(layout)
    settings = config.model_dump(mode="json")
    try:
        state.describe(corpus=corpus, config=settings, config_hash=digest(settings))
    except OSError as error:
        raise UsageError(f"--out {layout.root} cannot be written: {error.strerror or error}") from None
    return state


def _of_stage(stage: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that only one stage has, read; raises UsageError where one is given to another stage."""
    for name, value in options.items():
        if value is not None and stage != BELONGS_TO[name]:
            raise UsageError(f"--{name.replace('_', '-')} {value} is an option of {BELONGS_TO[name]}, not of {stage}")
    chosen = {name: value for name, value in options.items() if stage == BELONGS_TO[name]}
    if chosen.get("as_of") is not None:
        chosen["as_of"] = Moment.of(chosen["as_of"], datetime.now(UTC))
    return {name: value for name, value in chosen.items() if value is not None or stage == "rollback"}


def _check_failures(layout: Layout, most: float) -> None:
    """Exit with 3 where more recordings failed than allowed."""
    if not layout.ledger.exists():
        return
    rows = tables.read(layout.ledger)
    if ledger.failed_fraction(rows) > most:
        failed = ledger.counts(rows)["failed"]
        log.error(
            "done, but %d of %d recordings failed, more than --max-failed-fraction %g allows; the reasons are in %s",
            failed, len(rows), most, layout.ledger,
        )  # fmt: skip
        sys.exit(EXIT_TOO_MANY_FAILED)


EPILOG = """
\b
Examples:
  python -m pipeline.run demo --out out/demo
  python -m pipeline.run --corpus recordings --out out/mine --workers 4
  python -m pipeline.run train --out out/mine --set models.lstm.units=200
  python -m pipeline.run rollback --out out/mine --reason "worse on the phone"

\b
Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 done, but too many recordings failed;
130 interrupted (the same command continues).
"""
BELONGS_TO = {
    "as_of": "evaluate", "run_key": "promote", "kept_exit_code": "promote", "to": "rollback", "reason": "rollback",
}  # fmt: skip


@click.command(epilog=EPILOG, context_settings={"max_content_width": 110})
@click.argument("stage", type=click.Choice(["all", "demo", *STAGES, *ON_REQUEST, "rollback", "status"]), default="all",
                metavar="[STAGE]")  # fmt: skip
@click.option("--corpus", metavar="URI", help="Recordings: LANGUAGE/[SPEAKER/…]/file (wav, flac, ogg, opus, mp3).")
@click.option("--out", metavar="URI", required=True, help="The output folder; made if it is not there.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings in YAML.")
@click.option("--set", "overrides", multiple=True, metavar="KEY.SUB=VALUE", help="One setting; may be repeated.")
@click.option("--cluster", default="local", show_default=True, metavar="PROFILE", help="A profile of cluster.yaml.")
@click.option("--cluster-file", type=click.Path(path_type=Path), help="Another file of profiles.")
@click.option("--executor", type=click.Choice(["dask", "serial"]), default="dask", show_default=True,
              help="Where tasks run: on the cluster, or in this process.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), help="Dask workers of one thread each.  [default: the cores]")
@click.option("--max-failed-fraction", type=click.FloatRange(0, 1), default=0.01, show_default=True,
              help="Exit with 3 if a larger part of the recordings failed.")  # fmt: skip
@click.option("--as-of", metavar="DATE", help="evaluate: the model that served then, at the end of a date; in UTC.")
@click.option("--run-key", metavar="TEXT", help="promote: a name for this run, noted with its decision.")
@click.option("--kept-exit-code", type=click.IntRange(0, 255), metavar="N",
              help="promote: exit with N if the champion stays.  [default: 0]")  # fmt: skip
@click.option("--to", metavar="VERSION", help="rollback: to this version.  [default: the champion before]")
@click.option("--reason", metavar="TEXT", help="rollback: why, noted with the decision.")
def main(
    stage: str, corpus: str | None, out: str, config_file: Path | None, overrides: tuple[str, ...], cluster: str,
    cluster_file: Path | None, executor: str, workers: int | None, max_failed_fraction: float, **special: Any,
) -> None:  # fmt: skip
    """Turn a folder of recordings into a spoken-language classifier.

    STAGE is all (the default), demo (synthesises its own corpus first), scan, extract, verify, train, evaluate,
    report or status; and, not in all: promote (the trained model serves if it is better than the one that does) and
    rollback. A stage whose inputs, settings and outputs are unchanged is skipped; one that was interrupted
    continues.
    """
    special = _of_stage(stage, special)
    layout = Layout.at(out)
    if stage == "rollback":
        registry.roll_back(layout, **special)
        return
    if stage == "status":
        status.show(layout, Console())
        return
    config = load(RunConfig, config_file, overrides)
    corpus = corpus and str(folder_at(corpus))
    profile = load_profile(cluster, cluster_file)
    runs_on = SerialExecutor() if executor == "serial" else DaskExecutor(profile, workers)
    with runs_on:
        if stage == "demo":
            corpus = str(demo.corpus_folder(layout))
        state = _prepare(layout, config, corpus)
        if stage == "demo":
            demo.make_corpus(layout, config.demo, runs_on)
        stages = list(STAGES) if stage in ("all", "demo") else [stage]
        run = Run(
            layout, config, state, runs_on, corpus, recheck=stage == "verify",
            price_per_core_hour=profile.price_per_core_hour, **special,
        )  # fmt: skip
        execute(run, stages)
    _check_failures(layout, max_failed_fraction)


def command_line() -> None:
    """Run `main`, and turn what can go wrong into one line and an exit code."""
    set_up_logging()
    interrupts.set_up()
    try:
        main.main(prog_name="python -m pipeline.run", standalone_mode=False)
    except click.ClickException as error:
        log.error("%s (see --help)", error.format_message())
        sys.exit(UsageError.exit_code)
    except PipelineError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        log.error("interrupted; the same command continues")
        sys.exit(interrupts.EXIT_INTERRUPTED)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        log.error("%s%s; mend that and run the same command again", place, error.strerror or error)
        sys.exit(PipelineError.exit_code)


if __name__ == "__main__":
    command_line()
