"""What TensorFlow and Keras are loaded with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import json, os, sys
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[: int(sys.argv[1])])
{before}
from model.tensorflow_setup import load_tensorflow
load_tensorflow()
import keras
import tensorflow as tf

tf.zeros(1)
load_tensorflow()
print(json.dumps({{
    "threads": tf.config.threading.get_intra_op_parallelism_threads(),
    "keras": [
        keras.config.backend(), keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format(),
        keras.config.max_epochs(), keras.config.max_steps_per_epoch(),
    ],
    "environment": {{name: value for name, value in os.environ.items() if name.startswith("KERAS")}},
}}))
"""


def _loaded(cores: int, before: str = "", environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The threads of an operation in a process that may use `cores` (0: TensorFlow's own choice), and Keras."""
    command = [sys.executable, "-c", PROGRAM.format(before=before), str(cores)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=900, env={**os.environ, **(environment or {})}
    )
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_keras_of_another_user_changes_nothing(tmp_path: Path) -> None:
    settings = {"backend": "torch", "floatx": "float64", "epsilon": 1e-3, "image_data_format": "channels_first"}
    file = tmp_path / ".keras" / "keras.json"
    file.parent.mkdir()
    file.write_text(json.dumps(settings))
    users = {"KERAS_BACKEND": "jax", "KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "1"}
    cores = min(2, len(os.sched_getaffinity(0)))
    found = _loaded(cores, environment={**users, "HOME": str(tmp_path)})
    assert found["keras"] == ["tensorflow", "float32", 1e-7, "channels_last", None, None]
    assert found["environment"] == users
    assert json.loads(file.read_text()) == settings
    assert found["threads"] == max(1, cores // 2)


@pytest.mark.parametrize("cores", sorted({1, len(os.sched_getaffinity(0))} - {2}))
def test_an_operation_has_half_of_the_cores(cores: int) -> None:
    assert _loaded(cores)["threads"] == max(1, cores // 2)


def test_a_tensorflow_that_runs_already_keeps_its_threads() -> None:
    assert _loaded(1, "import tensorflow; tensorflow.zeros(1)")["threads"] == 0


def test_a_keras_of_another_backend_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    from model.tensorflow_setup import load_tensorflow
    from pipeline.errors import UsageError

    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(UsageError, match=r"Keras was imported with the backend jax; set KERAS_BACKEND=tensorflow"):
        load_tensorflow()
