"""The registry: the models that serve or have served, and the file of decisions that says which one does.

A promoted model is copied first and named in the file last; the file is replaced as a whole. So a kill at any time
leaves the old champion or the new one, and at most a copy that nothing names.
"""

import getpass
import json
import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from upath import UPath

from model.bundle import FILES, version_of
from model.registry.history import Comparison, Decision, History, PromotionRequest, Version, utc
from pipeline.errors import PipelineError, UsageError
from pipeline.outputs import OutputFolder
from pipeline.storage import write_atomically

log = logging.getLogger(__name__)

FILE = "registry.json"
FURTHER = ("history.csv",)

Judge = Callable[[UPath, UPath | None], tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Compares the model in a folder with the champion's folder: the fields of a Comparison, and metrics to keep."""


def is_registry(folder: UPath) -> bool:
    """Whether `folder` is a registry or a copy of one."""
    return (folder / FILE).exists()


def champion_folder(folder: UPath) -> UPath | None:
    """Return the folder of the model that serves in the registry `folder`, or None if none does.

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
    """Return the folder of a promoted model; raises PipelineError where it is not as it was promoted."""
    folder = output.version(version)
    try:
        found = version_of(folder)
    except PipelineError as error:
        raise PipelineError(f"version {version} cannot serve: {error}; roll back to another one with --to") from None
    if found != version:
        raise PipelineError(f"{folder} has changed since it was promoted; roll back to another version with --to")
    return folder


def promote(output: OutputFolder, request: PromotionRequest, run_key: str | None, judge: Judge) -> bool:
    """Decide whether the model that was just trained takes the champion's place; record and log it.

    Returns whether this run promoted it: also where it did so before, under the same `run_key`. What is decided
    already is not decided again.
    """
    history = read(output)
    settled = history.settled(request)
    if settled is not None:
        log.info("promote: unchanged, %s was %s at %s: %s", request.challenger, settled.kind, utc(settled.at),
                 settled.reason)  # fmt: skip
        return settled.kind == "promoted" and run_key is not None and settled.run_key == run_key
    comparison, metrics = _judge(output, history, request, judge)
    if comparison.promoted:
        _copy(output, request, metrics)
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
) -> tuple[Comparison, Mapping[str, Any]]:  # fmt: skip
    if request.challenger in history.withdrawn:
        reason = "a rollback took it out of service; only rollback --to brings it back"
        return Comparison(promoted=False, reason=reason), {}
    champion = None if history.champion is None else checked(output, history.champion)
    facts, metrics = judge(output.model(request.model), champion)
    comparison = Comparison.model_validate(facts)
    return comparison.model_copy(update={"reason": comparison.reason + _caution(history, request)}), metrics


def _caution(history: History, request: PromotionRequest) -> str:
    """Say where the champion may have been trained on recordings on which it is judged now."""
    made = next(
        (d.request for d in history.decisions if d.kind == "promoted" and d.champion == history.champion), None
    )
    if made is None or made.store.get("config_hash") == request.store.get("config_hash"):
        return ""
    return "; the champion was trained on a store of other settings, perhaps on some of these test recordings"


def _copy(output: OutputFolder, request: PromotionRequest, metrics: Mapping[str, Any]) -> None:
    """Copy a model into the registry; one that was promoted before is there, and stays as it is."""
    source, target = output.model(request.model), output.version(request.challenger)
    if request.challenger in read(output).promoted:
        checked(output, request.challenger)
        return
    for name in (*FILES, *FURTHER):
        if name in FILES or (source / name).exists():
            write_atomically(target / name, (source / name).read_bytes())
    write_atomically(target / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False).encode())
    if version_of(target) != request.challenger:
        raise PipelineError(f"{source} has changed while it was judged; run promote again when training is over")


def roll_back(output: OutputFolder, to: Version | None, reason: str | None) -> Version:
    """Make the champion before this one serve again, or the version `to`; record who did it and why.

    Raises UsageError where there is nothing to go back to.
    """
    history = read(output)
    try:
        version = history.back_to(to)
    except UsageError as error:
        raise UsageError(f"{output.registry}: {error}") from None
    checked(output, version)
    text = f"from {history.champion} to {version}: {reason or 'no reason was given'}"
    _add(output, history, Decision(at=_now(), kind="rolled back", reason=text, by=_user(), champion=version))
    log.info("rollback: %s", text)
    return version


def _add(output: OutputFolder, history: History, decision: Decision) -> None:
    """Add a decision; raises PipelineError where another process has decided since `history` was read."""
    if read(output) != history:
        raise PipelineError(
            f"{output.decisions} has changed meanwhile, by another promotion or rollback; run this again"
        )
    write_atomically(output.decisions, history.with_decision(decision).model_dump_json(indent=1).encode())


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _user() -> str:
    """Return who runs this; in a container an account may have a number and no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
