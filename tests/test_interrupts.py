import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import interrupts
from tests.support.deadline import DEADLINE_S

SIGNALS = pytest.mark.parametrize(
    ("signum", "exit_code"),
    [(signal.SIGINT, interrupts.EXIT_INTERRUPTED), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)


def run(script: str, *arguments: str, modules: Path | None = None) -> tuple[int, str]:
    """Run a script, which can import what is in `modules`; return its exit code and its standard error."""
    path = {} if modules is None else {"PYTHONPATH": str(modules)}
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **path}, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    return result.returncode, result.stderr


# the signal comes while a finaliser runs, where Python drops what is raised; the run would go on
DROPPED = """
import os, signal, sys, time
from pipeline import interrupts

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.Signals(int(sys.argv[1])))
        time.sleep(0.01)

interrupts.set_up()
try:
    Finalised()
    time.sleep(30)
except KeyboardInterrupt:
    sys.exit(interrupts.EXIT_INTERRUPTED)
"""


@SIGNALS
def test_a_signal_in_a_finaliser_ends_the_run_all_the_same(signum: signal.Signals, exit_code: int) -> None:
    assert run(DROPPED, str(int(signum))) == (exit_code, "")


# the signal comes while an extension module calls Python in its import, where C++ code may abort
IMPORTED = """
import os, signal, sys
os.kill(os.getpid(), signal.Signals(int(sys.argv[1])))
finished = True
"""
IMPORTING = """
import sys, time
from pipeline import interrupts

interrupts.set_up()
try:
    import imported
    assert imported.finished
    time.sleep(30)
except KeyboardInterrupt:
    sys.exit(interrupts.EXIT_INTERRUPTED)
"""


@SIGNALS
def test_a_signal_in_an_import_ends_the_run_after_the_import(
    tmp_path: Path, signum: signal.Signals, exit_code: int
) -> None:
    (tmp_path / "imported.py").write_text(IMPORTED)
    assert run(IMPORTING, str(int(signum)), modules=tmp_path) == (exit_code, "")


# the signal comes while the main thread executes C code for a long time, with stderr redirected
DEAF = """
import hashlib, os, signal, sys, threading
from pipeline import interrupts

interrupts.PATIENCE_S = 0.1
interrupts.set_up()
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
# … or an import that takes long
INTERRUPTED = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(10**6)"
LONG_IMPORT = """
import sys, time
from pipeline import interrupts

interrupts.PATIENCE_S = 0.1
interrupts.set_up()
import long
"""


def test_ctrl_c_ends_a_run_whose_main_thread_does_not_notice_it(tmp_path: Path) -> None:
    ended = (interrupts.EXIT_INTERRUPTED, "interrupted; the same command continues\n")
    assert run(DEAF) == ended
    (tmp_path / "long.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(10**6)"
    )
    assert run(LONG_IMPORT, modules=tmp_path) == ended


def test_a_command_under_nohup_survives_its_terminal() -> None:
    script = "import os, signal, time; from pipeline import interrupts; interrupts.set_up()\n"
    script += "os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.01)"
    assert run(f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{script}") == (0, "")
    assert run(script) == (129, "")


def test_shielded_processes_never_receive_the_signals_of_a_terminal() -> None:
    script = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    command = [sys.executable, "-c", script]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    blocked = interrupts.shielded(lambda: subprocess.check_output(command, text=True), lambda _: None)
    assert "SIGINT" in blocked
    assert "SIGHUP" in blocked
    assert "SIGTERM" not in blocked
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_error_of_a_shielded_call_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        interrupts.shielded(lambda: 1 // 0, lambda _: None)


# the signal comes while a cluster starts, which takes argv[2] seconds
STARTING = """
import os, signal, sys, time
from pipeline import interrupts

def start():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(float(sys.argv[2]))
    return "cluster"

interrupts.GRACE_S = float(sys.argv[1])
interrupts.set_up()
try:
    interrupts.shielded(start, lambda started: sys.stderr.write(f"stopped the {started}"))
except KeyboardInterrupt:
    sys.exit(interrupts.EXIT_INTERRUPTED)
"""


@pytest.mark.parametrize(
    ("grace_s", "start_s", "written"), [(DEADLINE_S, 0.2, "stopped the cluster"), (0.1, 10**6, "")]
)
def test_a_start_that_takes_too_long_is_not_waited_for(grace_s: float, start_s: float, written: str) -> None:
    assert run(STARTING, str(grace_s), str(start_s)) == (interrupts.EXIT_INTERRUPTED, written)


def test_other_errors_of_a_finaliser_are_still_told() -> None:
    script = DROPPED.replace("os.kill(os.getpid(), signal.Signals(int(sys.argv[1])))", "raise ValueError('told')")
    script = script.replace("time.sleep(30)", "pass")
    exit_code, errors = run(script)
    assert exit_code == 0
    assert "ValueError: told" in errors


def test_an_interrupted_command_ends_at_once_and_reports_nothing_that_is_unfinished() -> None:
    script = (
        "import multiprocessing, sys, threading, time\n"
        "from pipeline import interrupts\n"
        "async def unfinished(): pass\n"
        "class Finalised:\n"
        "    def __del__(self): raise ValueError\n"
        "left = unfinished(), Finalised()\n"
        "threading.Thread(target=time.sleep, args=(10**6,)).start()\n"
        "spawn = multiprocessing.get_context('spawn')\n"
        "child, queue = spawn.Process(target=time.sleep, args=(10**6,)), spawn.Queue()\n"
        "child.start()\n"
        "print(child.pid, file=sys.stderr)\n"
        "interrupts.leave(130)\n"
    )
    code, pid = run(script)
    assert code == 130
    assert not Path("/proc", pid.strip()).exists()


@pytest.mark.parametrize("command", ["pipeline.run", "model.predict"])
def test_ctrl_c_while_a_command_starts_leaves_no_traceback(tmp_path: Path, command: str) -> None:
    (tmp_path / "click.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(10**6)"
    )
    script = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += f"runpy.run_module({command!r}, run_name='__main__')"
    assert run(script, modules=tmp_path) == (-signal.SIGINT, "")


def test_ctrl_c_in_code_made_from_text_leaves_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "from pipeline import interrupts\n"
        "try:\n"
        "    exec('raise KeyboardInterrupt')\n"
        "except KeyboardInterrupt:\n"
        "    interrupts.leave(interrupts.EXIT_INTERRUPTED)\n"
    )
    result = subprocess.run([sys.executable, "-m", "made"], cwd=tmp_path, timeout=DEADLINE_S, check=False)
    assert result.returncode == interrupts.EXIT_INTERRUPTED
