"""Airflow on this machine, for one person: `make dags`. Ends with every process that it started.

API server, DAG processor and scheduler are children of this process, on loopback, with a database in AIRFLOW_HOME.
What the environment sets already stays as it is.
"""

import argparse
import ctypes
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

ROOT: Final = Path(__file__).resolve().parent.parent
COMPONENTS: Final = (("api-server",), ("dag-processor",), ("scheduler", "--skip-serve-logs"))
START_TIMEOUT_S: Final = 120
STOP_TIMEOUT_S: Final = 30
PR_SET_CHILD_SUBREAPER: Final = 36

log = logging.getLogger("dags")


def settings(port: int) -> dict[str, str]:
    """Return the environment of an Airflow for one person, its page on `port`."""
    url = f"http://127.0.0.1:{port}"
    return {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "1",  # the pool lets no two stages run at once
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",  # no login: loopback is the protection
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",  # what a crash has left goes on soon
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def airflow(*arguments: str) -> list[str]:
    """Return a command of this environment's Airflow, which ends when this process does, however that ends."""
    return ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "airflow", *arguments]


def prepare() -> None:
    """Bring the database and the pool up to date."""
    Path(os.environ["AIRFLOW_HOME"]).mkdir(parents=True, exist_ok=True)
    for arguments in (("db", "migrate"), ("pools", "import", str(ROOT / "dags" / "pools.json"))):
        done = subprocess.run(airflow(*arguments), check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"airflow {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """Start a component, its output in AIRFLOW_HOME; a session of its own keeps a terminal's Ctrl-C from it."""
    with (Path(os.environ["AIRFLOW_HOME"]) / f"{arguments[0]}.log").open("w") as output:
        return subprocess.Popen(airflow(*arguments), stdout=output, stderr=output, start_new_session=True)


def health() -> dict[str, Any]:
    """Return what the API server says of the components; empty before it answers."""
    url = f"http://127.0.0.1:{os.environ['AIRFLOW__API__PORT']}/api/v2/monitor/health"
    try:
        found: dict[str, Any] = httpx.get(url, timeout=5).json()
    except httpx.TransportError:
        return {}
    return found


def wait_for(*names: str, children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until components are healthy; raises SystemExit where a child ends or the time is over."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not all(health().get(name, {}).get("status") == "healthy" for name in names):
        watch(children)
        if time.monotonic() > deadline_s:
            sys.exit(f"Airflow's {' and '.join(names)} took more than {START_TIMEOUT_S} s; see *.log in AIRFLOW_HOME")
        time.sleep(0.5)


def watch(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Raise SystemExit where a child has ended."""
    for child, (name, *_) in zip(children, COMPONENTS, strict=False):
        if child.poll() is not None:
            sys.exit(f"Airflow's {name} ended with {child.returncode}; see {name}.log in {os.environ['AIRFLOW_HOME']}")


def reap(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Take leave of orphans that have ended: what a killed process leaves behind is this process's child."""
    known = {child.pid for child in children}
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            if process.pid not in known and process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)


def stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End all that was started: the API last, so that Airflow still notes how what runs for a task ended."""
    for group in (children[1:], children[:1]):
        for child in group:
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(child.pid).children():  # the scheduler's pass it on to their tasks
                    process.terminate()
            child.terminate()
        for child in group:
            with suppress(subprocess.TimeoutExpired):
                child.wait(STOP_TIMEOUT_S)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def serve(out: str) -> None:
    """Run until a signal or the end of a component; raises SystemExit then."""
    children = []
    try:
        children.append(start(*COMPONENTS[0]))
        wait_for("metadatabase", children=children)  # a scheduler that is up before the API wastes a task's try
        children.extend(start(*arguments) for arguments in COMPONENTS[1:])
        wait_for("scheduler", "dag_processor", children=children)
        log.info("Airflow is at %s (Ctrl-C ends it), output goes to %s", os.environ["AIRFLOW__API__BASE_URL"], out)
        while True:
            watch(children)
            reap(children)
            time.sleep(1)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        log.info("Airflow ends")
        stop(children)


def free_port(wanted: int) -> int:
    """Return the port if nobody has it, else another."""
    for port in (wanted, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise SystemExit("no port is free on 127.0.0.1")


def terminate(*_: object) -> None:
    """Leave by the way of every other end."""
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """Read the command line, make the demo's corpus where none is named, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="the Python of the pipeline's environment")
    parser.add_argument("--corpus", help="recordings, as for pipeline.run; none: a demo's are synthesised")
    parser.add_argument("--out", required=True, help="the output folder")
    parser.add_argument("--home", type=Path, default=ROOT / ".airflow", help="AIRFLOW_HOME: database, logs, locks")
    parser.add_argument("--port", type=int, default=8080, help="of the page; another one where it is taken")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts with & ignore it
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
    python, out = str(Path(given.python).absolute()), absolute(given.out)
    corpus = absolute(given.corpus) if given.corpus else f"{out}/corpus"
    for name, value in {"python": python, "corpus": corpus, "out": out}.items():
        os.environ[f"AIRFLOW_VAR_LANGUAGE_ID_{name.upper()}"] = value
    os.environ["AIRFLOW_HOME"] = str(given.home.absolute())
    for name, value in settings(free_port(given.port)).items():
        os.environ.setdefault(name, value)
    try:
        if not given.corpus:
            subprocess.run([python, "-m", "pipeline.run", "synthesise", "--out", out], check=True)
        prepare()
        serve(out)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd)} ended with {error.returncode}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def absolute(place: str) -> str:
    """Return a path as an absolute one, a URL as it is: a task runs in a folder of its own."""
    return place if "://" in place else str(Path(place).absolute())


if __name__ == "__main__":
    main()
