"""Handing blocks over to TensorFlow's threads: a script ends, whatever it has left unread."""

import subprocess
import sys
from pathlib import Path

import pytest

from model.data.generator import until_exit
from tests.benchmarks import stores

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from model.loader import sequence_dataset

# Python ends while a block of it is being read
unread = iter(sequence_dataset(sys.argv[1], "train", 512, seed=1).repeat())
for _ in range(50):
    next(unread)
"""


def test_a_script_that_holds_an_unread_iterator_ends(tmp_path: Path) -> None:
    output = stores.make(tmp_path / "store", 24, links=True)
    command = [sys.executable, "-c", SCRIPT, str(output.store)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr


def test_blocks_pass_until_then() -> None:
    assert list(until_exit(iter([1, 2, 3]))) == [1, 2, 3]
