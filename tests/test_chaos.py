"""Commands of every stage, killed at a random change of files: the same command again ends with the same bytes."""

import random
import signal
from pathlib import Path

import pytest

from tests.chaos.forks import Forks
from tests.chaos.history import HISTORY, Place, Step, differences, outcome

pytestmark = pytest.mark.slow


# training and what needs a trained model take TensorFlow, whose import takes seconds
SHORT = tuple(step for step in HISTORY if step.stage in ("scan", "extract", "compact", "report"))


@pytest.mark.parametrize(
    ("seed", "steps"), [(0, SHORT), *(pytest.param(seed, HISTORY, marks=pytest.mark.long) for seed in range(1, 6))]
)
def test_a_command_that_is_killed_anywhere_ends_with_the_same_bytes_when_it_runs_again(
    tmp_path: Path, seed: int, steps: tuple[Step, ...]
) -> None:
    place, chance = Place(tmp_path / "place", speakers=4, recordings=1), random.Random(seed)
    with Forks(tmp_path, trains=steps == HISTORY) as forks:
        for step in steps:
            place.prepare(step)
            arguments = (*place.arguments(step), "--executor", "serial", "--set=models.lstm=null")
            before = place.copy_out(tmp_path / "before")
            whole = forks.run(place.out, *arguments)
            assert whole.code == 0, whole.log
            expected = outcome(place.out)
            place.restore_out(before)
            kill_at = chance.randrange(whole.changes)
            killed = forks.run(place.out, *arguments, kill_at=kill_at)
            assert (killed.code, killed.changes) == (-signal.SIGKILL, kill_at), killed.log
            again = forks.run(place.out, *arguments)
            assert (again.code, "Traceback" in again.log) == (0, False), f"{step.name}, {kill_at}: {again.log}"
            assert differences(outcome(place.out), expected) == [], f"{step.name}, killed at change {kill_at}"
