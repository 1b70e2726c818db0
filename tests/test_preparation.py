"""Where a run writes: names of --out that are no folders."""

import os
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.run import main
from tests.support.other_user import UID


def refusal(*arguments: str | Path) -> str:
    with pytest.raises(UsageError) as error:
        main([str(argument) for argument in arguments], standalone_mode=False)
    return str(error.value)


@pytest.mark.parametrize("stage", ["all", "demo", "scan", "status", "rollback", "verify"])
@pytest.mark.parametrize("out", ["", " "])
def test_empty_name_is_refused(stage: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(stage, "--out", out) == "--out is empty: name the output folder"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["demo", "status", "extract"])
@pytest.mark.parametrize("below", ["", "out", "a/b"])
def test_file_is_refused(stage: str, below: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    out = file / below
    assert refusal(stage, "--out", out) == f"--out {out}: {file} is not a folder; name another place"
    assert file.read_text() == "text"


def test_tilde_is_the_home_folder_of_a_user_who_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert refusal("extract", "--out", "~/x").startswith(f"--out {tmp_path / 'home' / 'x'}: there is no such folder")
    assert refusal("all", "--corpus", "~/c", "--out", "~/x").startswith(f"--corpus {tmp_path / 'home' / 'c'}: ")
    config = refusal("all", "--config", "~/run.yaml", "--out", "~/x")
    assert config == f"--config {tmp_path / 'home' / 'run.yaml'}: No such file or directory"
    profiles = refusal("all", "--cluster-file", "~/c.yaml", "--out", "~/x")
    assert profiles == f"--cluster-file {tmp_path / 'home' / 'c.yaml'}: No such file or directory"
    assert refusal("extract", "--out", "~nobody-at-all/x") == (
        "~nobody-at-all/x: there is no such home folder; write ./~nobody-at-all/x for a folder of that name"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert refusal("extract", "--out", "./~x").startswith(f"--out {tmp_path / '~x'}: there is no such folder")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_folder_that_cannot_be_entered_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    os.seteuid(UID)
    try:
        message = refusal("demo", "--out", tmp_path / "out")
    finally:
        os.seteuid(0)
    assert message.startswith(f"--out {tmp_path / 'out'}: this user may not enter /")
    assert message.endswith("; name another place")
