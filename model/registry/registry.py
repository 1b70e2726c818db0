"""The registry: the models that are or were in service, and the file of decisions that names the champion.

A promoted model is copied first, and then the file is replaced as a whole. After a kill at any time, the file names
the old champion or the new one; at worst there is a copy that it does not name.
"""

import getpass
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError
from upath import UPath

from model.bundle import FILES, version_of
from model.metrics.metrics_file import Metrics
from model.registry.history import Comparison, Decision, History, PromotionRequest, Version, utc
from pipeline.errors import PipelineError, UsageError
from pipeline.outputs import OutputFolder
from pipeline.storage import write_atomically

log = logging.getLogger(__name__)

FILE: Final = "registry.json"
FURTHER: Final = ("history.csv",)
"""Files that are copied with a model but are not needed to use it."""

Judge = Callable[[UPath, UPath | None], tuple[Comparison, Metrics]]
"""Compares the model in a folder with the champion's folder; also returns the model's metrics."""


def is_registry(folder: UPath) -> bool:
    """Whether `folder` is a registry or a copy of one."""
    return (folder / FILE).exists()


def champion_folder(folder: UPath) -> UPath | None:
    """Return the folder of the champion of the registry in `folder`, or None if there is none.

    Raises UsageError if the registry's file is damaged.
    """
    champion = _read(folder).champion
    return None if champion is None else folder / champion


def read(output: OutputFolder) -> History:
    """Return the history of decisions, empty if there are none; raises UsageError if the file is damaged."""
    return _read(output.registry)


def _read(folder: UPath) -> History:
    path = folder / FILE
    try:
        return History.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return History()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = " ".join(first["msg"].removeprefix("Value error, ").split())
        raise UsageError(
            f"{path} is damaged ({place + ': ' if place else ''}{what}); restore a copy of it, or move {folder} away "
            "to start again"
        ) from None


def checked(output: OutputFolder, version: Version) -> UPath:
    """Return the folder of a promoted model; raises PipelineError if it is not what was promoted."""
    folder = output.version(version)
    try:
        found = version_of(folder)
    except PipelineError as error:
        raise PipelineError(f"version {version} is unusable: {error}; roll back to another one with --to") from None
    if found != version:
        raise PipelineError(f"{folder} has changed since it was promoted; roll back to another version with --to")
    return folder


def promote(output: OutputFolder, request: PromotionRequest, run_key: str | None, judge: Judge) -> bool:
    """Decide whether the trained model replaces the champion; record and log the decision.

    Returns whether this run promoted it. A request that has been decided is not decided again: it counts as promoted
    by this run if it was promoted under the same `run_key`.
    """
    history = read(output)
    settled = history.settled(request)
    if settled is not None:
        log.info("promote: unchanged, %s was %s at %s: %s", request.challenger, settled.kind, utc(settled.at),
                 settled.reason)  # fmt: skip
        return settled.kind == "promoted" and run_key is not None and settled.run_key == run_key
    comparison, metrics = _judge(output, history, request, judge)
    if metrics is not None and comparison.promoted:
        _copy(output, history, request, metrics)
    decision = Decision(
        at=_now(), kind="promoted" if comparison.promoted else "refused", reason=comparison.reason, by=_user(),
        champion=request.challenger if comparison.promoted else history.champion, run_key=run_key, request=request,
        comparison=comparison,
    )  # fmt: skip
    _add(output, history, decision)
    log.info("promote: %s %s (%s); champion %s: %s", decision.kind, request.challenger, request.model,
             decision.champion or "none", decision.reason)  # fmt: skip
    return comparison.promoted


def _judge(
    output: OutputFolder, history: History, request: PromotionRequest, judge: Judge
) -> tuple[Comparison, Metrics | None]:  # fmt: skip
    if request.challenger in history.withdrawn:
        reason = "a rollback took it out of service; only rollback --to restores it"
        return Comparison(promoted=False, reason=reason), None
    champion = None if history.champion is None else checked(output, history.champion)
    comparison, metrics = judge(output.model(request.model), champion)
    return comparison.model_copy(update={"reason": comparison.reason + _caution(history, request)}), metrics


def _caution(history: History, request: PromotionRequest) -> str:
    """Return a warning if the champion may have been trained on some of the present test recordings."""
    made = next(
        (d.request for d in history.decisions if d.kind == "promoted" and d.champion == history.champion), None
    )
    if made is None or made.store.get("config_hash") == request.store.get("config_hash"):
        return ""
    return "; the champion was trained on a store with other settings, possibly on some of these test recordings"


def _copy(output: OutputFolder, history: History, request: PromotionRequest, metrics: Metrics) -> None:
    """Copy a model into the registry; the copy of an earlier promotion is checked and kept."""
    source, target = output.model(request.model), output.version(request.challenger)
    if request.challenger in history.promoted:
        checked(output, request.challenger)
        return
    for name in (*FILES, *FURTHER):
        if name in FILES or (source / name).exists():
            write_atomically(target / name, (source / name).read_bytes())
    metrics.write(target / "metrics.json")
    if version_of(target) != request.challenger:
        raise PipelineError(f"{source} changed during the comparison; run promote again when training has finished")


def roll_back(output: OutputFolder, to: Version | None, reason: str | None) -> Version:
    """Restore the previous champion, or the version `to`; record who did it and why. Returns the version.

    Raises UsageError if there is nothing to restore.
    """
    history = read(output)
    try:
        version = history.back_to(to)
    except UsageError as error:
        raise UsageError(f"{output.registry}: {error}") from None
    checked(output, version)
    text = f"from {history.champion} to {version}: {reason or 'no reason given'}"
    _add(output, history, Decision(at=_now(), kind="rolled back", reason=text, by=_user(), champion=version))
    log.info("rollback: %s", text)
    return version


def _add(output: OutputFolder, history: History, decision: Decision) -> None:
    """Add a decision; raises PipelineError if another process has added one since `history` was read."""
    if read(output) != history:
        raise PipelineError(f"{output.decisions} was changed by another promotion or rollback; run this again")
    write_atomically(output.decisions, history.with_decision(decision).model_dump_json(indent=1).encode())


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _user() -> str:
    """Return the name of the account; in a container it may have only a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
