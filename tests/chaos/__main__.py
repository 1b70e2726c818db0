"""Kill drivers, workers, nannies and schedulers at random moments of random commands: `make chaos SEED=1 KILLS=200`.

In each round a command runs on what the commands before it in the history have left. It runs again until it ends well,
and then its files have to be those that it leaves without kills. Exits with 1 if they differ, or if a log has a
traceback.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.runtime.profiles import ADDRESS_VARIABLE
from tests.chaos.history import HISTORY, Place, Step, differences, outcome
from tests.support.deadline import DEADLINE_S
from tests.support.hosts import Host, Hosts
from tests.support.whole_system import command

MAX_KILLS = 3
"""Kills in one round."""
LOOPBACK = Host("127.0.0.1", "", "", "")
IMPATIENT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s"}
"""Dask tries for 30 s to reach a scheduler that it has lost."""


@dataclass(frozen=True)
class Whole:
    """A step of the history that was not disturbed: where it began, what it left, and how long it took."""

    step: Step
    corpus: Path
    before: Path
    left: dict[str, str]
    wall_s: float


def undisturbed(place: Place, folder: Path) -> list[Whole]:
    """Run the whole history."""
    found = []
    for number, step in enumerate(HISTORY):
        place.prepare(step)
        before = place.copy_out(folder / f"before-{number}")
        corpus = folder / f"corpus-{number}"
        subprocess.run(["cp", "-a", place.corpus, corpus], check=True)
        started_s = time.monotonic()
        done = subprocess.run(command(*place.arguments(step)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(Whole(step, corpus, before, outcome(place.out), time.monotonic() - started_s))
    return found


class Cluster:
    """A scheduler and two nannies with a worker each, as processes of their own; a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._hosts = Hosts(folder)
        self.scheduler = self._hosts.scheduler(LOOPBACK)
        self._nannies = [self._hosts.worker(LOOPBACK, self.scheduler.address, "--nanny", wait=False) for _ in range(2)]

    def victims(self, role: str) -> list[int]:
        """Return the processes of a role."""
        if role == "scheduler":
            return [self.scheduler.process.popen.pid]
        nannies = [nanny.popen.pid for nanny in self._nannies]
        return nannies if role == "nanny" else [pid for nanny in nannies for pid in workers_below(nanny)]

    def close(self) -> None:
        """End all processes."""
        self._hosts.__exit__()


def workers_below(pid: int) -> list[int]:
    """Return the worker processes that a nanny has started: multiprocessing spawned them."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children(recursive=True)
        return [child.pid for child in children if "spawn_main" in " ".join(_words(child))]
    return []


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


class Chaos:
    """Rounds of random kills, and what they have led to."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.chance = folder, random.Random(seed)
        self.place = Place(folder / "place", speakers=4, recordings=3)
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._clusters = 0

    def run(self, kills: int, report: Callable[[str], None]) -> None:
        """Run rounds until so many processes were killed."""
        wholes = undisturbed(self.place, self.folder)
        while sum(self.counts.values()) < kills:
            whole = self.chance.choice(wholes)
            known = len(self.failures)
            happened = self._round(whole)
            report(f"{sum(self.counts.values())} kills: {whole.step.name}: {happened}")
            for failure in self.failures[known:]:
                report(f"FAILED {failure}")

    def _round(self, whole: Whole) -> str:
        """Run a command with kills until it ends well; return what happened."""
        subprocess.run(["rm", "-rf", self.place.corpus], check=True)
        subprocess.run(["cp", "-a", whole.corpus, self.place.corpus], check=True)
        self.place.restore_out(whole.before)
        is_remote = whole.step.uses_workers and self.chance.random() < 0.5
        happened, planned = [], self.chance.randint(1, MAX_KILLS)
        for attempt in range(MAX_KILLS + 2):
            code, log, role = self._attempt(whole, remote=is_remote, kills=attempt < planned)
            happened.append(f"{role or 'whole'}: {code}")
            if "Traceback" in log:
                self.failures.append(f"{whole.step.name}: a traceback\n{log}")
            if code == 0:
                break
        else:
            self.failures.append(f"{whole.step.name}: {happened} did not end well\n{log}")
        wrong = differences(outcome(self.place.out), whole.left)
        if wrong:
            self.failures.append(f"{whole.step.name}: {happened}: {', '.join(wrong[:9])}")
        return ", ".join(happened)

    def _attempt(self, whole: Whole, *, remote: bool, kills: bool) -> tuple[int, str, str]:
        """Run the command once; return its exit code, its log, and the role that was killed."""
        with ExitStack() as stack:
            arguments, environment = self.place.arguments(whole.step), {**os.environ, **IMPATIENT}
            cluster = None
            if remote:
                self._clusters += 1
                cluster = Cluster(self.folder / f"cluster-{self._clusters}")
                stack.callback(cluster.close)
                arguments = (*arguments, "--cluster", "scheduler")
                environment[ADDRESS_VARIABLE] = cluster.scheduler.address
            log = self.folder / "log"
            with log.open("wb") as file:
                driver = subprocess.Popen(command(*arguments), stdout=file, stderr=file, env=environment)
            role = self._kill(driver, cluster, whole) if kills else ""
            try:
                code = driver.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                driver.kill()
                code = driver.wait()
            return code, log.read_text(encoding="utf-8"), role

    def _kill(self, driver: subprocess.Popen[bytes], cluster: Cluster | None, whole: Whole) -> str:
        """Kill a process of a random role at a random moment; return the role, empty if the command had ended."""
        roles = ["driver"] if not whole.step.uses_workers else ["driver", "worker"]
        role = self.chance.choice(roles if cluster is None else [*roles, "nanny", "scheduler"])
        with suppress(subprocess.TimeoutExpired):
            driver.wait(self.chance.uniform(0, whole.wall_s))
            return ""
        if role == "driver":
            victims = [driver.pid]
        else:
            victims = workers_below(driver.pid) if cluster is None else cluster.victims(role)
        if not victims:
            return ""
        with suppress(ProcessLookupError):
            os.kill(self.chance.choice(victims), signal.SIGKILL)
            self.counts[role] += 1
        return role


def main() -> None:
    """Run the rounds and print what was killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(Path(folder), options.seed)
        chaos.run(options.kills, lambda line: print(line, flush=True))
    print(f"killed: {', '.join(f'{number} {role}' for role, number in sorted(chaos.counts.items()))}")
    print(f"{len(chaos.failures)} failures")
    sys.exit(bool(chaos.failures))


if __name__ == "__main__":
    main()
