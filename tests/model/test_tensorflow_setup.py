"""What TensorFlow is loaded with."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import os, sys
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[: int(sys.argv[1])])
{before}
from model.tensorflow_setup import load_tensorflow
load_tensorflow()
import tensorflow as tf

tf.zeros(1)
load_tensorflow()
print(tf.config.threading.get_intra_op_parallelism_threads())
"""


def _threads(cores: int, before: str = "") -> int:
    """The threads of an operation in a process that may use `cores`; 0 is TensorFlow's own choice."""
    command = [sys.executable, "-c", PROGRAM.format(before=before), str(cores)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=900).stdout)


@pytest.mark.parametrize("cores", sorted({1, min(2, len(os.sched_getaffinity(0))), len(os.sched_getaffinity(0))}))
def test_an_operation_has_half_of_the_cores(cores: int) -> None:
    assert _threads(cores) == max(1, cores // 2)


def test_a_tensorflow_that_runs_already_keeps_its_threads() -> None:
    assert _threads(1, "import tensorflow; tensorflow.zeros(1)") == 0
