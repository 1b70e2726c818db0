"""The command line: `python -m tests.benchmarks`."""

import importlib
import logging
from pathlib import Path

import click
from rich.console import Console

from tests.benchmarks import report
from tests.benchmarks.settings import Settings

GROUPS = ("kernel", "extraction", "loader", "training", "scan")
WIDTH = 120
"""Columns that a table needs."""
ROOT = Path(__file__).parents[2]

log = logging.getLogger("benchmarks")

EPILOG = """
\b
Examples:
  python -m tests.benchmarks
  python -m tests.benchmarks kernel loader --rounds 9
  python -m tests.benchmarks --hours 0.05 --rounds 1 --tasks 1000 --docs out/bench
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 110})
@click.argument("groups", nargs=-1, type=click.Choice(GROUPS), metavar="[GROUP]...")
@click.option("--hours", type=click.FloatRange(min=0.01), default=2.0, show_default=True,
              help="Length of the speech corpus, which is made once.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True,
              help="Turns of each contender; slow ones have fewer.")  # fmt: skip
@click.option("--tasks", type=click.IntRange(min=100), default=100_000, show_default=True,
              help="Empty tasks for the cluster; a million takes three quarters of an hour.")  # fmt: skip
@click.option("--records", type=click.IntRange(min=10_000), default=200_000, show_default=True,
              help="Records of shards in a folder that is resumed and finished.")  # fmt: skip
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "out" / "bench",
              help="Corpus, stores and scratch.  [default: out/bench]")  # fmt: skip
@click.option("--docs", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "docs",
              help="Where benchmarks.md and benchmarks.json go.  [default: docs]")  # fmt: skip
def main(groups: tuple[str, ...], hours: float, rounds: int, tasks: int, records: int, work: Path, docs: Path) -> None:
    """Measure this software beside others, in turns, and write docs/benchmarks.md and docs/benchmarks.json.

    GROUP is one or more of kernel, extraction, loader, training and scan; all of them if none is named. Results of
    groups that are not measured now stay in the files.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%X", level=logging.WARNING)
    log.setLevel(logging.INFO)
    settings = Settings(hours, rounds, tasks, records, work.absolute())
    settings.work.mkdir(parents=True, exist_ok=True)
    command = f"--hours {hours:g} --rounds {rounds} --tasks {tasks} --records {records}"
    for name in groups or GROUPS:
        log.info("%s: begins", name)
        group = importlib.import_module(f"tests.benchmarks.{name}")
        tables = group.run(settings)
        report.show(tables, Console(width=max(Console().width, WIDTH)))
        report.merge(docs, name, group.TITLE, command, tables)
        log.info("%s: written to %s", name, docs / "benchmarks.md")


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks")
