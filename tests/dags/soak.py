"""One run per minute for an hour, with new recordings, killed tasks and restarts of Airflow.

`make dags-soak` exits with 0 if no two stages ever ran at once on the output folder, every scheduled run succeeded,
and the store holds every recording with valid checksums.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from tests.dags.local_airflow import (
    DEADLINE_S,
    FINISHED,
    QUICK,
    SMALL,
    LocalAirflow,
    add_recordings,
    make_corpus,
    pipeline,
    processes_of,
    serve,
    stage_processes,
)  # fmt: skip

TRAIN = "language_id_train"


def disturb(out: Path, chance: random.Random, counts: Counter[str]) -> None:
    """Kill the running stage, its task process or its worker, chosen at random."""
    with suppress(psutil.NoSuchProcess):
        for command in stage_processes(out):
            parents = [parent for parent in command.parents() if "airflow worker" in " ".join(parent.cmdline())]
            victims = dict(zip(("command", "task", "worker"), [command, *parents], strict=False))
            name = chance.choice(sorted(victims))
            victims[name].kill()
            counts[f"killed {name}"] += 1


def watch(
    here: LocalAirflow, out: Path, corpus: Path, until_s: float, chance: random.Random, counts: Counter[str]
) -> None:
    """Check until `until_s` that at most one stage runs; now and then add recordings or kill the running stage."""
    added_s = killed_s = time.monotonic()
    while time.monotonic() < until_s:
        assert here.process.poll() is None, "Airflow ended unexpectedly"
        running = stage_processes(out)
        assert len(running) <= 1, f"two stages at once: {running}"
        now_s = time.monotonic()
        if now_s - added_s > 90:
            added_s, counts["speakers"] = now_s, counts["speakers"] + 1
            add_recordings(corpus, f"speaker_{100 + counts['speakers']}")
        if now_s - killed_s > 45 and running and chance.random() < 0.02:
            killed_s = now_s
            disturb(out, chance, counts)
        time.sleep(0.2)


def main() -> None:
    """Run the soak test and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--restart-minutes", type=float, default=4, help="time between restarts of Airflow")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance, counts = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        config = folder / "run.yaml"
        config.write_text(SMALL)
        corpus, out, home = make_corpus(folder, config), folder / "out", folder / "home"
        end_s = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end_s:
            with serve(home, corpus, out, config, LANGUAGE_ID_SCHEDULE="* * * * *", **QUICK) as here:
                counts["starts"] += 1
                watch(here, out, corpus, min(end_s, time.monotonic() + 60 * options.restart_minutes), chance, counts)
                shut_down(here, chance, counts)
        # a schedule that starts no further run
        with serve(home, corpus, out, config, LANGUAGE_ID_SCHEDULE="0 0 1 1 *", **QUICK) as here:
            finish(here, counts)
        check_store(corpus, out, config, counts)
    print(", ".join(f"{name}: {number}" for name, number in sorted(counts.items())))
    sys.exit(counts["failed"] > 0)


def shut_down(here: LocalAirflow, chance: random.Random, counts: Counter[str]) -> None:
    """Stop Airflow with a signal, or kill all its processes as a power cut would."""
    if chance.random() < 0.3:
        counts["power cuts"] += 1
        victims = [psutil.Process(here.process.pid), *processes_of(here.home)]
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        here.process.wait()
        psutil.wait_procs(victims, timeout=DEADLINE_S)
    else:
        here.stop(chance.choice((signal.SIGTERM, signal.SIGINT)))
    assert processes_of(here.home) == []


def finish(here: LocalAirflow, counts: Counter[str]) -> None:
    """Wait for all runs to finish, and count them by state."""
    here.wait(lambda: all(run["state"] in FINISHED for run in here.runs(TRAIN)), "the end of all runs")
    for run in here.runs(TRAIN):
        counts[run["state"]] += 1


def check_store(corpus: Path, out: Path, config: Path, counts: Counter[str]) -> None:
    """Run all stages once more for the latest recordings, and compare the ledger with the corpus."""
    arguments = ("--corpus", corpus, "--out", out, "--config", config)
    for stage in ("all", "verify"):
        done = pipeline(stage, *arguments)
        assert done.returncode == 0, done.stderr
    counts["recordings"] = len(list(corpus.rglob("*.flac")))
    extracted = json.loads((out / "run.json").read_text())["stages"]["extract"]["recordings"]
    assert extracted["ok"] == counts["recordings"], extracted


if __name__ == "__main__":
    main()
