"""The command line: `python -m pipeline.run`."""

import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from pipeline import interrupts, storage
from pipeline.config import digest, load
from pipeline.errors import PipelineError, UsageError
from pipeline.extraction import ledger
from pipeline.monitoring.progress import set_up_logging
from pipeline.outputs import OutputFolder
from pipeline.run_config import RunConfig
from pipeline.run_record import RunRecord
from pipeline.runtime.executor import Executor, SerialExecutor
from pipeline.runtime.profiles import ClusterProfile, load_profile
from pipeline.stages import ON_REQUEST, STAGES, Run, complete, execute, moment, roll_back, show_status
from pipeline.storage import folder_at
from pipeline.store import records

EXIT_TOO_MANY_FAILED = 3

log = logging.getLogger("pipeline.run")  # __name__ is __main__ here


def _prepare(output: OutputFolder, config: RunConfig, corpus: str | None, stage: str) -> RunRecord:
    """Check that the output folder can be written and is of this configuration, before any work."""
    if stage not in (*FIRST, *WITH_CORPUS) and not output.root.exists():
        raise UsageError(f"--out {output.root}: there is no such folder; run scan first, which makes it")
    found = records.attributes(output)
    wanted = config.pipeline.store_hash
    if found is not None and found["config_hash"] != wanted:
        raise UsageError(
            f"--out {output.root} holds a store of another configuration (hash {found['config_hash']}, this run has "
            f"{wanted}); take another --out, or the configuration that it was made with"
        )
    state = RunRecord(output)
    settings = config.model_dump(mode="json")
    try:
        state.describe(corpus=corpus, config=settings, config_hash=digest(settings))
    except OSError as error:
        raise UsageError(f"--out {output.root} cannot be written: {error.strerror or error}") from None
    return state


def _of_stage(stage: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that only one stage has, read; raises UsageError where one is given to another stage."""
    for name, value in options.items():
        if value is not None and stage != BELONGS_TO[name]:
            raise UsageError(f"--{name.replace('_', '-')} {value} is an option of {BELONGS_TO[name]}, not of {stage}")
    chosen = {name: value for name, value in options.items() if stage == BELONGS_TO[name]}
    if chosen.get("as_of") is not None:
        chosen["as_of"] = moment(chosen["as_of"])
    return {name: value for name, value in chosen.items() if value is not None or stage == "rollback"}


def _check_failures(output: OutputFolder, most: float) -> None:
    """Exit with 3 where more recordings failed than allowed."""
    if not output.ledger.exists():
        return
    rows = storage.read_parquet(output.ledger)
    if ledger.failed_fraction(rows) > most:
        failed = ledger.counts(rows)["failed"]
        log.error(
            "done, but %d of %d recordings failed, more than --max-failed-fraction %g allows; the reasons are in %s",
            failed, len(rows), most, output.ledger,
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
130 interrupted (the same command continues); N of --unchanged-exit-code.
"""
BELONGS_TO = {
    "as_of": "evaluate", "run_key": "promote", "kept_exit_code": "promote", "to": "rollback", "reason": "rollback",
}  # fmt: skip

WITH_CORPUS = ("demo", "synthesise")
FIRST = ("all", "scan")
"""The stages that make an output folder of a corpus that is there."""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 110})
@click.argument("stage", type=click.Choice(["all", *WITH_CORPUS, *STAGES, *ON_REQUEST, "rollback", "status"]),
                default="all", metavar="[STAGE]")  # fmt: skip
@click.option("--corpus", metavar="URI", help="Recordings: LANGUAGE/[SPEAKER/…]/file (wav, flac, ogg, opus, mp3).")
@click.option("--out", metavar="URI", required=True, help="The output folder; made if it is not there.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings in YAML.")
@click.option("--set", "overrides", multiple=True, metavar="KEY.SUB=VALUE", help="One setting; may be repeated.")
@click.option("--cluster", default="local", show_default=True, metavar="PROFILE", help="A profile of cluster.yaml.")
@click.option("--cluster-file", type=click.Path(path_type=Path), help="Another file of profiles.")
@click.option("--executor", type=click.Choice(["dask", "serial"]), default="dask", show_default=True,
              help="Where tasks run: on the cluster, or in this process.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), help="Dask workers of one thread each.  [default: the cores]")
@click.option("--prune", is_flag=True, help="Mask what the store has of recordings that are gone or have changed.")
@click.option("--max-failed-fraction", type=click.FloatRange(0, 1), default=0.01, show_default=True,
              help="Exit with 3 if a larger part of the recordings failed.")  # fmt: skip
@click.option("--unchanged-exit-code", type=click.IntRange(0, 255), default=0, show_default=True, metavar="N",
              help="scan, all: exit with N if nothing is new and the last run came to its report (99 skips an Airflow "
              "task).")  # fmt: skip
@click.option("--as-of", metavar="DATE", help="evaluate: the model that served then, at the end of a date; in UTC.")
@click.option("--run-key", metavar="TEXT", help="promote: a name for this run, noted with its decision.")
@click.option("--kept-exit-code", type=click.IntRange(0, 255), metavar="N",
              help="promote: exit with N if the champion stays.  [default: 0]")  # fmt: skip
@click.option("--to", metavar="VERSION", help="rollback: to this version.  [default: the champion before]")
@click.option("--reason", metavar="TEXT", help="rollback: why, noted with the decision.")
def main(
    stage: str, corpus: str | None, out: str, config_file: Path | None, overrides: tuple[str, ...], cluster: str,
    cluster_file: Path | None, executor: str, workers: int | None, prune: bool, max_failed_fraction: float,
    unchanged_exit_code: int, **special: Any,
) -> None:  # fmt: skip
    """Turn a folder of recordings into a spoken-language classifier.

    STAGE is all (the default), demo (synthesises its own corpus first), synthesise (does only that), scan, extract,
    verify, train, evaluate, report or status; and, not in all: promote (the trained model serves if it is better than
    the one that does), rollback, and compact (writes a store that grew as if it had been made at once). A stage whose
    inputs, settings and outputs are unchanged is skipped; one that was interrupted continues. New recordings in the
    corpus are added to what is there.
    """
    special = _of_stage(stage, special)
    output = OutputFolder.at(out)
    if output.compacted.complete.exists():
        from pipeline.extraction import compact  # noqa: PLC0415 a rare case: one was killed in its last moments

        compact.swap(output)
    if stage == "rollback":
        roll_back(output, **special)
        return
    if stage == "status":
        show_status(output)
        return
    config = load(RunConfig, config_file, overrides)
    profile = load_profile(cluster, cluster_file)
    corpus = str(output.demo_corpus) if stage in WITH_CORPUS else corpus and str(folder_at(corpus))
    stages = {"all": list(STAGES), "demo": list(STAGES), "synthesise": []}.get(stage, [stage])
    with ExitStack() as stack:
        run = Run(
            output, config, _prepare(output, config, corpus, stage),
            start=lambda: stack.enter_context(_executor(executor, profile, workers)),
            corpus=corpus, recheck=stage == "verify", prune=prune, price_per_core_hour=profile.price_per_core_hour,
            **special,
        )  # fmt: skip
        if stage in WITH_CORPUS:
            from pipeline.demo import synthesise  # noqa: PLC0415 only a demo needs what synthesises it

            synthesise.make_corpus(output, config.demo, run.executor)
        execute(run, stages)
    _check_failures(output, max_failed_fraction)
    if stage in FIRST and not run.state.changed and complete(run):
        sys.exit(unchanged_exit_code)


def _executor(kind: str, profile: ClusterProfile, workers: int | None) -> Executor:
    if kind == "serial":
        return SerialExecutor()
    from pipeline.runtime.dask_executor import DaskExecutor  # noqa: PLC0415 Dask takes a second to load

    return DaskExecutor(profile, workers)


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
        interrupts.settled()
        log.error("interrupted; the same command continues")
        sys.exit(interrupts.EXIT_INTERRUPTED)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        log.error("%s%s; mend that and run the same command again", place, error.strerror or error)
        sys.exit(PipelineError.exit_code)


if __name__ == "__main__":
    command_line()
