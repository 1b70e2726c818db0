"""The report stage: everything in the output folder → one page that explains itself."""

import base64
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from upath import UPath

from pipeline import storage
from pipeline.corpus.manifest import languages_without, masked_rows, read_manifest
from pipeline.outputs import OutputFolder
from pipeline.report import plots
from pipeline.report.champion import standing
from pipeline.schema import AS_OF, SPLITS, STATUSES, reason_kind
from pipeline.storage import write_atomically
from pipeline.store import feature_store, records

if TYPE_CHECKING:
    from model.registry.history import History

LEVELS: Final = ("frame", "sequence", "recording")
MAX_REASONS: Final = 20
MAX_EXAMPLES: Final = 3
MIN_POINTS: Final = 5
MINUTES_BELOW_H: Final = 10  # a corpus of fewer hours is given in minutes

Context = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What an output folder holds of what the page shows; all of it may be missing."""

    output: OutputFolder
    manifest: pd.DataFrame
    ledger: pd.DataFrame | None
    run: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    histories: Mapping[str, pd.DataFrame]
    labels: tuple[str, ...]
    hop_s: float | None
    sequence_s: float | None

    @property
    def stages(self) -> Mapping[str, Mapping[str, Any]]:
        """What each stage recorded, but for the report, whose record is of the last time."""
        return {name: stage for name, stage in self.run.get("stages", {}).items() if name != "report"}


@dataclass
class Pictures:
    """The page's pictures, each also a file beside it."""

    folder: UPath
    sources: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, png: bytes) -> None:
        """Write the picture `name` and keep it for embedding."""
        write_atomically(self.folder / f"{name}.png", png)
        self.sources[name] = "data:image/png;base64," + base64.b64encode(png).decode()


def write_report(output: OutputFolder, history: "History") -> None:
    """Write report/index.html, and its pictures beside it, from whatever the stages have left so far."""
    found = _read(output)
    pictures = Pictures(output.report)
    speed(output, pictures)
    context = {
        "run": found.run,
        "settings": json.dumps(found.run.get("config", {}), indent=2, ensure_ascii=False),
        "labels": found.labels,
        "sequence_s": found.sequence_s,
        "speakers": bool(found.manifest["speaker"].notna().all()),
        "test_speakers": int(found.manifest["speaker"][found.manifest["split"] == "test"].nunique()),
        "corpus_name": _corpus_name(found),
        "corpus": corpus(found, pictures),
        "outcome": outcome(found),
        "stages": sorted(({"name": k, **v} for k, v in found.stages.items()), key=lambda stage: stage["finished_at"]),
        "training": training(found, pictures),
        "comparison": comparison(found, pictures),
        "standing": standing(history, pictures.add),
        "models": models(found, pictures),
        "example": example(found, pictures),
        "performance": output.performance.exists(),
        "pictures": pictures.sources,
    }
    page = _environment().get_template("report.html.j2").render(context)
    write_atomically(output.report / "index.html", page.encode())


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": plots.percent, "count": count, "duration": duration}
    return environment


def count(value: float, digits: int = 0) -> str:
    """Return a number with thousands separators."""
    return f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Return a time span in the units that people say."""
    if round(seconds, 1) < 60:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 6000 else f"{minutes / 60:,.0f} h"  # noqa: PLR2004


def _read(output: OutputFolder) -> Found:
    manifest = read_manifest(output)
    run = json.loads(output.run.read_text(encoding="utf-8")) if output.run.exists() else {}
    metrics, histories = {}, {}
    for name in _model_names(output, run):
        if output.metrics(name).exists():
            metrics[name] = json.loads(output.metrics(name).read_text(encoding="utf-8"))
        history = output.model(name) / "history.csv"
        if history.exists():
            histories[name] = pd.read_csv(io.BytesIO(history.read_bytes()))
    ledger = storage.read_parquet(output.ledger) if output.ledger.exists() else None
    labels = tuple(sorted(manifest["label"].unique()))
    config = run.get("config")
    hop_s = config["features"]["hop_s"] if config else None
    sequence_s = config["store"]["timesteps"] * hop_s if config else None
    return Found(output, manifest, ledger, run, metrics, histories, labels, hop_s, sequence_s)


def _model_names(output: OutputFolder, run: Mapping[str, Any]) -> list[str]:
    """Return the models of the last run in their order there; without a run record, those in the output folder."""
    configured = run.get("config", {}).get("models")
    if configured is not None:
        return list(configured)
    names = {path.name for path in _children(output.root / "models")}
    names |= {
        path.stem
        for path in _children(output.root / "metrics")
        if path.suffix == ".json" and not path.name.startswith(AS_OF)
    }
    return sorted(names)


def _children(folder: UPath) -> Iterable[UPath]:
    return folder.iterdir() if folder.exists() else ()


def _corpus_name(found: Found) -> str:
    """Return where the recordings came from."""
    if found.output.demo_key.exists():
        return "synthesised demo"
    if found.run.get("corpus"):
        return str(found.run["corpus"])
    first = found.manifest.iloc[0]
    return str(first["uri"]).removesuffix(str(first["recording_id"])).rstrip("/\\")


def corpus(found: Found, pictures: Pictures) -> Context:
    """Return the table of amounts by language and split, and the languages that lack a split."""
    masked = masked_rows(found.manifest)
    manifest = found.manifest[~masked]
    total_s = float(manifest["duration_s"].sum())
    unit, unit_s = ("hours", 3600) if total_s >= MINUTES_BELOW_H * 3600 else ("minutes", 60)
    everything = pd.concat([manifest, manifest.assign(split="total")])
    by_language = _amounts(everything, ["label", "split"], unit_s)
    by_split = _amounts(everything, ["split"], unit_s)
    columns = (*SPLITS, "total")
    amount = by_language["amount"].unstack(fill_value=0).reindex(columns=list(SPLITS), fill_value=0.0)
    pictures.add("corpus", plots.amounts(amount, unit, plots.language_colors(found.labels)))
    return {
        "unit": unit,
        "duration_s": total_s,
        "columns": columns,
        "rows": [(label, [_cell(by_language, (label, split)) for split in columns]) for label in found.labels],
        "total": [_cell(by_split, split) for split in columns],
        "recordings": len(manifest),
        "appends": int(found.manifest["append_index"].max()),
        "masked": int(masked.sum()),
        "unnamed": int(manifest["speaker"].isna().sum()),
        "without": {split: languages_without(found.manifest, split, found.ledger) for split in SPLITS},
    }


def _amounts(recordings: pd.DataFrame, by: list[str], unit_s: float) -> pd.DataFrame:
    table = recordings.groupby(by).agg(
        amount=("duration_s", "sum"), recordings=("recording_id", "size"), speakers=("speaker", "nunique")
    )
    return table.assign(amount=table["amount"] / unit_s)


def _cell(table: pd.DataFrame, key: Any) -> Mapping[str, float] | None:
    return {str(name): value for name, value in table.loc[key].items()} if key in table.index else None


def outcome(found: Found) -> Context | None:
    """Return what became of the recordings: counts by status, and the reasons where one was not ok."""
    if found.ledger is None:
        return None
    statuses = found.ledger["status"].value_counts().reindex(list(STATUSES), fill_value=0)
    sequences = int(found.ledger["sequences_written"].sum())
    rows, rest = _reasons(found.ledger[found.ledger["status"] != "ok"])
    return {
        "counts": {str(status): int(n) for status, n in statuses.items()},
        "recordings": len(found.ledger),
        "sequences": sequences,
        "stored_s": None if found.sequence_s is None else sequences * found.sequence_s,
        "reasons": rows,
        "rest": rest,
    }


def _reasons(bad: pd.DataFrame) -> tuple[list[Context], Context]:
    """Return a row for each kind of reason, the worst and the most frequent first, and what is left over.

    Reasons that differ in their numbers alone are of one kind.
    """
    kind = bad["reason"].map(reason_kind)
    sizes = bad.groupby(["status", kind]).size().rename("n").reset_index()
    sizes["status"] = pd.Categorical(sizes["status"], STATUSES[::-1], ordered=True)
    sizes = sizes.sort_values(["status", "n"], ascending=[True, False], kind="stable")
    rows = []
    for status, text, n in sizes.head(MAX_REASONS)[["status", "reason", "n"]].itertuples(index=False):
        part = bad[(bad["status"] == status) & (kind == text)]
        one = part["reason"].iloc[0] if part["reason"].nunique() == 1 else text
        rows.append({
            "status": status, "reason": one, "n": int(n),
            "examples": list(part["recording_id"].head(MAX_EXAMPLES)),
        })  # fmt: skip
    left = sizes["n"].iloc[MAX_REASONS:]
    return rows, {"kinds": len(left), "n": int(left.sum())}


def speed(output: OutputFolder, pictures: Pictures) -> None:
    """Draw how the last extraction went, if it was long enough to have gone somehow."""
    if output.series.exists():
        series = pd.read_csv(io.BytesIO(output.series.read_bytes()))
        if len(series) >= MIN_POINTS:
            pictures.add("speed", plots.speed(series))


def training(found: Found, pictures: Pictures) -> list[Context]:
    """Draw the learning curves, and return the facts of each model's training."""
    curves, rows = [], []
    for name, history in found.histories.items():
        level = "frame" if "frame" in found.metrics.get(name, {}) else "sequence"
        stage = found.stages.get(f"train/{name}", {})
        best = stage.get("best_epoch")
        curves.append(plots.LearningCurve(f"{plots.short(name)}, per {level}", history, best))
        facts = {key: stage.get(key) for key in ("parameters", "steps_per_s", "input_wait")}
        rows.append({"name": name, "epochs": len(history), "best": best, **facts})
    if rows:
        pictures.add("curves", plots.learning_curves(curves))
    return rows


def comparison(found: Found, pictures: Pictures) -> Context | None:
    """Compare the models at each level with each other, with chance, and with always naming one language."""
    if not found.metrics:
        return None
    levels = [level for level in LEVELS if any(level in metrics for metrics in found.metrics.values())]
    accuracy = pd.DataFrame(
        {name: [metrics.get(level, {}).get("accuracy") for level in levels]
         for name, metrics in found.metrics.items()},
        index=levels, dtype=float,
    )  # fmt: skip
    best = max(found.metrics, key=lambda name: found.metrics[name]["sequence"]["accuracy"])
    chance = 1 / len(found.metrics[best]["labels"])
    pictures.add("comparison", plots.comparison(accuracy, chance))
    return {
        "levels": levels,
        "rows": [(name, [metrics.get(level) for level in levels]) for name, metrics in found.metrics.items()],
        "chance": chance,
        "commonest": {level: _commonest(found, level) for level in levels},
        "best": best,
        "others": [name for name in found.metrics if name != best],
        "scores": found.metrics,
        "intervals": {name: interval for name, metrics in found.metrics.items()
                      if (interval := metrics["recording"].get("macro_f1_interval"))},
    }  # fmt: skip


def _commonest(found: Found, level: str) -> tuple[str, float]:
    """Return the most frequent language of the test split (or several), and the accuracy of naming no other."""
    scores = next(metrics[level] for metrics in found.metrics.values() if level in metrics)
    per_label = pd.Series({label: values["n"] for label, values in scores["per_label"].items()})
    most = per_label.max()
    return ", ".join(per_label.index[per_label == most]), float(most / scores["n"])


def models(found: Found, pictures: Pictures) -> list[Context]:
    """Draw the confusion matrices, and return the scores a language, of each model."""
    rows = []
    for name, metrics in found.metrics.items():
        names = []
        for level in ("sequence", "recording"):
            names.append(f"confusion_{name}_{level}")
            counts = np.array(metrics[level]["confusion"], np.int64)
            title = f"{plots.short(name)}, per {level} (n = {metrics[level]['n']:,})"
            pictures.add(names[-1], plots.confusion(counts, metrics["labels"], title))
        per_label = [(label, [metrics[level]["per_label"][label] for level in ("sequence", "recording")])
                     for label in metrics["labels"]]  # fmt: skip
        rows.append({
            "name": name, "pictures": names, "per_label": per_label,
            "wide": len(metrics["labels"]) > plots.MAX_LABELS_SMALL,
        })  # fmt: skip
    return rows


def example(found: Found, pictures: Pictures) -> Context | None:
    """Draw one test recording's features above the probabilities that a model assigns.

    The model is the most accurate sequence model; without one, the most accurate frame model.
    """
    with_example = [name for name, metrics in found.metrics.items() if metrics.get("example")]
    if not with_example or found.hop_s is None:
        return None
    scores = found.metrics
    name = max(with_example, key=lambda name: ("frame" not in scores[name], scores[name]["sequence"]["accuracy"]))
    facts, labels = found.metrics[name]["example"], found.metrics[name]["labels"]
    probabilities = np.array(facts["probabilities"])
    start = facts["first_sequence"]
    evaluated, stored = found.metrics[name].get("store"), records.read_attributes(found.output)
    if stored is None or (evaluated and evaluated["manifest_digest"] != stored.manifest_digest):
        return None  # the sequences may be those of another recording by now
    features = feature_store.read_features(found.output, start, start + len(probabilities))
    if np.isnan(features).any():  # masked since
        return None
    recording, label = str(found.manifest["recording_id"].iloc[facts["recording"]]), labels[facts["label"]]
    colors = plots.language_colors(list(dict.fromkeys([*found.labels, *labels])))  # a model may know more
    title = f"{plots.short(recording, 60)}, spoken language: {plots.short(label)}"
    picture = plots.example(features, probabilities, labels, facts["label"], colors, found.hop_s, title)
    pictures.add("example", picture)
    return {"model": name, "recording": recording, "label": label, "mean": probabilities.mean(axis=0)[facts["label"]]}
