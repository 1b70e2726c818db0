"""The page on output files has every file, column, variable and key that the code writes, and no other."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from pydantic import BaseModel
from upath import UPath

from model.bundle import Description
from model.metrics import metrics_file, score_file
from model.metrics.estimate import Estimate
from model.registry import digests, history
from pipeline.config import PipelineConfig
from pipeline.monitoring.counters import Point
from pipeline.outputs import OutputFolder
from pipeline.run_record import RECORDS, RunFile, StageRecord
from pipeline.schema import FEATURE, LEDGER_COLUMNS, MANIFEST_COLUMNS, SEQUENCE_VARIABLES, SHARED_VARIABLES, Variable
from pipeline.store.metadata import Metadata
from pipeline.store.records import RecordingOutcome, ShardRecord, StoreAttributes
from tests.conftest import make_manifest, make_probe
from tests.support.manifests import ledger_of

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")

MODELS: dict[str, type[BaseModel]] = {
    "Attributes": StoreAttributes,
    "shards/_metadata": Metadata,
    "shards/NNNNNNNN.json": ShardRecord,
    "Outcomes": RecordingOutcome,
    "models/NAME": Description,
    "metrics/NAME.json": metrics_file.Metrics,
    "Metrics of a level": metrics_file.LevelMetrics,
    "Scores of a language": metrics_file.LabelScores,
    "Interval": metrics_file.Interval,
    "Example": metrics_file.Example,
    "Store of an evaluation": metrics_file.StoreIdentity,
    "registry/registry.json": history.History,
    "Decisions": history.Decision,
    "Requests": history.PromotionRequest,
    "Comparisons": history.Comparison,
    "Estimates": Estimate,
    "registry/digests.json": digests.Digests,
    "run.json": RunFile,
}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its head and without the backticks of names."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, heading
    lines = re.findall(r"^\|(.*)\|$", section[1], re.MULTILINE)[2:]
    return [[cell.strip() for cell in re.sub(r"^ `(\S+)` ", r"\1", line).split("|")] for line in lines]


def test_every_place_in_the_output_folder_is_listed() -> None:
    output = OutputFolder(UPath("/out"))
    places = [getattr(output, name) for name, found in vars(OutputFolder).items() if isinstance(found, property)]
    places += [output.model("NAME"), output.metrics("NAME"), output.scores("NAME"), output.version("VERSION")]
    paths = {str((p.root if isinstance(p, OutputFolder) else p).relative_to(output.root)) for p in places}
    assert {row[0] for row in rows("Output files")} == paths - {output.complete.name}


def test_manifest_and_ledger_have_the_columns_and_types_listed() -> None:
    manifest = make_manifest([make_probe("de/anna/0.wav"), make_probe("en/bert/0.wav")], PipelineConfig())
    for heading, table, columns in (
        ("manifest.parquet", manifest, MANIFEST_COLUMNS),
        ("ledger.parquet", ledger_of(manifest, [], PipelineConfig()), LEDGER_COLUMNS),
    ):
        types = ["string" if pd.api.types.is_string_dtype(table[name]) else str(table[name].dtype) for name in columns]
        assert [tuple(row[:2]) for row in rows(heading)] == list(zip(columns, types, strict=True))


@pytest.mark.parametrize(
    ("heading", "variables"),
    [("Variables over sequences", SEQUENCE_VARIABLES), ("Other variables", SHARED_VARIABLES)],
)
def test_store_has_the_variables_listed(heading: str, variables: tuple[Variable, ...]) -> None:
    assert FEATURE == "feature"
    listed = rows(heading)
    assert [row[:3] for row in listed] == [[v.name, ", ".join(v.dims), v.dtype] for v in variables]
    assert [row[3] for row, v in zip(listed, variables, strict=True) if not row[3].startswith(v.meaning)] == []


@pytest.mark.parametrize("heading", MODELS)
def test_file_has_the_keys_listed(heading: str) -> None:
    assert [row[0] for row in rows(heading)] == list(MODELS[heading].model_fields)


def test_every_stage_has_the_keys_listed() -> None:
    common = [(name, "all") for name in StageRecord.model_fields]
    own = [
        (name, stage) for stage, record in RECORDS.items() for name in record.model_fields
        if name not in StageRecord.model_fields
    ]  # fmt: skip
    assert sorted((row[0], row[1]) for row in rows("Records of stages")) == sorted([*common, *own])


def test_scores_have_the_columns_listed(tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "scores.parquet"))
    with score_file.create(path, ("de", "en")):
        pass
    found = [
        (
            field.name,
            "list of float32"
            if pa.types.is_fixed_size_list(field.type)
            else np.dtype(field.type.to_pandas_dtype()).name,
        )
        for field in parquet.read_schema(path)
    ]
    assert [(row[0], row[1]) for row in rows("metrics/NAME.scores.parquet")] == found


def test_series_has_the_columns_listed() -> None:
    assert [row[0] for row in rows("report/extraction.csv")] == list(Point._fields)
