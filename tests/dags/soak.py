"""An hour of a run a minute, with recordings that come, tasks that are killed and Airflow started anew in between.

`make dags-soak` ends with 0 if no two stages ever ran at once on the output folder, every scheduled run came to its
end, and the store holds every recording, as its checksums say.
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
    QUICK,
    SMALL,
    LocalAirflow,
    add_recordings,
    drivers,
    make_corpus,
    pipeline,
    processes_of,
    serve,
)  # fmt: skip

TRAIN = "language_id_train"


def disturb(out: Path, chance: random.Random, counts: Counter[str]) -> None:
    """Kill a stage, its task's process, or that one's worker, at random."""
    with suppress(psutil.NoSuchProcess):
        for driver in drivers(out):
            workers = [parent for parent in driver.parents() if "airflow worker" in " ".join(parent.cmdline())]
            victims = dict(zip(("command", "task", "worker"), [driver, *workers], strict=False))
            what = chance.choice(sorted(victims))
            victims[what].kill()
            counts[f"killed: {what}"] += 1


def spell(
    here: LocalAirflow, out: Path, corpus: Path, until_s: float, chance: random.Random, counts: Counter[str]
) -> None:
    """Watch until a time; let recordings come and kill what runs, now and then."""
    came_s = killed_s = time.monotonic()
    while time.monotonic() < until_s:
        assert here.process.poll() is None, "Airflow ended by itself"
        running = drivers(out)
        assert len(running) <= 1, f"two at once: {running}"
        now_s = time.monotonic()
        if now_s - came_s > 90:
            came_s, counts["speakers"] = now_s, counts["speakers"] + 1
            add_recordings(corpus, f"speaker_{100 + counts['speakers']}")
        if now_s - killed_s > 45 and running and chance.random() < 0.02:
            killed_s = now_s
            disturb(out, chance, counts)
        time.sleep(0.2)


def main() -> None:
    """Run, and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--restart-minutes", type=float, default=4, help="between two restarts")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    chance, counts = random.Random(given.seed), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        config = folder / "run.yaml"
        config.write_text(SMALL)
        corpus, out, home = make_corpus(folder, config), folder / "out", folder / "home"
        end_s = time.monotonic() + 60 * given.minutes
        while time.monotonic() < end_s:
            with serve(home, corpus, out, config, LANGUAGE_ID_SCHEDULE="* * * * *", **QUICK) as here:
                counts["starts"] += 1
                spell(here, out, corpus, min(end_s, time.monotonic() + 60 * given.restart_minutes), chance, counts)
                end(here, chance, counts)
        with serve(home, corpus, out, config, LANGUAGE_ID_SCHEDULE="0 0 1 1 *", **QUICK) as here:  # no further run
            finish(here, counts)
        check_store(corpus, out, config, counts)
    print(", ".join(f"{what}: {number}" for what, number in sorted(counts.items())))
    sys.exit(counts["failed"] > 0)


def end(here: LocalAirflow, chance: random.Random, counts: Counter[str]) -> None:
    """Stop Airflow as a person would, or as a power cut would."""
    if chance.random() < 0.3:
        counts["power cuts"] += 1
        victims = [psutil.Process(here.process.pid), *processes_of(here.home)]
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        here.process.wait()
        psutil.wait_procs(victims, timeout=10)
    else:
        here.stop(chance.choice((signal.SIGTERM, signal.SIGINT)))
    assert processes_of(here.home) == []


def finish(here: LocalAirflow, counts: Counter[str]) -> None:
    """Wait for the runs that have begun, and count runs by their state."""
    ended = ("success", "failed")
    here.wait(lambda: all(run["state"] in ended for run in here.runs(TRAIN)), "the end of all runs", 900)
    for run in here.runs(TRAIN):
        counts[run["state"]] += 1


def check_store(corpus: Path, out: Path, config: Path, counts: Counter[str]) -> None:
    """Run once by hand, so that the last recordings are in, and compare the ledger with the corpus."""
    place = ("--corpus", corpus, "--out", out, "--config", config)
    for stage in ("all", "verify"):
        done = pipeline(stage, *place)
        assert done.returncode == 0, done.stderr
    counts["recordings"] = len(list(corpus.rglob("*.flac")))
    ledger = json.loads((out / "run.json").read_text())["stages"]["extract"]["recordings"]
    assert ledger["ok"] == counts["recordings"], ledger


if __name__ == "__main__":
    main()
