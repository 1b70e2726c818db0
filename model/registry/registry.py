"""The registry: the models that are or were in service, and the file of decisions that names the champion.

A promoted model is copied first, then the digests of the registry are recorded, and then the file is replaced as a
whole. After a kill at any time, the file names the old champion or the new one; at worst there is a copy that it does
not name.
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
from model.registry import digests
from model.registry.history import Comparison, Decision, History, PromotionRequest, Version, utc
from pipeline.durable_files import write_atomically
from pipeline.errors import PipelineError, UsageError
from pipeline.outputs import OutputFolder

log = logging.getLogger(__name__)

FILE: Final = "registry.json"
RESTORE: Final = "restore its folder from a copy, or roll back to another version with --to"
"""The remedy for a promoted model that is damaged."""
FURTHER: Final = ("history.csv",)
"""Files that are copied with a model but are not needed to use it."""

Judge = Callable[[UPath, UPath | None], tuple[Comparison, Metrics]]
"""Compares the model in a folder with the champion's folder; also returns the model's metrics."""


def is_registry(folder: UPath) -> bool:
    """Whether `folder` is a registry or a copy of one."""
    return (folder / FILE).exists()


def champion_folder(folder: UPath) -> UPath | None:
    """Return the folder of the champion of the registry in `folder`, or None if there is none.

    Raises UsageError if the registry's file is damaged, and PipelineError if the champion is not what was promoted.
    """
    champion = _history(folder / FILE, _content(folder / FILE)).champion
    return None if champion is None else _checked(folder, champion)


def read(output: OutputFolder) -> History:
    """Return the history of decisions, empty if there are none.

    Raises UsageError if the file is damaged, or missing though there have been decisions.
    """
    path, content = output.decisions, _content(output.decisions)
    recorded = digests.read(output)
    if content is None and recorded and None not in recorded.decisions:
        raise UsageError(f"{path} is missing; {_start_again(output.registry)}")
    return _history(path, content)


def changed(output: OutputFolder) -> str | None:
    """Return a line if the file of decisions is not what the last decision wrote, or None.

    People may correct it by hand: as long as its decisions follow from each other, it is used.
    """
    recorded = digests.read(output)
    if recorded is None or digests.of_file(output.decisions) in recorded.decisions:
        return None
    return f"{output.decisions} has changed since the last decision"


def warn_if_changed(output: OutputFolder) -> None:
    """Log it if the file of decisions is not what the last decision wrote; it is used all the same."""
    line = changed(output)
    if line:
        log.warning("%s; if nobody has edited it, restore a copy of it", line)


def _content(path: UPath) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _history(path: UPath, content: bytes | None) -> History:
    """Return the history in the content of the file at `path`."""
    if content is None:
        return History()
    try:
        return History.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = " ".join(first["msg"].removeprefix("Value error, ").split())
        raise UsageError(
            f"{path} is damaged ({place + ': ' if place else ''}{what}); {_start_again(path.parent)}"
        ) from None


def _start_again(folder: UPath) -> str:
    return f"restore a copy of it, or move {folder} away to start again"


def checked(output: OutputFolder, version: Version) -> UPath:
    """Return the folder of a promoted model; raises PipelineError if it is not what was promoted.

    Its files could be loaded then: the model was evaluated before it was promoted.
    """
    folder, changed = _checked(output.registry, version), digests.changed_files(output, [version])
    for file in FILES:
        if f"{version}/{file}" in changed:
            raise _changed(folder / file)
    return folder


def _checked(registry: UPath, version: Version) -> UPath:
    folder = registry / version
    if version_of(folder, RESTORE) != version:
        raise _changed(f"{folder}: {' or '.join(FILES)}")
    return folder


def _changed(what: object) -> PipelineError:
    return PipelineError(f"{what} has changed since it was promoted; {RESTORE}")


def damaged(output: OutputFolder) -> dict[str, str]:
    """Return the remedy for each damaged file of the registry, by its path below the output folder.

    Of a version whose files have no digests, it is the folder.
    """
    folder = output.registry.name
    try:
        recorded = digests.read(output)
    except PipelineError:
        return {f"{folder}/{output.registry_digests.name}": digests.DELETE}
    try:
        promoted = read(output).promoted
    except UsageError:
        return {f"{folder}/{FILE}": _start_again(output.registry)}
    found = {f"{folder}/{name}": RESTORE for name in digests.changed_files(output, promoted)}
    if changed(output):
        found[f"{folder}/{FILE}"] = "restore a copy of it, or make the next decision, which accepts it as it is"
    for version in sorted(promoted):
        if recorded and f"{version}/{FILES[0]}" in recorded.files:
            continue
        try:
            _checked(output.registry, version)
        except PipelineError:
            found[f"{folder}/{version}"] = RESTORE
    return found


def promote(output: OutputFolder, request: PromotionRequest, run_key: str | None, judge: Judge) -> bool:
    """Decide whether the trained model replaces the champion; record and log the decision.

    Returns whether this run promoted it. A request that has been decided is not decided again: it counts as promoted
    by this run if it was promoted under the same `run_key`. Raises PipelineError if the champion is not what was
    promoted.
    """
    history = read(output)
    champion = None if history.champion is None else _serving(output, history.champion)
    settled = history.settled(request)
    if settled is not None:
        log.info("promote: unchanged, %s was %s at %s: %s", request.challenger, settled.kind, utc(settled.at),
                 settled.reason)  # fmt: skip
        return settled.kind == "promoted" and run_key is not None and settled.run_key == run_key
    comparison, metrics = _judge(output, history, request, champion, judge)
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


def _serving(output: OutputFolder, champion: Version) -> UPath:
    """Return the folder of the champion; raises PipelineError if it cannot serve."""
    try:
        return checked(output, champion)
    except PipelineError as error:
        raise PipelineError(f"the champion {champion} cannot serve: {error}") from None


def _judge(
    output: OutputFolder, history: History, request: PromotionRequest, champion: UPath | None, judge: Judge
) -> tuple[Comparison, Metrics | None]:  # fmt: skip
    if request.challenger in history.withdrawn:
        reason = "a rollback took it out of service; only rollback --to restores it"
        return Comparison(promoted=False, reason=reason), None
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
    before = digests.of_file(output.decisions)
    if read(output) != history:
        raise PipelineError(f"{output.decisions} was changed by another promotion or rollback; run this again")
    warn_if_changed(output)
    content = history.with_decision(decision).model_dump_json(indent=1).encode()
    copied = decision.champion not in history.promoted
    after = digests.of(content)
    digests.write(output, [before, after], decision.champion, copied=copied)
    write_atomically(output.decisions, content)
    digests.write(output, [after], decision.champion, copied=False)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _user() -> str:
    """Return the name of the account; in a container it may have only a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
