"""Run Airflow on this machine for one user (`make dags`), and stop every process that it started on exit.

The API server, the DAG processor and the scheduler are child processes. They listen on loopback and keep their
database in AIRFLOW_HOME. Settings that are already in the environment take precedence.
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
START_TIMEOUT_S: Final = 600
STOP_TIMEOUT_S: Final = 120
PR_SET_CHILD_SUBREAPER: Final = 36  # from linux/prctl.h

log = logging.getLogger("dags")


def settings(port: int) -> dict[str, str]:
    """Return the environment variables of an Airflow for one user whose web page is on `port`."""
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
        "AIRFLOW__CORE__PARALLELISM": "1",  # the pool allows one stage at a time anyway
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",  # no login: only this machine can connect
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",  # s, to resume soon after a crash
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def airflow(*arguments: str) -> list[str]:
    """Return an Airflow command line that is terminated when this process ends, even if this process is killed."""
    return ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "airflow", *arguments]


def prepare() -> None:
    """Migrate the database and import the pool."""
    Path(os.environ["AIRFLOW_HOME"]).mkdir(parents=True, exist_ok=True)
    for arguments in (("db", "migrate"), ("pools", "import", str(ROOT / "dags" / "pools.json"))):
        done = subprocess.run(airflow(*arguments), check=False, capture_output=True, text=True)
        if done.returncode:
            command = " ".join(("airflow", *arguments))
            sys.exit(f"{command} failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """Start a component of Airflow that logs to COMPONENT.log in AIRFLOW_HOME.

    Its own session shields it from a Ctrl-C in the terminal, which only this process handles.
    """
    with (Path(os.environ["AIRFLOW_HOME"]) / f"{arguments[0]}.log").open("w") as output:
        return subprocess.Popen(airflow(*arguments), stdout=output, stderr=output, start_new_session=True)


def health() -> dict[str, Any]:
    """Return the health of each component as reported by the API server, or an empty dict if it cannot respond."""
    url = f"http://127.0.0.1:{os.environ['AIRFLOW__API__PORT']}/api/v2/monitor/health"
    try:
        answer = httpx.get(url, timeout=30).raise_for_status()
    except httpx.HTTPError:
        return {}
    components: dict[str, Any] = answer.json()
    return components


def wait_until_healthy(*names: str, children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for components to become healthy.

    Raises:
        SystemExit: a child has ended, or the components are not healthy after `START_TIMEOUT_S` seconds.
    """
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not all(health().get(name, {}).get("status") == "healthy" for name in names):
        exit_if_any_ended(children)
        if time.monotonic() > deadline_s:
            sys.exit(f"Airflow's {' and '.join(names)} took more than {START_TIMEOUT_S} s; see *.log in AIRFLOW_HOME")
        time.sleep(0.5)


def exit_if_any_ended(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Raise SystemExit if a child has ended."""
    for child, (name, *_) in zip(children, COMPONENTS, strict=False):
        if child.poll() is not None:
            log_file = Path(os.environ["AIRFLOW_HOME"]) / f"{name}.log"
            sys.exit(f"Airflow's {name} ended with exit code {child.returncode}; see {log_file}")


def supervise(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until a child ends, and raise SystemExit; reap adopted orphans that end before it."""
    while True:
        exit_if_any_ended(children)
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # WNOWAIT leaves a child's exit code to `poll`
        if ended is not None and all(child.pid != ended.si_pid for child in children):
            os.waitpid(ended.si_pid, 0)


def stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop all descendants; the API server is last, because the others report how their tasks ended to it."""
    for group in (children[1:], children[:1]):
        for child in group:
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(child.pid).children():  # the scheduler's workers stop their tasks
                    process.terminate()
            child.terminate()
        for child in group:
            with suppress(subprocess.TimeoutExpired):
                child.wait(STOP_TIMEOUT_S)
    remaining = psutil.Process().children(recursive=True)
    for process in remaining:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(remaining, timeout=STOP_TIMEOUT_S)


def serve(out: str) -> None:
    """Run Airflow until a signal arrives or a component ends.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: SIGTERM arrived, a component ended, or Airflow did not start.
    """
    children: list[subprocess.Popen[bytes]] = []
    try:
        children.append(start(*COMPONENTS[0]))
        # A scheduler that starts before the API server uses up a retry of a task.
        wait_until_healthy("metadatabase", children=children)
        children.extend(start(*arguments) for arguments in COMPONENTS[1:])
        wait_until_healthy("scheduler", "dag_processor", children=children)
        log.info("Airflow is at %s and writes to %s (Ctrl-C to stop)", os.environ["AIRFLOW__API__BASE_URL"], out)
        supervise(children)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        log.info("stopping Airflow")
        stop(children)


def free_port(preferred: int) -> int:
    """Return the preferred port of 127.0.0.1 if it is free, or any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise SystemExit("127.0.0.1 has no free port")


def terminate(*_: object) -> None:
    """Raise SystemExit on a signal, so that `serve` stops its children."""
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """Parse the command line, synthesise the demo corpus if none is given, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="the Python of the pipeline's environment")
    parser.add_argument("--corpus", help="folder of recordings (default: synthesise a demo corpus)")
    parser.add_argument("--out", required=True, help="the output folder")
    parser.add_argument("--home", type=Path, default=ROOT / ".airflow", help="AIRFLOW_HOME (database, logs, locks)")
    parser.add_argument("--port", type=int, default=8080, help="port of the web page, if it is free")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes background jobs ignore it
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
    python, out = str(Path(options.python).absolute()), absolute(options.out)
    corpus = absolute(options.corpus) if options.corpus else f"{out}/corpus"
    for name, value in {"python": python, "corpus": corpus, "out": out}.items():
        os.environ[f"AIRFLOW_VAR_LANGUAGE_ID_{name.upper()}"] = value
    os.environ["AIRFLOW_HOME"] = str(options.home.absolute())
    for name, value in settings(free_port(options.port)).items():
        os.environ.setdefault(name, value)
    try:
        if not options.corpus:
            subprocess.run([python, "-m", "pipeline.run", "synthesise", "--out", out], check=True)
        prepare()
        serve(out)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd)} failed with exit code {error.returncode}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def absolute(path_or_url: str) -> str:
    """Return an absolute path, or a URL unchanged, because tasks run in another working directory."""
    return path_or_url if "://" in path_or_url else str(Path(path_or_url).absolute())


if __name__ == "__main__":
    main()
