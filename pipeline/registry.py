"""The registry: the models that serve or have served, and the file of decisions that says which one does.

A promoted model is copied first and named in the file last; the file is replaced as a whole. So a kill at any time
leaves the old champion or the new one, and at most a copy that nothing names.
"""

import getpass
import io
import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import xxhash
from pydantic import ValidationError
from upath import UPath

from pipeline.decisions import Decision, History, Judgement, Question, Version, utc
from pipeline.errors import PipelineError, UsageError
from pipeline.schema import Layout, write_atomically

log = logging.getLogger(__name__)

NEEDED = ("model.keras", "labels.json")
"""What a model is used with, and what its version is the digest of."""
FURTHER = ("history.csv",)

Judge = Callable[[UPath, UPath | None], tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Compares the model in a folder with the champion's folder: the fields of a Judgement, and metrics to keep."""


def read(layout: Layout) -> History:
    """Return the history, an empty one where nothing is decided yet; raises UsageError where the file is damaged."""
    try:
        return History.model_validate_json(layout.decisions.read_bytes())
    except FileNotFoundError:
        return History()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = " ".join(first["msg"].removeprefix("Value error, ").split())
        raise UsageError(
            f"{layout.decisions} is damaged ({place + ': ' if place else ''}{what}); put back a copy of it, or move "
            f"{layout.registry} away to begin anew"
        ) from None


def version_of(folder: UPath) -> Version:
    """Return the version of the model in `folder`: a digest of its weights and labels.

    What else is in the file, such as the time of saving, is left out, so a model that is trained again to the same
    weights is the same version. Raises PipelineError where there is no whole model.
    """
    state = xxhash.xxh3_128()
    try:
        with zipfile.ZipFile(io.BytesIO((folder / "model.keras").read_bytes())) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
            state.update(archive.read("model.weights.h5"))
        state.update((folder / "labels.json").read_bytes())
    except FileNotFoundError as error:
        raise PipelineError(f"{folder} holds no whole model ({error.filename or error} is missing)") from None
    except (zipfile.BadZipFile, KeyError):
        raise PipelineError(f"{folder / 'model.keras'} is damaged") from None
    return state.hexdigest()[:16]


def checked(layout: Layout, version: Version) -> UPath:
    """Return the folder of a promoted model; raises PipelineError where it is not as it was promoted."""
    folder = layout.version(version)
    try:
        found = version_of(folder)
    except PipelineError as error:
        raise PipelineError(f"version {version} cannot serve: {error}; roll back to another one with --to") from None
    if found != version:
        raise PipelineError(f"{folder} has changed since it was promoted; roll back to another version with --to")
    return folder


def promote(layout: Layout, question: Question, run_key: str | None, judge: Judge) -> bool:
    """Decide whether the model that was just trained takes the champion's place; record and log it.

    Returns whether this run promoted it: also where it did so before, under the same `run_key`. What is decided
    already is not decided again.
    """
    history = read(layout)
    settled = history.settled(question)
    if settled is not None:
        log.info("promote: unchanged, %s was %s at %s: %s", question.challenger, settled.kind, utc(settled.at),
                 settled.reason)  # fmt: skip
        return settled.kind == "promoted" and run_key is not None and settled.run_key == run_key
    judgement, metrics = _judge(layout, history, question, judge)
    if judgement.promoted:
        _copy(layout, question, metrics)
    decision = Decision(
        at=_now(), kind="promoted" if judgement.promoted else "refused", reason=judgement.reason, by=_user(),
        champion=question.challenger if judgement.promoted else history.champion, run_key=run_key, question=question,
        judgement=judgement,
    )  # fmt: skip
    _add(layout, history, decision)
    log.info("promote: %s %s (%s); champion %s: %s", decision.kind, question.challenger, question.model,
             decision.champion or "none", decision.reason)  # fmt: skip
    return judgement.promoted


def _judge(
    layout: Layout, history: History, question: Question, judge: Judge
) -> tuple[Judgement, Mapping[str, Any]]:  # fmt: skip
    if question.challenger in history.withdrawn:
        reason = "a rollback took it out of service; only rollback --to brings it back"
        return Judgement(promoted=False, reason=reason), {}
    champion = None if history.champion is None else checked(layout, history.champion)
    facts, metrics = judge(layout.model(question.model), champion)
    judgement = Judgement.model_validate(facts)
    return judgement.model_copy(update={"reason": judgement.reason + _caution(history, question)}), metrics


def _caution(history: History, question: Question) -> str:
    """Say where the champion may have been trained on recordings on which it is judged now."""
    made = next(
        (d.question for d in history.decisions if d.kind == "promoted" and d.champion == history.champion), None
    )
    if made is None or made.store.get("config_hash") == question.store.get("config_hash"):
        return ""
    return "; the champion was trained on a store of other settings, perhaps on some of these test recordings"


def _copy(layout: Layout, question: Question, metrics: Mapping[str, Any]) -> None:
    """Copy a model into the registry; one that was promoted before is there, and stays as it is."""
    source, target = layout.model(question.model), layout.version(question.challenger)
    if question.challenger in read(layout).promoted:
        checked(layout, question.challenger)
        return
    for name in (*NEEDED, *FURTHER):
        if name in NEEDED or (source / name).exists():
            write_atomically(target / name, (source / name).read_bytes())
    write_atomically(target / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False).encode())
    if version_of(target) != question.challenger:
        raise PipelineError(f"{source} has changed while it was judged; run promote again when training is over")


def roll_back(layout: Layout, to: Version | None, reason: str | None) -> Version:
    """Make the champion before this one serve again, or the version `to`; record who did it and why.

    Raises UsageError where there is nothing to go back to.
    """
    history = read(layout)
    try:
        version = history.back_to(to)
    except UsageError as error:
        raise UsageError(f"{layout.registry}: {error}") from None
    checked(layout, version)
    text = f"from {history.champion} to {version}: {reason or 'no reason was given'}"
    _add(layout, history, Decision(at=_now(), kind="rolled back", reason=text, by=_user(), champion=version))
    log.info("rollback: %s", text)
    return version


def _add(layout: Layout, history: History, decision: Decision) -> None:
    """Add a decision; raises PipelineError where another process has decided since `history` was read."""
    if read(layout) != history:
        raise PipelineError(
            f"{layout.decisions} has changed meanwhile, by another promotion or rollback; run this again"
        )
    write_atomically(layout.decisions, history.with_decision(decision).model_dump_json(indent=1).encode())


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _user() -> str:
    """Return who runs this; in a container an account may have a number and no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
