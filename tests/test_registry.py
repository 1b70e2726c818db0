"""The registry: immutable copies, a file that is replaced as a whole, and kills between any two steps."""

import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from pipeline import registry, schema
from pipeline.decisions import History, Question
from pipeline.errors import PipelineError, UsageError
from pipeline.schema import Layout

from .conftest import Killed

STORE = {"config_hash": "c", "manifest_digest": "m"}
RULE = {"min_gain": 0.0, "confidence": 0.9}
METRICS = {"labels": ["de", "en"]}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.at(str(tmp_path / "out"))


def train(layout: Layout, weights: str, saved: str = "today") -> str:
    """Write a model as a training would; return its version."""
    folder = layout.model("lstm")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(Path(str(folder / "model.keras")), "w") as archive:
        archive.writestr("metadata.json", saved)
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", weights)
    (folder / "labels.json").write_text('{"labels": ["de", "en"]}')
    (folder / "history.csv").write_text("epoch\n1\n")
    return registry.version_of(folder)


def judge(promoted: bool) -> registry.Judge:
    return lambda folder, champion: ({"promoted": promoted, "reason": "as the test wants it"}, METRICS)


def never(*_: Any) -> Any:
    pytest.fail("this is decided already")


def promote(
    layout: Layout, version: str, how: registry.Judge | bool = True, run_key: str | None = None,
    store: dict[str, str] | None = None,
) -> bool:  # fmt: skip
    asked = Question(challenger=version, model="lstm", store=store or STORE, rule=RULE)
    return registry.promote(layout, asked, run_key, judge(how) if isinstance(how, bool) else how)


def decisions(layout: Layout) -> list[tuple[str, str | None]]:
    return [(decision.kind, decision.champion) for decision in registry.read(layout).decisions]


def test_a_promoted_model_is_copied_and_named(layout: Layout) -> None:
    version = train(layout, "a")
    assert promote(layout, version, run_key="night 1")
    folder = layout.version(version)
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.csv",
        "labels.json",
        "metrics.json",
        "model.keras",
    ]
    assert (folder / "model.keras").read_bytes() == (layout.model("lstm") / "model.keras").read_bytes()
    assert json.loads((folder / "metrics.json").read_text()) == METRICS
    content = json.loads(layout.decisions.read_text())
    assert (content["schema_version"], content["champion"]) == (1, version)
    (decision,) = content["decisions"]
    assert (decision["kind"], decision["run_key"], decision["reason"]) == (
        "promoted",
        "night 1",
        "as the test wants it",
    )
    assert decision["question"] == {"challenger": version, "model": "lstm", "store": STORE, "rule": RULE}
    assert decision["by"]
    assert decision["at"].endswith("Z")


def test_a_refused_model_leaves_a_decision_and_no_copy(layout: Layout) -> None:
    first = train(layout, "a")
    promote(layout, first)
    second = train(layout, "b")
    assert not promote(layout, second, how=False)
    assert decisions(layout) == [("promoted", first), ("refused", first)]
    assert not layout.version(second).exists()
    assert layout.version(first).exists()


def test_the_first_model_may_be_refused(layout: Layout) -> None:
    assert not promote(layout, train(layout, "a"), how=False)
    assert decisions(layout) == [("refused", None)]
    assert not promote(layout, train(layout, "a"), how=never)
    assert promote(layout, train(layout, "b"))


def test_the_judge_gets_the_challenger_and_the_champion_of_the_registry(layout: Layout) -> None:
    seen: list[tuple[UPath, UPath | None]] = []

    def watch(folder: UPath, champion: UPath | None) -> Any:
        seen.append((folder, champion))
        return {"promoted": True, "reason": ""}, {}

    first = train(layout, "a")
    promote(layout, first, watch)
    promote(layout, train(layout, "b"), watch)
    assert seen == [(layout.model("lstm"), None), (layout.model("lstm"), layout.version(first))]


def test_what_is_decided_is_not_decided_again(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = train(layout, "a")
    promote(layout, first)
    assert not promote(layout, first, never)
    assert f"promote: unchanged, {first} was promoted at" in caplog.text
    second = train(layout, "b")
    promote(layout, second, how=False)
    before = layout.decisions.read_bytes()
    assert not promote(layout, second, never)
    assert f"promote: unchanged, {second} was refused at" in caplog.text
    assert layout.decisions.read_bytes() == before
    # another store is another question
    assert promote(layout, second, store={**STORE, "manifest_digest": "more"})


def test_a_run_that_is_repeated_says_what_it_said(layout: Layout) -> None:
    version = train(layout, "a")
    assert promote(layout, version, run_key="night 1")
    assert promote(layout, version, never, run_key="night 1")
    assert not promote(layout, version, never, run_key="night 2")
    assert not promote(layout, version, never)


def test_the_same_weights_are_the_same_version_whenever_they_were_saved(layout: Layout) -> None:
    assert train(layout, "a", "today") == train(layout, "a", "tomorrow") != train(layout, "b", "today")
    version = train(layout, "a")
    (layout.model("lstm") / "labels.json").write_text('{"labels": ["en", "de"]}')
    assert registry.version_of(layout.model("lstm")) != version


def test_what_was_rolled_back_does_not_come_back_by_itself(layout: Layout) -> None:
    first, second = train(layout, "a"), train(layout, "b")
    promote(layout, train(layout, "a"))
    promote(layout, train(layout, "b"))
    assert registry.roll_back(layout, None, "worse on the phone") == first
    assert not promote(layout, train(layout, "b"), never)
    found = registry.read(layout)
    assert found.champion == first
    assert found.decisions[2].reason == f"from {second} to {first}: worse on the phone"
    assert found.decisions[2].by
    assert found.decisions[3].reason == "a rollback took it out of service; only rollback --to brings it back"
    assert not promote(layout, train(layout, "b"), never)  # said once
    assert len(registry.read(layout).decisions) == 4
    assert registry.roll_back(layout, second, None) == second
    assert registry.read(layout).decisions[-1].reason == f"from {first} to {second}: no reason was given"
    assert not promote(layout, train(layout, "b"), never)  # it serves


def test_rollbacks_in_a_row_lead_further_back(layout: Layout) -> None:
    versions = [train(layout, name) for name in "abc"]
    for name in "abc":
        promote(layout, train(layout, name))
    assert [registry.roll_back(layout, None, None) for _ in range(2)] == versions[1::-1]
    with pytest.raises(UsageError, match=rf"{layout.registry}: no champion was before {versions[0]}"):
        registry.roll_back(layout, None, None)
    assert registry.read(layout).champion == versions[0]


def test_a_model_that_was_replaced_may_win_again_and_keeps_its_copy(layout: Layout) -> None:
    first = train(layout, "a")
    promote(layout, first)
    copied = {path.name: path.stat().st_mtime_ns for path in layout.version(first).iterdir()}
    promote(layout, train(layout, "b"))
    assert promote(layout, train(layout, "a", "later"))
    assert {path.name: path.stat().st_mtime_ns for path in layout.version(first).iterdir()} == copied


def test_a_champion_of_a_store_of_other_settings_is_a_caution(layout: Layout) -> None:
    promote(layout, train(layout, "a"))
    other = {**STORE, "config_hash": "another seed"}
    promote(layout, train(layout, "b"), store=other)
    promote(layout, train(layout, "c"), store=other)
    caution = "; the champion was trained on a store of other settings, perhaps on some of these test recordings"
    assert [caution in decision.reason for decision in registry.read(layout).decisions] == [False, True, False]


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], list[str]]:
    """Return a function after which the write of that number, before or after it is done, ends the process."""

    def prepare(number: int, done: bool) -> list[str]:
        written: list[str] = []

        def write(path: UPath, content: bytes) -> None:
            if len(written) == number and not done:
                raise Killed
            schema.write_atomically(path, content)
            written.append(path.name)
            if len(written) == number + 1 and done:
                raise Killed

        monkeypatch.setattr(registry, "write_atomically", write)
        return written

    return prepare


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("number", range(5))
def test_a_kill_between_any_two_steps_leaves_one_champion_and_the_same_command_goes_on(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, kill_at: Callable[[int, bool], list[str]], number: int, done: bool
) -> None:
    first = train(layout, "a")
    promote(layout, first, run_key="1")
    second = train(layout, "b")
    written = kill_at(number, done)
    with pytest.raises(Killed):
        promote(layout, second, run_key="2")
    steps = ["model.keras", "labels.json", "history.csv", "metrics.json", "registry.json"]
    assert written == steps[: number + done]
    monkeypatch.undo()
    swapped = number == 4 and done
    found = registry.read(layout)
    assert found.champion == (second if swapped else first)
    registry.checked(layout, found.champion)
    # whoever repeats the run hears that it promoted, whether or not it had the time to say so
    assert promote(layout, second, never if swapped else True, run_key="2")
    assert decisions(layout) == [("promoted", first), ("promoted", second)]
    registry.checked(layout, second)
    assert registry.roll_back(layout, None, None) == first


def test_a_kill_in_a_rollback_leaves_the_champion(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, kill_at: Callable[[int, bool], list[str]]
) -> None:
    versions = [train(layout, name) for name in "ab"]
    for name in "ab":
        promote(layout, train(layout, name))
    kill_at(0, False)
    with pytest.raises(Killed):
        registry.roll_back(layout, None, None)
    monkeypatch.undo()
    assert registry.read(layout).champion == versions[1]
    assert registry.roll_back(layout, None, None) == versions[0]


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"\xff", b'{"schema_version": 2, "champion": null, "decisions": []}',
    b'{"schema_version": 1, "champion": "abc", "decisions": []}', b'{"schema_version": 1, "decisions": [{}]}',
])  # fmt: skip
def test_a_damaged_file_is_told_in_one_line(layout: Layout, content: bytes) -> None:
    layout.registry.mkdir(parents=True)
    layout.decisions.write_bytes(content)
    version = train(layout, "a")
    for act in (lambda: registry.read(layout), lambda: promote(layout, version, never),
                lambda: registry.roll_back(layout, None, None)):  # fmt: skip
        with pytest.raises(UsageError) as error:
            act()
        assert str(error.value).startswith(f"{layout.decisions} is damaged (")
        assert "\n" not in str(error.value)
    assert layout.decisions.read_bytes() == content


def test_a_version_that_has_changed_never_serves(layout: Layout) -> None:
    first = train(layout, "a")
    promote(layout, first)
    promote(layout, train(layout, "b"))
    (layout.version(first) / "labels.json").write_text("{}")
    with pytest.raises(
        PipelineError, match=rf"{first} has changed since it was promoted; roll back to another version"
    ):
        registry.roll_back(layout, None, None)
    (layout.version(first) / "model.keras").unlink()
    with pytest.raises(PipelineError, match=f"version {first} cannot serve: .* holds no whole model"):
        registry.roll_back(layout, None, None)
    (layout.version(first) / "model.keras").write_bytes(b"no archive")
    with pytest.raises(PipelineError, match=r"model\.keras is damaged"):
        registry.roll_back(layout, None, None)
    assert len(registry.read(layout).decisions) == 2


def test_a_champion_that_has_changed_is_not_judged(layout: Layout) -> None:
    first = train(layout, "a")
    promote(layout, first)
    (layout.version(first) / "labels.json").write_text("{}")
    with pytest.raises(PipelineError, match="has changed since it was promoted"):
        promote(layout, train(layout, "b"), never)


def test_a_model_that_changes_while_it_is_judged_is_not_promoted(layout: Layout) -> None:
    def meanwhile(*_: Any) -> Any:
        train(layout, "c")
        return {"promoted": True, "reason": ""}, {}

    promote(layout, train(layout, "a"))
    with pytest.raises(PipelineError, match="has changed while it was judged; run promote again"):
        promote(layout, train(layout, "b"), meanwhile)
    assert len(registry.read(layout).decisions) == 1
    version = train(layout, "b")
    assert promote(layout, version)  # over what was left
    registry.checked(layout, version)


def test_a_decision_of_another_process_is_not_lost(layout: Layout) -> None:
    first, second = train(layout, "a"), train(layout, "b")
    promote(layout, train(layout, "a"))
    promote(layout, train(layout, "b"))

    def meanwhile(*_: Any) -> Any:
        registry.roll_back(layout, None, "by hand")
        return {"promoted": True, "reason": ""}, {}

    with pytest.raises(PipelineError, match="has changed meanwhile, by another promotion or rollback; run this again"):
        promote(layout, train(layout, "c"), meanwhile)
    assert decisions(layout) == [("promoted", first), ("promoted", second), ("rolled back", first)]


def test_a_model_that_is_not_there_is_told(layout: Layout) -> None:
    with pytest.raises(PipelineError, match=r"models/lstm holds no whole model"):
        registry.version_of(layout.model("lstm"))
    train(layout, "a")
    model = layout.model("lstm") / "model.keras"
    whole = model.read_bytes()
    for content in (
        b"half",
        whole[: len(whole) // 2],
        whole.replace(b"{}", b"[]", 1),
        whole.replace(b"weights", b"ballast"),
    ):
        model.write_bytes(content)
        with pytest.raises(PipelineError, match=r"model\.keras is damaged"):
            registry.version_of(layout.model("lstm"))


def test_an_account_without_a_name_has_a_number(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    promote(layout, train(layout, "a"))
    assert registry.read(layout).decisions[0].by == "uid 4000000"


def test_a_registry_behind_a_url(memory_url: str, tmp_path: Path) -> None:
    local, remote = Layout.at(str(tmp_path)), Layout.at(memory_url)
    assert registry.read(remote) == History()
    for name in "ab":
        train(local, name)
        for path in local.model("lstm").iterdir():
            target = remote.model("lstm") / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        assert promote(remote, registry.version_of(remote.model("lstm")))
    assert registry.roll_back(remote, None, None) == registry.read(remote).champion
    assert len(registry.read(remote).decisions) == 3
