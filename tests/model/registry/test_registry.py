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

from model import archive
from model.bundle import version_of
from model.metrics import metrics_file
from model.metrics.metrics_file import Metrics
from model.registry import digests, registry
from model.registry.history import Comparison, History, PromotionRequest
from pipeline import durable_files
from pipeline.errors import PipelineError, UsageError
from pipeline.outputs import OutputFolder
from tests.conftest import Killed
from tests.support.damage import DAMAGES, damage

STORE = {"config_hash": "c", "manifest_digest": "m"}
RULE = {"min_gain": 0.0, "confidence": 0.9}
LEVEL = {"n": 1, "accuracy": 1.0, "macro_f1": 1.0, "confusion": [[1]], "per_label": {}}
METRICS = Metrics.model_validate({
    "labels": ["de", "en"], "sequence": LEVEL, "recording": LEVEL, "labels_without_test": [],
    "labels_without_validation": [], "example": None, "store": STORE,
})  # fmt: skip


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return OutputFolder.at(str(tmp_path / "out"))


def train(output: OutputFolder, weights: str, saved: str = "today") -> str:
    """Write a model as a training would; return its version."""
    folder = output.model("lstm")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(Path(str(folder / "model.keras")), "w") as archive:
        archive.writestr("metadata.json", saved)
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", weights)
    (folder / "labels.json").write_text('{"labels": ["de", "en"]}')
    (folder / "history.csv").write_text("epoch\n1\n")
    return version_of(folder)


def judge(promoted: bool) -> registry.Judge:
    return lambda folder, champion: (Comparison(promoted=promoted, reason="as the test wants it"), METRICS)


def never(*_: Any) -> Any:
    pytest.fail("this is decided already")


def promote(
    output: OutputFolder, version: str, how: registry.Judge | bool = True, run_key: str | None = None,
    store: dict[str, str] | None = None,
) -> bool:  # fmt: skip
    asked = PromotionRequest(challenger=version, model="lstm", store=store or STORE, rule=RULE)
    return registry.promote(output, asked, run_key, judge(how) if isinstance(how, bool) else how)


def decisions(output: OutputFolder) -> list[tuple[str, str | None]]:
    return [(decision.kind, decision.champion) for decision in registry.read(output).decisions]


def test_a_promoted_model_is_copied_and_named(output: OutputFolder) -> None:
    version = train(output, "a")
    assert promote(output, version, run_key="night 1")
    folder = output.version(version)
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.csv",
        "labels.json",
        "metrics.json",
        "model.keras",
    ]
    assert (folder / "model.keras").read_bytes() == (output.model("lstm") / "model.keras").read_bytes()
    assert Metrics.read(folder / "metrics.json") == METRICS
    content = json.loads(output.decisions.read_text())
    assert (content["schema_version"], content["champion"]) == (2, version)
    (decision,) = content["decisions"]
    assert (decision["kind"], decision["run_key"], decision["reason"]) == (
        "promoted",
        "night 1",
        "as the test wants it",
    )
    assert decision["request"] == {"challenger": version, "model": "lstm", "store": STORE, "rule": RULE}
    assert decision["by"]
    assert decision["at"].endswith("Z")


def test_a_refused_model_leaves_a_decision_and_no_copy(output: OutputFolder) -> None:
    first = train(output, "a")
    promote(output, first)
    second = train(output, "b")
    assert not promote(output, second, how=False)
    assert decisions(output) == [("promoted", first), ("refused", first)]
    assert not output.version(second).exists()
    assert output.version(first).exists()


def test_the_first_model_may_be_refused(output: OutputFolder) -> None:
    assert not promote(output, train(output, "a"), how=False)
    assert decisions(output) == [("refused", None)]
    assert not promote(output, train(output, "a"), how=never)
    assert promote(output, train(output, "b"))


def test_the_judge_gets_the_challenger_and_the_champion_of_the_registry(output: OutputFolder) -> None:
    seen: list[tuple[UPath, UPath | None]] = []

    def watch(folder: UPath, champion: UPath | None) -> Any:
        seen.append((folder, champion))
        return Comparison(promoted=True, reason=""), METRICS

    first = train(output, "a")
    promote(output, first, watch)
    promote(output, train(output, "b"), watch)
    assert seen == [(output.model("lstm"), None), (output.model("lstm"), output.version(first))]


def test_what_is_decided_is_not_decided_again(output: OutputFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = train(output, "a")
    promote(output, first)
    assert not promote(output, first, never)
    assert f"promote: unchanged, {first} was promoted at" in caplog.text
    second = train(output, "b")
    promote(output, second, how=False)
    before = output.decisions.read_bytes()
    assert not promote(output, second, never)
    assert f"promote: unchanged, {second} was refused at" in caplog.text
    assert output.decisions.read_bytes() == before
    # another store is another request
    assert promote(output, second, store={**STORE, "manifest_digest": "more"})


def test_a_run_that_is_repeated_says_what_it_said(output: OutputFolder) -> None:
    version = train(output, "a")
    assert promote(output, version, run_key="night 1")
    assert promote(output, version, never, run_key="night 1")
    assert not promote(output, version, never, run_key="night 2")
    assert not promote(output, version, never)


def test_the_same_weights_are_the_same_version_whenever_they_were_saved(output: OutputFolder) -> None:
    assert train(output, "a", "today") == train(output, "a", "tomorrow") != train(output, "b", "today")
    version = train(output, "a")
    (output.model("lstm") / "labels.json").write_text('{"labels": ["en", "de"]}')
    assert version_of(output.model("lstm")) != version


def test_what_was_rolled_back_does_not_come_back_by_itself(output: OutputFolder) -> None:
    first, second = train(output, "a"), train(output, "b")
    promote(output, train(output, "a"))
    promote(output, train(output, "b"))
    assert registry.roll_back(output, None, "worse on the phone") == first
    assert not promote(output, train(output, "b"), never)
    found = registry.read(output)
    assert found.champion == first
    assert found.decisions[2].reason == f"from {second} to {first}: worse on the phone"
    assert found.decisions[2].by
    assert found.decisions[3].reason == "a rollback took it out of service; only rollback --to restores it"
    assert not promote(output, train(output, "b"), never)  # said once
    assert len(registry.read(output).decisions) == 4
    assert registry.roll_back(output, second, None) == second
    assert registry.read(output).decisions[-1].reason == f"from {first} to {second}: no reason given"
    assert not promote(output, train(output, "b"), never)  # it serves


def test_rollbacks_in_a_row_lead_further_back(output: OutputFolder) -> None:
    versions = [train(output, name) for name in "abc"]
    for name in "abc":
        promote(output, train(output, name))
    assert [registry.roll_back(output, None, None) for _ in range(2)] == versions[1::-1]
    with pytest.raises(UsageError, match=rf"{output.registry}: {versions[0]} is the first champion; there is nothing"):
        registry.roll_back(output, None, None)
    assert registry.read(output).champion == versions[0]


def test_a_model_that_was_replaced_may_win_again_and_keeps_its_copy(output: OutputFolder) -> None:
    first = train(output, "a")
    promote(output, first)
    copied = {path.name: path.stat().st_mtime_ns for path in output.version(first).iterdir()}
    promote(output, train(output, "b"))
    assert promote(output, train(output, "a", "later"))
    assert {path.name: path.stat().st_mtime_ns for path in output.version(first).iterdir()} == copied


def test_a_champion_of_a_store_of_other_settings_is_a_caution(output: OutputFolder) -> None:
    promote(output, train(output, "a"))
    other = {**STORE, "config_hash": "another seed"}
    promote(output, train(output, "b"), store=other)
    promote(output, train(output, "c"), store=other)
    caution = "; the champion was trained on a store with other settings, possibly on some of these test recordings"
    assert [caution in decision.reason for decision in registry.read(output).decisions] == [False, True, False]


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], list[str]]:
    """Return a function after which the write of that number, before or after it is done, ends the process."""

    def prepare(number: int, done: bool) -> list[str]:
        written: list[str] = []

        def write(path: UPath, content: bytes) -> None:
            if len(written) == number and not done:
                raise Killed
            durable_files.write_atomically(path, content)
            written.append(path.name)
            if len(written) == number + 1 and done:
                raise Killed

        for module in (registry, digests, metrics_file):
            monkeypatch.setattr(module, "write_atomically", write)
        return written

    return prepare


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("number", range(7))
def test_a_kill_between_any_two_steps_leaves_one_champion_and_the_same_command_goes_on(
    output: OutputFolder,
    monkeypatch: pytest.MonkeyPatch,
    kill_at: Callable[[int, bool], list[str]],
    number: int,
    done: bool,
) -> None:
    first = train(output, "a")
    promote(output, first, run_key="1")
    second = train(output, "b")
    written = kill_at(number, done)
    with pytest.raises(Killed):
        promote(output, second, run_key="2")
    steps = ["model.keras", "labels.json", "history.csv", "metrics.json", "digests.json", "registry.json",
             "digests.json"]  # fmt: skip
    assert written == steps[: number + done]
    monkeypatch.undo()
    swapped = number + done > 5
    found = registry.read(output)
    assert found.champion == (second if swapped else first)
    registry.checked(output, found.champion)
    assert registry.damaged(output) == {}
    # whoever repeats the run hears that it promoted, whether or not it had the time to say so
    assert promote(output, second, never if swapped else True, run_key="2")
    assert decisions(output) == [("promoted", first), ("promoted", second)]
    registry.checked(output, second)
    assert registry.roll_back(output, None, None) == first
    assert registry.damaged(output) == {}


def test_a_kill_in_a_rollback_leaves_the_champion(
    output: OutputFolder, monkeypatch: pytest.MonkeyPatch, kill_at: Callable[[int, bool], list[str]]
) -> None:
    versions = [train(output, name) for name in "ab"]
    for name in "ab":
        promote(output, train(output, name))
    kill_at(0, False)
    with pytest.raises(Killed):
        registry.roll_back(output, None, None)
    monkeypatch.undo()
    assert registry.read(output).champion == versions[1]
    assert registry.roll_back(output, None, None) == versions[0]


def test_a_file_of_schema_version_1_is_read_and_written_as_version_2(output: OutputFolder) -> None:
    version = train(output, "a")
    asked = {"challenger": version, "model": "lstm", "store": STORE, "rule": RULE}
    judged = {"promoted": False, "reason": "worse", "challenger_f1": {"value": 0.5, "low": None, "high": None},
              "champion_f1": None, "gain": None, "better_in": None, "recordings": 3, "speakers": 1}  # fmt: skip
    decision = {"at": "2026-01-02T03:04:05Z", "kind": "refused", "reason": "worse", "by": "ana", "champion": None,
                "run_key": None, "question": asked, "judgement": judged}  # fmt: skip
    content = {"schema_version": 1, "champion": None, "decisions": [decision]}
    durable_files.write_atomically(output.decisions, json.dumps(content).encode())
    (found,) = registry.read(output).decisions
    assert found.request == PromotionRequest.model_validate(asked)
    assert found.comparison == Comparison.model_validate(judged)
    assert not promote(output, version, never)  # it is decided
    assert promote(output, train(output, "b"))
    written = json.loads(output.decisions.read_text())
    assert (written["schema_version"], len(written["decisions"])) == (2, 2)
    assert written["decisions"][0]["comparison"] == judged


@pytest.mark.parametrize("content", [
    b'{"schema_version": 1, "decisions": 3}', b'{"schema_version": 1, "decisions": [3]}',
    b"", b"{", b"[]", b"null", b"\xff", b'{"schema_version": 3, "champion": null, "decisions": []}',
    b'{"schema_version": 1, "champion": "abc", "decisions": []}', b'{"schema_version": 1, "decisions": [{}]}',
])  # fmt: skip
def test_a_damaged_file_is_told_in_one_line(output: OutputFolder, content: bytes) -> None:
    output.registry.mkdir(parents=True)
    output.decisions.write_bytes(content)
    version = train(output, "a")
    for act in (lambda: registry.read(output), lambda: promote(output, version, never),
                lambda: registry.roll_back(output, None, None)):  # fmt: skip
        with pytest.raises(UsageError) as error:
            act()
        assert str(error.value).startswith(f"{output.decisions} is damaged (")
        assert "\n" not in str(error.value)
    assert output.decisions.read_bytes() == content


def test_a_version_that_has_changed_never_serves(output: OutputFolder) -> None:
    first = train(output, "a")
    promote(output, first)
    promote(output, train(output, "b"))
    (output.version(first) / "labels.json").write_text("{}")
    with pytest.raises(
        PipelineError,
        match=rf"{first}: model\.keras or labels\.json has changed since it was promoted; restore its fold",
    ):
        registry.roll_back(output, None, None)
    (output.version(first) / "model.keras").unlink()
    with pytest.raises(PipelineError, match=rf"{first}/model\.keras is missing; restore its folder"):
        registry.roll_back(output, None, None)
    (output.version(first) / "model.keras").write_bytes(b"no archive")
    with pytest.raises(PipelineError, match=r"model\.keras is damaged"):
        registry.roll_back(output, None, None)
    assert len(registry.read(output).decisions) == 2


def test_a_champion_that_has_changed_is_not_judged(output: OutputFolder) -> None:
    first = train(output, "a")
    promote(output, first)
    (output.version(first) / "labels.json").write_text("{}")
    with pytest.raises(
        PipelineError, match=f"^the champion {first} cannot serve: .* has changed since it was promoted"
    ):
        promote(output, train(output, "b"), never)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("file", ["model.keras", "labels.json"])
def test_a_damaged_champion_is_told_even_if_there_is_nothing_to_decide(
    output: OutputFolder, kind: str, file: str
) -> None:
    version = train(output, "a")
    promote(output, version)
    damage(Path(output.version(version) / file), kind)
    with pytest.raises(PipelineError) as told:
        promote(output, version, never)
    assert str(told.value).startswith(f"the champion {version} cannot serve: {output.version(version)}")
    assert file in str(told.value)
    assert str(told.value).endswith("; restore its folder from a copy, or roll back to another version with --to")
    assert told.value.exit_code == 1


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_any_file_of_the_registry_is_found(output: OutputFolder, kind: str) -> None:
    assert registry.damaged(output) == {}
    for name in "ab":
        promote(output, train(output, name))
    assert registry.damaged(output) == {}
    files = [path for path in output.registry.rglob("*") if path.is_file()]
    assert len(files) == 2 + 2 * 4
    for path in files:
        if (path, kind) == (output.registry_digests, "deleted"):
            continue  # as in a registry of an earlier version
        content = path.read_bytes()
        damage(Path(path), kind)
        (name,) = registry.damaged(output)
        assert name == str(path.relative_to(output.root))
        path.write_bytes(content)
    assert registry.damaged(output) == {}


def test_a_registry_without_digests_is_used_and_its_versions_are_checked(output: OutputFolder) -> None:
    first, second = (train(output, name) for name in "ab")
    for name in "ab":
        promote(output, train(output, name))
    output.registry_digests.unlink()
    labels = Path(output.version(first) / "labels.json")
    content = labels.read_bytes()
    damage(labels, "flipped")
    assert list(registry.damaged(output)) == [f"registry/{first}"]
    labels.write_bytes(content)
    assert registry.roll_back(output, None, None) == first
    assert registry.damaged(output) == {}
    damage(Path(output.version(second) / "labels.json"), "flipped")
    assert list(registry.damaged(output)) == [f"registry/{second}"]


def test_a_champion_with_another_network_of_the_same_weights_is_told(output: OutputFolder) -> None:
    version = train(output, "a")
    promote(output, version)
    model = output.version(version) / "model.keras"
    members = archive.read(model, "")
    model.write_bytes(archive.pack({**members, "config.json": b"[]"}))
    assert version_of(output.version(version)) == version
    with pytest.raises(PipelineError, match=rf"{version}/model\.keras has changed since it was promoted"):
        promote(output, version, never)


def test_decisions_that_are_gone_are_not_made_anew(output: OutputFolder) -> None:
    version = train(output, "a")
    promote(output, version)
    output.decisions.unlink()
    for act in (lambda: promote(output, version, never), lambda: registry.roll_back(output, None, None)):
        with pytest.raises(UsageError) as told:
            act()
        assert str(told.value) == (
            f"{output.decisions} is missing; restore a copy of it, or move {output.registry} away to start again"
        )


def test_decisions_that_were_edited_are_used_with_a_warning(
    output: OutputFolder, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        promote(output, train(output, name))
    output.decisions.write_text(output.decisions.read_text().replace("as the test wants it", "corrected"))
    assert list(registry.damaged(output)) == ["registry/registry.json"]
    registry.roll_back(output, None, None)
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert line == (
        f"{output.decisions} has changed since the last decision; if nobody has edited it, restore a copy of it"
    )
    assert registry.damaged(output) == {}


def test_a_model_that_changes_while_it_is_judged_is_not_promoted(output: OutputFolder) -> None:
    def meanwhile(*_: Any) -> Any:
        train(output, "c")
        return Comparison(promoted=True, reason=""), METRICS

    promote(output, train(output, "a"))
    with pytest.raises(PipelineError, match="changed during the comparison; run promote again"):
        promote(output, train(output, "b"), meanwhile)
    assert len(registry.read(output).decisions) == 1
    version = train(output, "b")
    assert promote(output, version)  # over what was left
    registry.checked(output, version)


def test_a_decision_of_another_process_is_not_lost(output: OutputFolder) -> None:
    first, second = train(output, "a"), train(output, "b")
    promote(output, train(output, "a"))
    promote(output, train(output, "b"))

    def meanwhile(*_: Any) -> Any:
        registry.roll_back(output, None, "by hand")
        return Comparison(promoted=True, reason=""), METRICS

    with pytest.raises(PipelineError, match="was changed by another promotion or rollback; run this again"):
        promote(output, train(output, "c"), meanwhile)
    assert decisions(output) == [("promoted", first), ("promoted", second), ("rolled back", first)]


def test_a_model_that_is_not_there_is_told(output: OutputFolder) -> None:
    with pytest.raises(PipelineError, match=r"models/lstm/model\.keras is missing; run train again"):
        version_of(output.model("lstm"))
    train(output, "a")
    model = output.model("lstm") / "model.keras"
    whole = model.read_bytes()
    for content in (
        b"half",
        whole[: len(whole) // 2],
        whole.replace(b"{}", b"[]", 1),
        whole.replace(b"weights", b"ballast"),
    ):
        model.write_bytes(content)
        with pytest.raises(PipelineError, match=r"model\.keras is damaged"):
            version_of(output.model("lstm"))


def test_an_account_without_a_name_has_a_number(output: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    promote(output, train(output, "a"))
    assert registry.read(output).decisions[0].by == "uid 4000000"


def test_a_registry_behind_a_url(memory_url: str, tmp_path: Path) -> None:
    local, remote = OutputFolder.at(str(tmp_path)), OutputFolder.at(memory_url)
    assert registry.read(remote) == History()
    for name in "ab":
        train(local, name)
        for path in local.model("lstm").iterdir():
            target = remote.model("lstm") / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        assert promote(remote, version_of(remote.model("lstm")))
    assert registry.roll_back(remote, None, None) == registry.read(remote).champion
    assert len(registry.read(remote).decisions) == 3
