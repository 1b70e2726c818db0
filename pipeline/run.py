"""The command line: `python -m pipeline.run`, also installed as `spoken-language-pipeline`."""

import logging
import signal
import sys
from typing import Final

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until interrupts.set_up: no traceback of the imports below

import click

from pipeline.errors import PipelineError, UsageError
from pipeline.monitoring.progress import set_up_logging

try:
    from pipeline import model_stages, stages
except (ModuleNotFoundError, UsageError) as error:
    reason = str(error)
    if isinstance(error, ModuleNotFoundError):
        if (error.name or "").partition(".")[0] != "model":
            raise
        place = getattr(sys.modules.get("model"), "__file__", None) or "a module"
        reason = f"{place} hides the package `model` of this project: rename it, or run this command in another folder"
    set_up_logging()
    logging.getLogger("pipeline.run").error("%s", reason)
    sys.exit(UsageError.exit_code)

from pipeline import environment, interrupts
from pipeline.object_stores import cause_of, file_errors
from pipeline.options import PROGRAM, PRUNE, UNCHANGED_EXIT_CODE, Options, StageGroup, epilog, explain
from pipeline.preparation import output_of, prepared, settled
from pipeline.run_context import Run

EXIT_TOO_MANY_FAILED: Final = 3

log = logging.getLogger("pipeline.run")  # __name__ is __main__ here


@click.group(
    cls=StageGroup,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    options_metavar="",
    subcommand_metavar="[STAGE] [OPTIONS]",
    epilog=epilog(
        "demo --out out/demo",
        "--corpus recordings --out out/mine --workers 4",
        "train --out out/mine --set models.lstm.units=200",
        "extract --help",
    ),
)
def main() -> None:
    """Turn a folder of recordings into a spoken-language classifier.

    Without a STAGE, `all` runs. A stage is skipped if its inputs, settings and outputs have not changed; an
    interrupted stage continues. STAGE --help lists the options of a stage.
    """


@main.stage(
    PRUNE,
    UNCHANGED_EXIT_CODE,
    examples=("--corpus recordings --out out/mine", "all --corpus s3://bucket/speech --out out/mine"),
)
def all_(options: Options, prune: bool, unchanged_exit_code: int) -> int:
    """Run scan, extract, verify, train, evaluate and report (the default)."""
    with prepared(options, makes_folder=True, prune=prune) as run:
        stages.execute(run, stages.ALL)
    return _exit_code(run, options, unchanged_exit_code)


@main.stage(examples=("demo --out out/demo",))
def demo(options: Options) -> int:
    """Synthesise a corpus below --out, then run all stages on it."""
    with prepared(options, makes_folder=True, demo=True) as run:
        _synthesise(run)
        stages.execute(run, stages.ALL)
    return _exit_code(run, options)


@main.stage(examples=("synthesise --out out/demo",))
def synthesise(options: Options) -> int:
    """Only synthesise the demo's corpus."""
    with prepared(options, makes_folder=True, demo=True) as run:
        _synthesise(run)
    return 0


@main.stage(PRUNE, UNCHANGED_EXIT_CODE, examples=("scan --corpus recordings --out out/mine",))
def scan(options: Options, prune: bool, unchanged_exit_code: int) -> int:
    """List the recordings and read their headers into manifest.parquet."""
    with prepared(options, makes_folder=True, prune=prune) as run:
        stages.execute(run, ["scan"])
    return _exit_code(run, options, unchanged_exit_code)


@main.stage(
    click.option("--repair", is_flag=True, help="Read all shards, and make again what is damaged."),
    examples=("extract --out out/mine --workers 8", "extract --out out/mine --repair"),
)
def extract(options: Options, repair: bool) -> int:
    """Compute the features of the manifest's recordings into features.zarr and ledger.parquet."""
    return _execute(options, "extract", repair=repair)


@main.stage()
def verify(options: Options) -> int:
    """Read every file below --out that is recorded, and name those that are damaged."""
    return _execute(options, "verify", recheck=True, only_reads=True)


@main.stage(examples=("train --out out/mine --set models.lstm.units=200",))
def train(options: Options) -> int:
    """Train the models of the settings on the store."""
    return _execute(options, "train")


@main.stage(
    click.option(
        "--as-of", metavar="DATE", help="The model in service at the end of that date, or at that time; UTC."
    ),
    examples=("evaluate --out out/mine", "evaluate --out out/mine --as-of 2026-01-31"),
)
def evaluate(options: Options, as_of: str | None) -> int:
    """Evaluate the trained models, or one that was in service earlier, on the test speakers."""
    if as_of is None:
        return _execute(options, "evaluate", only_reads=True)
    with prepared(options, only_reads=True) as run:
        model_stages.evaluate_as_of(run, as_of)
    return _exit_code(run, options)


@main.stage()
def report(options: Options) -> int:
    """Write report/index.html."""
    return _execute(options, "report")


@main.stage()
def compact(options: Options) -> int:
    """Rewrite a store with appends or masked recordings as a single run would have written it."""
    return _execute(options, "compact")


@main.stage(
    click.option("--run-key", metavar="TEXT", help="A name for this run, recorded with its decision."),
    click.option("--kept-exit-code", type=click.IntRange(0, 255), default=0, show_default=True, metavar="N",
                 help="Exit with N if the champion stays."),
    examples=("promote --out out/mine", "promote --out out/mine --set promotion.model=ann --kept-exit-code 99"),
)  # fmt: skip
def promote(options: Options, run_key: str | None, kept_exit_code: int) -> int:
    """Put the trained model into service if it is better than the champion."""
    with prepared(options) as run:
        promoted = model_stages.promote(run, run_key)
    return _exit_code(run, options) or (0 if promoted else kept_exit_code)


@main.stage(
    click.option("--to", metavar="VERSION", help="The version to restore.  [default: the previous champion]"),
    click.option("--reason", metavar="TEXT", help="Why; recorded with the decision."),
    examples=('rollback --out out/mine --reason "worse on the phone"',),
)
def rollback(options: Options, to: str | None, reason: str | None) -> None:
    """Restore the previous champion."""
    stages.roll_back(settled(output_of(options)), to, reason)


@main.stage()
def status(options: Options) -> None:
    """Print the progress of an output folder, its stages, and the decisions on its models."""
    stages.show_status(settled(output_of(options)))


for command in (rollback, status):  # they accept the options that all stages share, but need only these
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("out", "to", "reason"):
            parameter.hidden = True


def _synthesise(run: Run) -> None:
    from pipeline.demo import synthesise as corpus  # noqa: PLC0415 only a demo needs it

    corpus.make_corpus(run.output, run.config.demo, run.executor())


def _execute(
    options: Options, stage: str, *, recheck: bool = False, only_reads: bool = False, repair: bool = False
) -> int:
    with prepared(options, recheck=recheck, only_reads=only_reads, repair=repair) as run:
        stages.execute(run, [stage])
    return _exit_code(run, options)


def _exit_code(run: Run, options: Options, unchanged: int = 0) -> int:
    """Return the exit code of a run that came to its end; `unchanged` is that of a run with nothing to do."""
    if run.output.ledger.exists():
        from pipeline.extraction import ledger  # noqa: PLC0415

        counts = ledger.counts(run.output)
        if ledger.failed_fraction(counts) > options.max_failed_fraction:
            log.error(
                "done, but %d of %d recordings failed, more than --max-failed-fraction %g allows; see %s for the "
                "reasons", counts["failed"], sum(counts.values()), options.max_failed_fraction, run.output.ledger,
            )  # fmt: skip
            return EXIT_TOO_MANY_FAILED
    return unchanged if unchanged and not run.record.changed and stages.complete(run) else 0


def command_line() -> None:
    """Run `main`, and exit with its code; an error that the user can fix is one line."""
    environment.open_standard_streams()
    environment.ensure_home()
    set_up_logging()
    interrupts.set_up()
    try:
        environment.check()
        code = main.main(prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        log.error("%s", explain(error, main))
        code = UsageError.exit_code
    except PipelineError as error:
        log.error("%s", error)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        interrupts.end(signal.SIGINT)
    except interrupts.Terminated as ended:
        interrupts.end(ended.signum)
    except file_errors() as error:
        place = getattr(error, "filename", None)
        what = f"{place}: {cause_of(error)}" if place else cause_of(error)
        log.error("%s; fix that and run the same command again", what)
        code = PipelineError.exit_code
    sys.exit(code)


if __name__ == "__main__":
    command_line()
