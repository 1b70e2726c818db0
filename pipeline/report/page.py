"""The report stage: everything in an output folder → one page that needs no other file."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.durable_files import write_atomically
from pipeline.outputs import OutputFolder
from pipeline.report import champion, corpus_section, model_section, plots
from pipeline.report.ledger_counts import LedgerCounts
from pipeline.report.picture import missing_fonts
from pipeline.report.results import Pictures, Results
from pipeline.storage import read_csv

if TYPE_CHECKING:
    from model.metrics.metrics_file import Metrics
    from model.registry.history import History

log = logging.getLogger(__name__)

EXPENDABLE: Final = "delete it: the report is then without the progress of the last extraction"

MIN_POINTS: Final = 5
"""A shorter extraction has no picture of its speed."""


def write_report(
    output: OutputFolder, history: "History", metrics: Mapping[str, "Metrics"], histories: Mapping[str, pd.DataFrame]
) -> None:
    """Write report/index.html, and its pictures beside it, from what the stages have left so far.

    `history` has the decisions on promotion; `metrics` and `histories`, the epochs of the trainings, are those of the
    trained models by name. Raises PipelineError for a file that is damaged.
    """
    results = Results.read(output, metrics, histories)
    pictures = Pictures(output.report)
    _draw_speed(output, pictures)
    recordings = corpus_section.CorpusCounts.of(results)
    outcomes = LedgerCounts.of(output, len(results.manifest)) if results.has_ledger else None
    context = {
        "run": results.run,
        "settings": json.dumps(results.run.config, indent=2, ensure_ascii=False),
        "labels": results.labels,
        "sequence_s": results.sequence_s,
        "all_speakers_named": recordings.amounts.unnamed + recordings.amounts.unnamed_masked == 0,
        "test_speakers": recordings.speakers.test,
        "corpus_name": _corpus_name(results),
        "corpus": corpus_section.corpus(results, recordings, outcomes, pictures),
        "failures": corpus_section.failures(results, outcomes),
        "stages": sorted(results.stages.items(), key=lambda item: item[1].finished_at),
        "trainings": model_section.trainings(results, pictures),
        "comparison": model_section.comparison(results, pictures),
        "champion": champion.section(history, pictures.add),
        "confusions": model_section.confusions(results, pictures),
        "example": model_section.example(results, pictures),
        "performance_report": output.performance.exists(),
        "pictures": pictures.sources,
    }
    page = _environment().get_template("report.html.j2").render(context)
    file = output.report / "index.html"
    write_atomically(file, page.encode())
    if pictures.boxes:
        log.warning("report: %s, delete %s and run report again", missing_fonts(pictures.boxes), file)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _unbroken(plots.percent), "count": count, "duration": _unbroken(duration)}
    environment.globals |= {"heading": model_section.heading, "metric": model_section.value}
    return environment


def _unbroken(text_of: Callable[[float], str]) -> Callable[[float], str]:
    """Return a filter whose text the browser does not break into lines."""
    return lambda value: text_of(value).replace(" ", "\N{NO-BREAK SPACE}")


def count(value: float, digits: int = 0) -> str:
    """Return a number with thousands separators."""
    return f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Return a time span in seconds, in minutes and seconds, or in hours."""
    if round(seconds, 1) < 60:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 6000 else f"{minutes / 60:,.0f} h"  # noqa: PLR2004


def _corpus_name(results: Results) -> str:
    """Return the place of the recordings."""
    if results.output.demo_key.exists():
        return "synthesised demo"
    if results.run.corpus:
        return results.run.corpus
    first = results.manifest.rows([0], ["uri", "recording_id"]).iloc[0]
    return str(first["uri"]).removesuffix(str(first["recording_id"])).rstrip("/\\")


def _draw_speed(output: OutputFolder, pictures: Pictures) -> None:
    """Draw the speed of the last extraction, if it took long enough; raises PipelineError for damaged data of it."""
    if output.series.exists():
        series = read_csv(output.series, EXPENDABLE)
        if len(series) >= MIN_POINTS:
            pictures.add("speed", plots.speed(series))
