"""The report: the right numbers, from data of any spelling, in one page that needs nothing else."""

import base64
import itertools
import json
import pathlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from model.metrics.metrics_file import metrics_of_models
from model.registry import registry
from model.training_history import histories_of_models
from pipeline import durable_files
from pipeline.durable_files import write_atomically
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from pipeline.report import ledger_counts, picture, plots
from pipeline.report import page as report_page
from pipeline.schema import LEDGER_COLUMNS, MANIFEST_COLUMNS, SCHEMA_VERSION
from pipeline.store import feature_store

EVIL = "<script>alert(1)</script>"
SPACED = "süd west"
MATHS = r"$\frac$"  # parsed as mathematics it is an error
LABELS = (MATHS, EVIL, SPACED)  # as they sort

# label, speaker, split, seconds, status, reason
RECORDINGS = (
    (EVIL, "ann & bob", "train", 600.0, "ok", ""),
    (EVIL, "ann & bob", "train", 30.0, "failed", "not readable as audio: <b>bad</b> header"),
    (EVIL, "cleo", "train", 60.0, "ok", ""),
    (EVIL, "dan", "validation", 90.0, "ok", ""),
    (EVIL, "eve", "test", 120.0, "short", "ends after 3.20 s, before the end its header names"),
    (SPACED, "fay", "train", 300.0, "ok", ""),
    (SPACED, "gil", "test", 180.0, "short", "ends after 17.00 s, before the end its header names"),
    (SPACED, "gil", "train", 0.1, "filtered", "shorter than one sequence of 0.2 s"),
    (MATHS, None, "train", 240.0, "ok", ""),
    (MATHS, None, "test", 66.0, "failed", "not readable as audio: <b>bad</b> header"),
)
ATTRIBUTES = {
    "schema_version": SCHEMA_VERSION, "config": {}, "config_hash": "c1", "manifest_digest": "d1", "split_runs": {},
    "versions": {},
}  # fmt: skip
HISTORY = pd.DataFrame(
    {"epoch": [1, 2, 3], "loss": [1.0, 0.5, 0.2], "accuracy": [0.4, 0.6, 0.9],
     "val_loss": [1.1, 0.7, 0.8], "val_accuracy": [0.3, 0.6, 0.5]}
)  # fmt: skip


def recording_id(row: int) -> str:
    return f"{RECORDINGS[row][0]}/{row}.wav"


def manifest() -> pd.DataFrame:
    rows = [
        {"recording_id": recording_id(i), "uri": f"/data/{recording_id(i)}", "label": label, "speaker": speaker,
         "split": split, "duration_s": seconds, "sequences": int(seconds / 0.2), "append_index": 0}
        for i, (label, speaker, split, seconds, *_) in enumerate(RECORDINGS)
    ]  # fmt: skip
    table = pd.DataFrame(rows).reindex(columns=list(MANIFEST_COLUMNS))
    return table.astype({"speaker": "string", "error": "string", "masked": "string"})


def ledger() -> pd.DataFrame:
    rows = [
        (recording_id(i), status, reason, 0, int(seconds / 0.2) if status in ("ok", "short") else 0)
        for i, (*_, seconds, status, reason) in enumerate(RECORDINGS)
    ]
    return pd.DataFrame(rows, columns=list(LEDGER_COLUMNS)).astype({"reason": "string"})


def scores(confusion: list[list[int]]) -> dict[str, Any]:
    counts = np.array(confusion)
    per_label = {
        label: {"precision": 0.125, "recall": 0.25, "f1": 0.375, "n": int(n)}
        for label, n in zip(LABELS, counts.sum(axis=1), strict=True)
    }
    accuracy = float(np.trace(counts) / counts.sum())
    return {"n": int(counts.sum()), "accuracy": accuracy, "macro_f1": 0.4321, "confusion": confusion,
            "per_label": per_label}  # fmt: skip


def metrics(name: str, right: int) -> dict[str, Any]:
    """Of 40 + 40 test sequences `right` + `right` are right, of 1 + 1 recordings one is."""
    sequence = scores([[0, 0, 0], [40 - right, right, 0], [0, 40 - right, right]])
    frame = {"frame": scores([[0, 0, 0], [700, 100, 0], [0, 700, 100]])} if name == "ann" else {}
    probabilities = [[0.2, 0.7, 0.1], [0.1, 0.5, 0.4]]
    return {
        "model": name, "labels": list(LABELS), **frame, "sequence": sequence,
        "recording": scores([[0, 0, 0], [0, 1, 0], [0, 1, 0]]),
        "labels_without_test": [], "labels_without_validation": [],
        "store": {"config_hash": "c1", "manifest_digest": "d1"},
        "example": {"recording": 4, "label": 1, "first_sequence": 7, "probabilities": probabilities},
    }  # fmt: skip


def run_record() -> dict[str, Any]:
    stage = {"key": "k", "outputs": {}}
    return {
        "stages": {
            "scan": {**stage, "finished_at": "2026-01-02T03:04:05+00:00", "wall_s": 0.5},
            "extract": {**stage, "finished_at": "2026-01-02T03:05:05+00:00", "wall_s": 3.0, "shards": 4,
                        "shards_new": 3, "audio_s_new": 7200.0, "busy_s": 5.0, "workers": 2},
            "train/lstm": {**stage, "finished_at": "2026-01-02T04:05:05+00:00", "wall_s": 3725.0, "parameters": 1234,
                           "best_epoch": 2, "steps_per_s": 80.44, "input_wait": 0.0123},
            "report": {**stage, "finished_at": "2030-01-01T00:00:00+00:00", "wall_s": 99.0},
        },
        "corpus": "corpora/<here>",
        "config": {"features": {"hop_s": 0.01}, "store": {"timesteps": 20}, "note": "<i>"},
        "config_hash": "c0ffee",
        "versions": {"python": "3.11.7", "numpy": "9.8.7"},
    }  # fmt: skip


class Page(HTMLParser):
    """A page's tags, its visible text, and its tables as rows of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._cell: list[str] | None = None
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            assert self._cell is not None
            self.tables[-1][-1].append(" ".join(" ".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell is not None:
            self._cell.append(data)

    def table(self, heading: str) -> dict[str, list[str]]:
        """Return the first table with a heading cell `heading`: {first cell of a row: its other cells}."""
        table = next(table for table in self.tables if any(heading in row for row in table[:2]))
        return {row[0]: row[1:] for row in table if row}


Write = Callable[..., Page]


@pytest.fixture
def reads() -> list[tuple[int, int]]:
    """The ranges of sequences that the report has read."""
    return []


@pytest.fixture
def write(write_pictures: Write, monkeypatch: pytest.MonkeyPatch) -> Write:
    """The same, much faster: pictures are drawn, but no pixels come of it."""
    monkeypatch.setattr(Figure, "savefig", lambda _self, buffer, **_options: buffer.write(b"picture"))
    return write_pictures


@pytest.fixture
def write_pictures(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, reads: list[tuple[int, int]]) -> Write:
    """Return a function that fills an output folder and returns its report."""
    output = OutputFolder.at(str(tmp_path / "out"))

    def read_features(_: OutputFolder, start: int, stop: int) -> np.ndarray:
        reads.append((start, stop))
        return np.random.default_rng(1).normal(size=(stop - start, 20, 5)).astype(np.float32)

    monkeypatch.setattr(feature_store, "read_features", read_features)

    def write_folder(
        models: dict[str, int], run: dict[str, Any] | None = None, entries: pd.DataFrame | None = None,
        history: pd.DataFrame | None = HISTORY, rows: pd.DataFrame | None = None,
    ) -> Page:  # fmt: skip
        durable_files.write_parquet(output.manifest, manifest() if rows is None else rows)
        durable_files.write_parquet(output.ledger, ledger() if entries is None else entries)
        write_atomically(output.store / "zarr.json", json.dumps({"attributes": ATTRIBUTES}).encode())
        write_atomically(output.run, json.dumps(run_record() if run is None else run).encode())
        for name, right in models.items():
            write_atomically(output.metrics(name), json.dumps(metrics(name, right)).encode())
            if history is not None:
                write_atomically(output.model(name) / "history.csv", history.to_csv(index=False).encode())
        names = (run or {}).get("config", {}).get("models", models)
        histories = histories_of_models(output, names)
        report_page.write_report(output, registry.read(output), metrics_of_models(output, names), histories)
        return Page((output.report / "index.html").read_text(encoding="utf-8"))

    return write_folder


def test_page_holds_all_it_shows(write_pictures: Write, tmp_path: pathlib.Path) -> None:
    page = write_pictures({"ann": 10, "lstm": 30})
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    pictures = {base64.b64decode(str(link).removeprefix("data:image/png;base64,"), validate=True) for link in links}
    beside = {path.name: path.read_bytes() for path in (tmp_path / "out/report").glob("*.png")}
    assert set(beside) == {
        "comparison.png", "confusion_ann_recording.png", "confusion_ann_sequence.png", "confusion_lstm_recording.png",
        "confusion_lstm_sequence.png", "corpus.png", "curves.png", "example.png",
    }  # fmt: skip
    assert pictures == set(beside.values())
    assert all(png.startswith(b"\x89PNG") for png in pictures)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base"}
    assert not re.search(r"url\(|@import", page.html)
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_names_are_text_whatever_they_hold(write: Write) -> None:
    page = write({"ann": 10, "lstm": 30})
    assert "<script" not in page.html.lower()
    assert "<b>bad" not in page.html
    assert "<here>" not in page.html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.html
    for table in (page.table("train"), page.table("precision")):
        assert set(LABELS) <= set(table)
    assert "Corpus: corpora/<here>" in page.text
    assert '"note": "<i>"' in page.text


def test_corpus_table_adds_up(write: Write) -> None:
    table = write({}).table("train")
    none = ["–"] * 3
    assert table[EVIL] == ["11.5", "3", "2", "1.5", "1", "1", "2.0", "1", "1", "15.0", "5", "4"]
    assert table[SPACED] == ["5.0", "2", "2", *none, "3.0", "1", "1", "8.0", "3", "2"]
    assert table[MATHS] == ["4.0", "1", "0", *none, "1.1", "1", "0", "5.1", "2", "0"]
    assert table["all"] == ["20.5", "6", "4", "1.5", "1", "1", "6.1", "3", "2", "28.1", "10", "6"]


def test_large_corpus_is_in_hours(write: Write) -> None:
    rows = manifest()
    rows["duration_s"] *= 3600
    assert write({}, rows=rows).table("hours")[SPACED][-3:] == ["480.1", "3", "2"]


def test_languages_without_a_split_are_named(write: Write) -> None:
    page = write({"lstm": 30})
    # the only test recording of MATHS failed
    assert f"No test speaker: {MATHS}. Used for training, but not part of the test figures." in page.text
    assert f"No validation speaker: {MATHS}, {SPACED}." in page.text
    assert "No training speaker" not in page.text


def test_complete_corpus_has_no_notice(write: Write) -> None:
    keep = [i for i, row in enumerate(RECORDINGS) if row[0] == EVIL]
    page = write({}, rows=manifest().iloc[keep], entries=ledger().iloc[keep])
    assert "speaker:" not in page.text
    assert not [attrs for _, attrs in page.tags if attrs.get("class") == "notice"]


def test_failures_are_counted_and_explained(write: Write) -> None:
    page = write({})
    assert (
        "10 recordings: 5 ok, 2 short, 1 filtered, 2 failed. 7,950 sequences stored, 26 min 30 s of audio."
        in page.text
    )
    rows = next(table for table in page.tables if "reason" in table[0])[1:]
    assert rows == [
        ["failed", "not readable as audio: <b>bad</b> header", "2", f"{recording_id(1)} {recording_id(9)}"],
        ["filtered", "shorter than one sequence of 0.2 s", "1", recording_id(7)],
        # reasons that differ in a number are one
        ["short", "ends after … s, before the end its header names", "2", f"{recording_id(4)} {recording_id(6)}"],
    ]
    assert "Nothing failed" not in page.text


def test_many_reasons_are_cut(write: Write) -> None:
    entries = pd.concat([ledger()] * 3, ignore_index=True)
    entries["status"] = "failed"
    entries["reason"] = pd.Series(["x" * (i + 1) for i in range(len(entries))], dtype="string")
    page = write({}, entries=entries, rows=pd.concat([manifest()] * 3, ignore_index=True))
    rows = next(table for table in page.tables if "reason" in table[0])[1:]
    assert len(rows) == ledger_counts.MAX_REASONS == 20
    assert "10 more recordings for 10 further reasons" in page.text


def test_nothing_failed(write: Write) -> None:
    entries = ledger()
    entries["status"], entries["reason"] = "ok", ""
    page = write({}, entries=entries)
    assert "Nothing failed." in page.text
    assert not [table for table in page.tables if "reason" in table[0]]


def test_throughput_and_stages(write: Write) -> None:
    page = write({})
    assert "3.0 s" in page.text
    assert re.search(r"audio hours per hour\s*2,400", page.text)
    assert re.search(r"audio hours per core-hour\s*1,440", page.text)
    assert "wrote 3 of 4 shards" in page.text
    stages = page.table("stage")
    assert list(stages) == ["stage", "scan", "extract", "train/lstm"]
    assert stages["train/lstm"] == ["1 h 02 min", "", "2026-01-02 04:05:05"]
    assert "finished 2026-01-02 04:05 UTC · configuration c0ffee" in page.text


def test_two_models_are_compared(write: Write, reads: list[tuple[int, int]]) -> None:
    page = write({"ann": 10, "lstm": 30})
    assert (
        "The model lstm identifies the language of 75.0 % of 0.2 s sequences and 50.0 % of whole recordings from "
        "recordings that were not used for training. Chance is 33.3 %."
    ) in page.text
    table = page.table("per sequence")
    assert table["ann"] == ["12.5 %", "0.432", "1,600", "25.0 %", "0.432", "80", "50.0 %", "0.432", "2"]
    assert table["lstm"] == ["–", "–", "–", "75.0 %", "0.432", "80", "50.0 %", "0.432", "2"]
    assert table["most frequent language"][2] == "50.0 %"
    # 50 % of recordings is what naming one language gives, 75 % of sequences is more
    assert "the most frequent test language would be as good or better: 50.0 % per recording." in page.text
    assert page.table("best epoch")["lstm"] == ["3", "2", "1,234", "80.4", "1.2 %"]
    assert page.table("best epoch")["ann"] == ["3", "–", "–", "–", "–"]
    assert page.table("precision")[EVIL] == ["0.125", "0.250", "0.375", "40", "0.125", "0.250", "0.375", "1"]
    assert page.table("precision")[MATHS] == ["–"] * 8
    assert (
        f"{recording_id(4)} is a test recording in {EVIL}. The model lstm gives this language a mean probability of "
        "60.0 %."
    ) in page.text
    assert reads == [(7, 9)]
    assert "python -m model.predict OUT/models/lstm recording.wav" in page.text


def test_named_speakers_are_said_to_be_unheard(write: Write) -> None:
    rows = manifest().fillna({"speaker": "zoe"})
    assert "from speakers that were not used for training. Chance is" in write({"lstm": 30}, rows=rows).text


def test_one_model(write: Write) -> None:
    page = write({"ann": 30})
    assert "The model ann identifies the language of 75.0 %" in page.text
    assert "lstm" not in page.text.replace("train/lstm", "")
    assert "OUT/models/ann" in page.text


def test_no_model_and_no_run_record(write: Write, tmp_path: pathlib.Path) -> None:
    page = write({}, run={"stages": {}})
    assert "no model has been evaluated yet" in page.text
    assert "No extraction is recorded." in page.text
    assert [path.name for path in (tmp_path / "out/report").glob("*.png")] == ["corpus.png"]
    assert "Corpus: /data" in page.text
    write_atomically(OutputFolder.at(str(tmp_path / "out")).root / "corpus.key", b"key")
    assert "Corpus: synthesised demo" in write({}).text


def test_files_may_be_missing(write: Write, tmp_path: pathlib.Path) -> None:
    write({"lstm": 30}, history=None)
    output = OutputFolder.at(str(tmp_path / "out"))
    for path in (output.run, output.ledger, output.store / "zarr.json", output.report / "example.png"):
        path.unlink()
    report_page.write_report(output, registry.read(output), metrics_of_models(output, ["lstm"]), {})
    page = Page((output.report / "index.html").read_text(encoding="utf-8"))
    assert "Learning curves" not in page.text
    assert "Nothing has been extracted yet." in page.text
    assert not (output.report / "example.png").exists()
    assert "75.0 %" in page.text
    # without the ledger the manifest says what there is
    assert f"No validation speaker: {MATHS}, {SPACED}." in page.text
    assert "No test speaker" not in page.text


def test_training_without_validation(write: Write) -> None:
    history = HISTORY.drop(columns=["val_loss", "val_accuracy"])
    assert write({"lstm": 30}, history=history).table("best epoch")["lstm"][:2] == ["3", "2"]


def test_diverged_training_has_no_best_epoch(write: Write) -> None:
    run = run_record()
    run["stages"]["train/lstm"]["best_epoch"] = None
    history = HISTORY.assign(val_loss=np.nan)
    table = write({"lstm": 30}, run=run, history=history).table("best epoch")
    assert table["lstm"][:3] == ["3", "–", "1,234"]


LONG_NAMES = [f"bilstm-of-{units}-units-with-dropout.v2" for units in (50, 100, 200, 400)]


def test_five_models_with_long_names_are_compared(write: Write) -> None:
    page = write({"ann": 10, **dict.fromkeys(LONG_NAMES, 20), "best": 30})
    assert "The model best identifies the language of 75.0 %" in page.text
    assert set(page.table("per sequence")) > {"ann", "best", *LONG_NAMES}
    assert "The model best gives this language a mean probability of 60.0 %" in page.text


def test_models_that_are_no_longer_configured_are_left_out(write: Write) -> None:
    run = run_record()
    run["config"]["models"] = {"small": {}, "big": {}}
    page = write({"lstm": 40, "big": 30, "small": 20}, run=run)
    assert list(page.table("per sequence"))[-4:-2] == ["small", "big"]
    assert "The model big gives this language" in page.text
    assert "lstm" not in page.text.replace("train/lstm", "")


@pytest.mark.parametrize(("models", "shown"), [
    ({"ann": 40, "big": 20, "small": 30}, "small"),
    ({"ann": 40}, "ann"),
])  # fmt: skip
def test_the_example_is_of_the_best_sequence_model(write: Write, models: dict[str, int], shown: str) -> None:
    assert f"The model {shown} gives this language" in write(models).text


def _overlaps(texts: list[Text]) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]


@pytest.mark.parametrize("models", [["lstm"], ["ann", *LONG_NAMES]])
def test_the_comparison_stays_readable(models: list[str]) -> None:
    accuracy = pd.DataFrame(0.987, index=["frame", "sequence", "recording"], columns=models)
    accuracy.loc["frame", models[1:]] = np.nan
    with matplotlib.style.context(["default", picture.STYLE]):
        figure = plots.comparison.__wrapped__(accuracy, 1 / 3)  # type: ignore[attr-defined]
        figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in (*axes.texts, *axes.get_xticklabels())]
    names = figure.axes[0].get_yticklabels()
    assert [name.get_text() for name in names] == [plots.short(model) for model in models]
    assert [text.get_text() for text in figure.axes[0].texts] == ["98.7 %", *["–"] * (len(models) - 1)]
    assert _overlaps([*texts, *names, *figure.legends[0].get_texts()]) == []
    page = figure.bbox
    assert all(page.contains(*corner) for text in (*texts, *names) for corner in text.get_window_extent().corners())


def test_learning_curves_of_five_models_have_a_title_each() -> None:
    titles = [f"{plots.short(name)}, per sequence" for name in ["a", *LONG_NAMES]]
    with matplotlib.style.context(["default", picture.STYLE]):
        figure = plots.learning_curves.__wrapped__([plots.LearningCurve(t, HISTORY, 2) for t in titles])  # type: ignore[attr-defined]
        figure.draw_without_rendering()
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == titles
    assert _overlaps([text for axes in figure.axes for text in (axes._left_title, axes.xaxis.label)]) == []


def test_a_further_metric_is_a_column_where_it_was_computed(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = metrics

    def with_further(name: str, right: int) -> dict[str, Any]:
        found = plain(name, right)
        return {**found, "sequence": {**found["sequence"], "balanced_accuracy": 0.625}}

    monkeypatch.setitem(globals(), "metrics", with_further)
    page = write({"ann": 10, "lstm": 30})
    headings = next(table for table in page.tables if "balanced accuracy" in table[1])[1]
    assert headings == ["model", "accuracy", "macro F1", "n", "accuracy", "macro F1", "balanced accuracy", "n",
                        "accuracy", "macro F1", "n"]  # fmt: skip
    assert page.table("per sequence")["lstm"][3:7] == ["75.0 %", "0.432", "0.625", "80"]


def test_intervals_are_shown_with_their_speakers(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, interval = metrics, {"low": 0.25, "high": 0.5, "confidence": 0.95, "speakers": 9}

    def with_interval(name: str, right: int) -> dict[str, Any]:
        found = plain(name, right)
        return {**found, "recording": {**found["recording"], "macro_f1_interval": interval}}

    monkeypatch.setitem(globals(), "metrics", with_interval)
    text = write({"ann": 10, "lstm": 30}).text
    assert (
        "Macro F1 per recording with its 95 % interval: ann 0.432 (0.250 to 0.500), lstm 0.432 (0.250 to 0.500). The "
        "interval comes from resampling 9 speakers (a recording without a named speaker counts as one)"
    ) in text
    interval |= {"low": None, "high": None, "speakers": 1}
    assert (
        "lstm 0.432 (no interval). There is no interval, because one speaker says nothing" in write({"lstm": 30}).text
    )


def test_a_damaged_metrics_file_is_refused_in_one_line(write: Write, tmp_path: pathlib.Path) -> None:
    write({"lstm": 30})
    output = OutputFolder.at(str(tmp_path / "out"))
    assert list(metrics_of_models(output, ["ann", "lstm"])) == ["lstm"]
    write_atomically(output.metrics("ann"), b"{}")
    with pytest.raises(PipelineError, match=r"ann\.json is damaged \(labels: .*\); run evaluate again"):
        metrics_of_models(output, ["ann", "lstm"])


def test_a_font_that_is_missing_is_named_in_the_log(write_pictures: Write, caplog: pytest.LogCaptureFixture) -> None:
    rows = manifest()
    rows.loc[rows["label"] == SPACED, "label"] = "\U0010fffd"
    write_pictures({}, rows=rows)
    (message,) = caplog.messages
    assert message.startswith("report: no installed font has the characters \U0010fffd, and pictures show boxes")
    assert "install a font with U+10FFFD, delete " in message
    assert message.endswith("index.html and run report again")


def test_same_folder_same_page(write_pictures: Write) -> None:
    assert write_pictures({"lstm": 30}).html == write_pictures({"lstm": 30}).html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (359_940, "99 h 59 min"),
        (4_000_000, "1,111 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert report_page.duration(seconds) == text


def test_a_hundred_languages_with_names_that_fonts_lack() -> None:
    names = [f"_言語 {i}" for i in range(100)]
    colors = plots.language_colors(names)
    amounts = pd.DataFrame(1.0, index=names, columns=["train", "validation", "test"])
    probabilities = np.full((3, 100), 0.01)
    features = np.zeros((3, 20, 40), np.float32)
    for png, _ in (
        plots.amounts(amounts, "hours", colors),
        plots.confusion(np.eye(100, dtype=np.int64), names, "title"),
        plots.example(features, probabilities, names, 99, colors, 0.01, "title"),
    ):
        assert png.startswith(b"\x89PNG")
        assert b"Software" not in png
    assert len(set(colors.values())) >= 32


def test_legend_names_languages_that_begin_with_an_underscore() -> None:
    probabilities = np.array([[0.2, 0.7, 0.1]])
    colors = plots.language_colors(["_a", "_b", "_c"])
    figure = plots.example.__wrapped__(  # type: ignore[attr-defined]
        np.zeros((1, 20, 5), np.float32), probabilities, ["_a", "_b", "_c"], 0, colors, 0.01, "title"
    )
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    # from the top down, the true language at the bottom
    assert [text.get_text() for text in legends[0].get_texts()] == ["_c", "_b", "_a"]


def test_confusion_cells_hold_counts_and_shares() -> None:
    figure = plots.confusion.__wrapped__(  # type: ignore[attr-defined]
        np.array([[3, 1], [0, 0]]), ["a", "b"], "title"
    )
    # the label without a test recording has no cells
    assert [text.get_text() for text in figure.axes[0].texts] == ["75.0 %\n3", "25.0 %\n1"]


def test_long_names_keep_their_ends() -> None:
    assert plots.short("abcdefghij", 7) == "abc…hij"
    assert plots.short("abcdefg", 7) == "abcdefg"


def test_appends_and_masked_recordings_are_named_and_masked_ones_not_counted(write: Write) -> None:
    table = manifest()
    assert "New recordings were appended" not in write({}).text
    table.loc[8:, "append_index"] = 1
    table.loc[0, "masked"] = "gone from the corpus"
    table.loc[1, "masked"] = ""
    page = write({}, rows=table)
    assert "New recordings were appended 1 time." in page.text
    assert "1 recording not counted here: masked, because the files were deleted or changed." in page.text
    assert page.text.count("9 recordings in 3 languages") == 1


def test_recordings_without_sound_are_counted(write: Write) -> None:
    assert "without sound" not in write({}).text
    entries = ledger()
    entries.loc[[0, 1], "reason"] = "silent: all of its samples are equal"
    counted = "2 recordings without sound: silent, or channels that cancel each other out"
    assert f"{counted}. The ledger names them." in write({}, entries=entries).text
    entries.loc[1, "status"] = "filtered"
    assert f"{counted}; 1 filtered. The ledger names them." in write({}, entries=entries).text


def test_example_of_a_store_that_was_written_anew_or_masked_since_is_not_drawn(
    write: Write, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "is a test recording in" in write({"lstm": 30}).text
    monkeypatch.setitem(ATTRIBUTES, "manifest_digest", "d2")
    read = len(reads)
    assert "is a test recording in" not in write({"lstm": 30}).text
    assert len(reads) == read
    monkeypatch.setitem(ATTRIBUTES, "manifest_digest", "d1")
    monkeypatch.setattr(feature_store, "read_features", lambda _, start, stop: np.full((stop - start, 20, 5), np.nan))
    assert "is a test recording in" not in write({"lstm": 30}).text
