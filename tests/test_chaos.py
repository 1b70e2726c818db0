"""Commands of every stage, killed at a random change of files: the same command again ends with the same bytes."""

import random
import signal
from pathlib import Path

import pytest

from tests.chaos.forks import Forks
from tests.chaos.history import HISTORY, Place, differences, outcome

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 12))])
def test_a_command_that_is_killed_anywhere_ends_with_the_same_bytes_when_it_runs_again(
    tmp_path: Path, seed: int
) -> None:
    place, chance = Place(tmp_path / "place", speakers=4, recordings=1), random.Random(seed)
    with Forks(tmp_path) as forks:
        for step in HISTORY:
            place.prepare(step)
            arguments = (*place.arguments(step), "--executor", "serial", "--set=models.lstm=null")
            before = place.copy_out(tmp_path / "before")
            whole = forks.run(place.out, *arguments)
            assert whole.code == 0, whole.log
            if step.stage == "train" and seed == 1:  # killed by tests/model/test_train.py
                continue
            expected = outcome(place.out)
            place.restore_out(before)
            kill_at = chance.randrange(whole.changes)
            killed = forks.run(place.out, *arguments, kill_at=kill_at)
            assert (killed.code, killed.changes) == (-signal.SIGKILL, kill_at), killed.log
            again = forks.run(place.out, *arguments)
            assert (again.code, "Traceback" in again.log) == (0, False), f"{step.name}, {kill_at}: {again.log}"
            assert differences(outcome(place.out), expected) == [], f"{step.name}, killed at change {kill_at}"
