"""promote, rollback and evaluate --as-of of the command line itself, on models that it trained."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from model.bundle import version_of
from pipeline.outputs import OutputFolder
from tests.support.whole_system import run

pytestmark = pytest.mark.slow

# an ann that learns nothing of order, an lstm that does
DEMO = (
    "--executor=serial", "--set=demo.utterances_per_speaker=4", "--set=demo.utterance_s=3",
    "--set=models.lstm.max_epochs=3", "--set=models.ann.max_epochs=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a demo, in which nothing is promoted."""
    out = tmp_path_factory.mktemp("demo")
    result = run("demo", "--out", out, *DEMO)
    assert result.returncode == 0, result.stderr
    assert not (out / "registry").exists()
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "out", ignore=shutil.ignore_patterns("corpus")))


def history(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "registry" / "registry.json").read_text())
    return content


def test_a_night_after_another(out: Path) -> None:
    ann, lstm = (version_of(OutputFolder.at(str(out)).model(name)) for name in ("ann", "lstm"))
    arguments = ("promote", "--out", out, "--kept-exit-code", "99", *DEMO)

    first = run(*arguments, "--set=promotion.model=ann", "--run-key=night 1")
    assert first.returncode == 99, first.stderr
    assert f"promote: refused {ann} (ann); champion none: macro F1 " in first.stderr.splitlines()[-1]
    assert "against chance 0.333" in first.stderr
    told = run("evaluate", "--out", out, "--as-of", f"{datetime.now(UTC):%Y-%m-%d}", *DEMO)
    assert (told.returncode, len(told.stderr.splitlines())) == (2, 1)
    assert "no model was in service then; none has been promoted yet" in told.stderr

    for _ in range(2):  # the second is an attempt of the same run, which is told the same
        second = run(*arguments, "--run-key=night 2")
        assert second.returncode == 0, second.stderr
    assert f"promote: unchanged, {lstm} was promoted at " in second.stderr
    assert run(*arguments, "--run-key=night 3").returncode == 99

    assert [(d["kind"], d["run_key"], d["champion"]) for d in history(out)["decisions"]] == [
        ("refused", "night 1", None), ("promoted", "night 2", lstm),
    ]  # fmt: skip
    judged = history(out)["decisions"][1]["comparison"]
    measured = json.loads((out / "metrics" / "lstm.json").read_text())["recording"]
    assert judged["challenger_f1"]["value"] == measured["macro_f1"]
    assert judged["challenger_f1"]["low"] == measured["macro_f1_interval"]["low"]
    assert judged["speakers"] == measured["macro_f1_interval"]["speakers"]
    assert history(out)["decisions"][1]["request"]["store"] == json.loads(
        (out / "registry" / lstm / "metrics.json").read_text()
    )["store"]  # fmt: skip

    shown = run("status", "--out", out)
    assert f"champion    {lstm} (lstm) since 2" in shown.stdout
    assert run("report", "--out", out, *DEMO).returncode == 0
    page = (out / "report" / "index.html").read_text()
    assert "Which model is in service?" in page
    assert (out / "report" / "champions.png").exists()


@pytest.mark.long
def test_rollback_and_the_model_that_served_before(out: Path) -> None:
    longer = (*DEMO, "--set=models.lstm.max_epochs=12")
    arguments = ("promote", "--out", out, *longer)
    assert run(*arguments).returncode == 0
    first = history(out)["champion"]
    trained = run("train", "--out", out, *longer)
    assert trained.returncode == 0, trained.stderr
    promoted = run(*arguments)
    second = history(out)["champion"]
    assert second != first, promoted.stderr
    assert " of the champion; " in promoted.stderr

    rolled = run("rollback", "--out", out, "--reason", "worse on the phone")
    assert rolled.returncode == 0, rolled.stderr
    assert f"rollback: from {second} to {first}: worse on the phone" in rolled.stderr
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert "a rollback took it out of service; only rollback --to restores it" in again.stderr
    assert history(out)["champion"] == first
    nothing = run("rollback", "--out", out)
    assert (nothing.returncode, len(nothing.stderr.splitlines())) == (2, 1)
    assert f"{first} is the first champion; there is nothing to roll back to" in nothing.stderr
    assert run("rollback", "--out", out, "--to", second).returncode == 0
    assert history(out)["champion"] == second

    content = history(out)
    for day, decision in enumerate(content["decisions"], 1):  # one a day, as nights go
        decision["at"] = f"2026-01-{day:02d}T03:00:00Z"
    (out / "registry" / "registry.json").write_text(json.dumps(content))
    for date, version in (("2026-01-01", first), ("2026-01-02", second)):
        result = run("evaluate", "--out", out, "--as-of", date, *DEMO)
        assert result.returncode == 0, result.stderr
        found = json.loads((out / "metrics" / f"as-of-{date}.json").read_text())
        assert (found["version"], found["as_of"]) == (version, f"{date}T23:59:59.999999+00:00")
        assert found["recording"] == json.loads((out / "registry" / version / "metrics.json").read_text())["recording"]
    before = run("evaluate", "--out", out, "--as-of", "2025-12-31", *DEMO)
    assert (before.returncode, len(before.stderr.splitlines())) == (2, 1)
    assert (
        "--as-of 2025-12-31: no model was in service then; the first was promoted at 2026-01-01 03:00 UTC"
        in before.stderr
    )
    # the page's models are those of this run
    assert run("report", "--out", out, *DEMO).returncode == 0
    assert "as-of-2026" not in (out / "report" / "index.html").read_text()


@pytest.mark.parametrize(("arguments", "told"), [
    (("train", "--to", "abc"), "--to is an option of rollback, not of train"),
    (("--run-key", "x"), "--run-key is an option of promote, not of all"),
    (("evaluate", "--kept-exit-code", "99"), "--kept-exit-code is an option of promote, not of evaluate"),
    (("promote", "--as-of", "2026-01-01"), "--as-of is an option of evaluate, not of promote"),
    (("evaluate", "--as-of", "yesterday"), "--as-of yesterday: write a date (2026-01-31) or a time"),
    (("promote",), "the model lstm is not trained yet; run train first, or choose another by --set promotion.model=…"),
    (("promote", "--set=promotion.model=rnn"), "promotion: model rnn is not configured; choose one of ann, lstm"),
    (("rollback",), "registry: no model has been promoted yet; there is nothing to roll back to"),
])  # fmt: skip
def test_wrong_usage_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    result = run(*arguments, "--out", tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert told in result.stderr


@pytest.mark.parametrize("stage", ["promote", "rollback", "status", "report"])
def test_a_damaged_registry_is_told_in_one_line(out: Path, stage: str) -> None:
    (out / "registry").mkdir()
    (out / "registry" / "registry.json").write_text("{")
    result = run(stage, "--out", out, *(() if stage in ("rollback", "status") else DEMO))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "registry.json is damaged (" in result.stderr
