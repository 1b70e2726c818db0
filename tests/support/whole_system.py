"""What the tests of whole runs share: the command line in processes of its own, small corpora, output as bytes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.deadline import DEADLINE_S

SAMPLE_RATE_HZ = 16_000
# many small shards, so that there is a middle to be killed in; models that train in a blink
SMALL = (
    "--set=store.sequences_per_chunk=4",
    "--set=store.chunks_per_shard=2",
    "--set=models.ann.max_epochs=2",
    "--set=models.lstm.max_epochs=2",
    "--set=models.lstm.units=8",
)


def write_corpus(
    root: Path, languages: tuple[str, ...] = ("de", "en"), speakers: int = 3, recordings: int = 4
) -> Path:
    """Write noise of 1 to 2 s, seeded by its place, as LANGUAGE/SPEAKER/N.flac."""
    for i, language in enumerate(languages):
        for j in range(speakers):
            folder = root / language / f"{language}_speaker_{j}"
            folder.mkdir(parents=True)
            for k in range(recordings):
                random = np.random.default_rng([i, j, k])
                samples = 0.1 * random.standard_normal(random.integers(SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ))
                soundfile.write(folder / f"{k}.flac", samples, SAMPLE_RATE_HZ)
    return root


def command(*arguments: str | Path) -> list[str]:
    """Return the command line of a run, without the dashboard's fixed port."""
    return [sys.executable, "-m", "pipeline.run", *map(str, arguments)]


def run(*arguments: str | Path, timeout_s: float = DEADLINE_S) -> subprocess.CompletedProcess[str]:
    """Run to the end; the log is in `stderr`."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False)


def run_until(
    condition: Callable[[str], bool],
    send: signal.Signals,
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run until `condition` holds of the log so far, then send a signal as a terminal or the kernel would.

    Ctrl-C goes to every process of the command, SIGKILL to the driver alone.
    """
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, env=environment
    )
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    log, deadline_s = "", time.monotonic() + DEADLINE_S
    while not condition(log) and process.poll() is None:
        assert time.monotonic() < deadline_s, f"never came to it:\n{log}"
        log += (process.stderr.read() or b"").decode()
        time.sleep(0.005)
    assert process.poll() is None, f"ended before it:\n{log}"
    if send == signal.SIGINT:
        os.killpg(process.pid, send)
    else:
        process.send_signal(send)
    os.set_blocking(process.stderr.fileno(), True)
    log += process.communicate(timeout=DEADLINE_S)[1].decode()
    return subprocess.CompletedProcess(process.args, process.returncode, "", log)


def in_namespace(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a mount namespace of its own, where it may mount; skip where the kernel refuses."""
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this machine lets no user make a mount namespace")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, arguments)],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip


def store_bytes(out: Path) -> dict[str, bytes]:
    """Return every file of the store by its path, with the shards' records."""
    folders = (out / "features.zarr", out / "shards")
    return {str(p.relative_to(out)): p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}


def finished_shards(out: Path) -> int:
    """Return how many shards are marked finished."""
    return len(list((out / "shards").glob("*.json")))
