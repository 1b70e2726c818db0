"""The environments in which people run commands: closed streams, deleted folders, other locales."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import environment
from pipeline.errors import UsageError
from tests.support.other_user import UID

ROOT = Path(__file__).parents[1]

STREAMS = """
import os, subprocess, sys
from pipeline import environment

environment.open_standard_streams()
with open(sys.argv[1], "wb") as result:
    print("lost", sys.stdin.read(), sys.stdout.isatty(), file=sys.stderr)
    os.write(1, b"lost")
    os.write(2, b"lost")
    subprocess.run(["sh", "-c", "echo lost; echo lost >&2"], check=True)
    result.write(str(result.fileno() > 2).encode())
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_take_output_and_give_none_of_their_numbers_away(tmp_path: Path, closed: str) -> None:
    result = tmp_path / "result"
    command = shlex.join([sys.executable, "-c", STREAMS, str(result)])
    done = subprocess.run(f"{command} {closed}", shell=True, cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0
    assert result.read_text() == "True"


def test_open_streams_stay() -> None:
    before = sys.stdin, sys.stdout, sys.stderr
    environment.open_standard_streams()
    assert (sys.stdin, sys.stdout, sys.stderr) == before


CHECK = """
from pipeline import environment, errors

try:
    environment.check()
except errors.UsageError as error:
    print(error)
"""


def check_in(folder: Path, **variables: str) -> str:
    """Run the check in a folder with the variables of a locale; return the error."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=folder, env={**kept, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    return done.stdout


LATIN_1 = {"LC_ALL": "en_US.ISO-8859-1"}


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variable for a folder with compiled locales: few machines have more than C.UTF-8 installed."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US.ISO-8859-1")]
    try:
        made = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no localedef")
    if not (folder / "en_US.ISO-8859-1").exists():
        pytest.skip(made.stderr.decode())
    return {"LOCPATH": str(folder)}


def test_another_encoding_of_names_is_refused(locales: dict[str, str], tmp_path: Path) -> None:
    refused = check_in(tmp_path, **locales, **LATIN_1)
    assert refused.startswith("the locale has names of files in iso8859-1, which would change the labels")
    assert "PYTHONUTF8=1" in refused
    assert len(refused.splitlines()) == 1
    assert check_in(tmp_path, **locales, **LATIN_1, PYTHONUTF8="1") == ""


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({"LC_ALL": "C.UTF-8"}, False),
        ({"LC_ALL": "C"}, False),  # Python then takes UTF-8 by itself
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, True),
        ({}, False),
    ],
)
def test_ascii_is_refused_where_python_was_told_to_keep_it(
    tmp_path: Path, variables: dict[str, str], refused: bool
) -> None:
    assert ("names of files in ascii" in check_in(tmp_path, **variables)) == refused


def test_user_without_a_home_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ.get("HOME")
    environment.ensure_home()
    assert os.environ.get("HOME") == before
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: UID)
        environment.ensure_home()
    assert os.environ["HOME"] == "/"


NO_TEMPORARY_FOLDER = """
import runpy, sys, tempfile

tempfile._candidate_tempdir_list = lambda: ["/proc/none"]
sys.argv[1:] = ["status", "--out", "out"]
runpy.run_module("pipeline.run", run_name="__main__")
"""


def test_no_folder_for_temporary_files_is_one_line() -> None:
    variables = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": "/dev/null/none"}
    done = subprocess.run(
        [sys.executable, "-c", NO_TEMPORARY_FOLDER],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "this user can write to no folder for temporary files; set TMPDIR to one that can be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_deleted_working_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(UsageError, match=r"^the working folder has been deleted; run the same command in another one"):
        environment.check()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_working_folder_of_somebody_else_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o700)
    os.seteuid(UID)
    try:
        with pytest.raises(UsageError, match=f"^this user may not enter the working folder {tmp_path}; run the same"):
            environment.check()
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("arguments", [["pipeline.run", "status", "--out", "/none"], ["model.predict", "/none", "x"]])
def test_commands_check_their_environment(arguments: list[str]) -> None:
    variables = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "the locale has names of files in ascii" in done.stderr
    assert len(done.stderr.splitlines()) == 1
