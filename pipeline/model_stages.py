"""The stages of models: training, evaluation and promotion."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

from upath import UPath

from model.bundle import CHECKPOINTS, FILES, version_of
from model.config import ModelConfig
from model.metrics.metrics_file import Metrics
from model.metrics.scores import METRICS
from model.registry import registry
from model.registry.history import Comparison, Moment, PromotionRequest
from model.tensorflow_setup import load_tensorflow
from model.training_history import HISTORY
from pipeline.digests import value_digest
from pipeline.errors import UsageError
from pipeline.monitoring.progress import track
from pipeline.run_context import Facts, Run
from pipeline.schema import AS_OF
from pipeline.store import records

log = logging.getLogger(__name__)


def train_stage(run: Run) -> None:
    """Store → models."""
    for name, config in run.config.models.items():
        key = value_digest([run.store_key(), name, config.model_dump(mode="json"), run.config.seed])
        run.perform(f"train/{name}", key, _trained(run.output.model(name)), partial(_train, run, name, config, key))


def _trained(folder: UPath) -> Iterator[UPath]:
    """Yield the files of a training: the model, its history and its last state."""
    yield from (folder / file for file in (*FILES, HISTORY))
    yield from sorted((folder / CHECKPOINTS).glob("*.keras"))


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
        run.require_outputs(f"train/{name}")
        used = {file: digest for file, digest in trained.outputs.items() if f"/{CHECKPOINTS}/" not in file}
        key = value_digest([run.store_key(), used, list(METRICS)])
        run.perform(
            f"evaluate/{name}", key, [run.output.metrics(name), run.output.scores(name)],
            partial(_accuracies, run, name), complete=run.output.scores(name).exists(),
        )  # fmt: skip


def _accuracies(run: Run, name: str) -> Facts:
    facts = {"model": name, "config_hash": value_digest(run.config.model_dump(mode="json"))}
    metrics = _evaluate(run, name, run.output.model(name), facts)
    accuracies = _accuracies_of(metrics)
    log.info("evaluate %s: %s", name, ", ".join(f"{k} {v:.2%}" for k, v in accuracies.items()))
    return accuracies


def _accuracies_of(metrics: Metrics) -> dict[str, float]:
    """Return the facts of an evaluation."""
    return {f"{name}_accuracy": level.accuracy for name, level in metrics.levels.items()}


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
    key = run.store_key()
    version = registry.read(run.output).served(moment)
    registry.warn_if_changed(run.output)
    name, facts = f"{AS_OF}{moment.name}", {"version": version, "as_of": moment.at.isoformat()}
    metrics = _evaluate(run, name, registry.checked(run.output, version), facts)
    outputs = [run.output.metrics(name), run.output.scores(name)]
    run.record.finish(f"evaluate/{name}", value_digest([key, version]), outputs, **_accuracies_of(metrics))
    log.info("evaluate %s: version %s, macro F1 per recording %.3f", name, version, metrics.recording.macro_f1)


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
    run.require_outputs(f"train/{settings.model}")
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
