"""Configuration: what is read, what is refused and in which words, and the hash of what a store depends on."""

from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import PipelineConfig, SplitConfig, StoreConfig, load
from pipeline.errors import UsageError
from pipeline.features.mfcc import Mfcc

DEFAULT = PipelineConfig()


def read(*overrides: str) -> PipelineConfig:
    return load(PipelineConfig, None, overrides)


def written(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults_are_the_contract() -> None:
    features = DEFAULT.features
    assert (features.sample_rate_hz, features.n_fft, features.hop_length) == (16_000, 400, 160)
    assert (features.n_mels, features.n_mfcc, features.top_db, features.center) == (128, 40, 80.0, True)
    assert (DEFAULT.split.train, DEFAULT.split.validation, DEFAULT.split.test) == (0.70, 0.15, 0.15)
    assert DEFAULT.store.timesteps == 20


def test_nothing_given_is_the_default() -> None:
    assert read() == DEFAULT


def test_override_beats_file_beats_default(tmp_path: Path) -> None:
    file = written(tmp_path, "seed: 5\nfeatures:\n  n_mfcc: 13\n  n_mels: 26\n")
    config = load(PipelineConfig, file, ["features.n_mfcc=20", "store.timesteps=7"])
    assert (config.seed, config.features.n_mels, config.features.n_mfcc, config.store.timesteps) == (5, 26, 20, 7)
    assert config.features.window_s == DEFAULT.features.window_s


def test_last_override_wins() -> None:
    assert read("seed=5", "seed=6").seed == 6


@pytest.mark.parametrize("text", ["", "# nothing\n", "features: {}\n", "features:\nstore:\n  # timesteps: 7\n"])
def test_file_without_settings_is_the_default(tmp_path: Path, text: str) -> None:
    assert load(PipelineConfig, written(tmp_path, text), []) == DEFAULT


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("features.fmax_hz=7600", 7600.0),
        ("features.fmax_hz=null", None),
        ("features.top_db=null", None),
        ("features.center=false", False),
        ("features.window_s=0.05", 0.05),
        ("features={n_mfcc: 13}", 13),
    ],
)
def test_values_of_set_are_yaml(override: str, value: object) -> None:
    features = read(override).features
    assert value in [features.fmax_hz, features.top_db, features.center, features.window_s, features.n_mfcc]
    assert features != DEFAULT.features or value is None


def test_the_last_set_of_a_key_counts() -> None:
    assert read("features.n_mfcc=13", "features.n_mfcc=20").features.n_mfcc == 20


settings_of = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "features.n_mels": st.integers(40, 512),
        "features.n_mfcc": st.integers(1, 40),
        "features.top_db": st.one_of(st.none(), st.floats(1, 200)),
        "features.center": st.booleans(),
        "features.hop_s": st.integers(16, 16_000).map(lambda samples: samples / 16_000),
        "store.timesteps": st.integers(1, 10_000),
        "store.chunks_per_shard": st.integers(1, 10**6),
    },
)


def at(config: PipelineConfig, key: str) -> object:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


@given(settings_of)
def test_every_setting_arrives_by_set_as_it_was_written(settings: dict[str, object]) -> None:
    config = read(*[f"{key}={yaml.safe_dump(value).splitlines()[0]}" for key, value in settings.items()])
    for key in ["seed", "features.n_mels", "features.top_db", "features.center", "features.hop_s", "store.timesteps"]:
        assert at(config, key) == settings.get(key, at(DEFAULT, key))


@pytest.mark.parametrize("override", ["seed", "", "=1", "features.n_mfcc"])
def test_set_without_a_value_says_how_to_write_it(override: str) -> None:
    with pytest.raises(UsageError) as error:
        read(override)
    assert str(error.value) == (f"--set {override}: write it as key.sub=value, for example --set features.n_mfcc=20")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed={x", "is not YAML: while parsing a flow mapping, expected ',' or '}', but got '<stream end>' (line 1"),
        ("seed=2020-13-45", "is not YAML: month must be in 1..12"),
        ("seed=0b_", "is not YAML: invalid literal for int() with base 2: ''"),
        ("seed=" + "[" * 1_000, "is not YAML of settings: it is nested too deeply"),
        ("features={n_mfcc: 20, n_mfcc: 30}", "has the key n_mfcc twice, in line 1; keep one"),
    ],
)
def test_set_with_a_value_that_is_not_yaml_says_so(override: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        read(override)
    assert str(error.value).startswith(f"--set {override}: the value {reason}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sede=5", "sede = 5: there is no such key; allowed here: seed, features, split, store"),
        (
            "store.x=a",
            "store.x = a: there is no such key; allowed here: timesteps, sequences_per_chunk, chunks_per_",
        ),
        ("split.dev=0.1", "split.dev = 0.1: there is no such key; allowed here: train, validation, test"),
        ("features.n-mfcc=5", "features.n-mfcc = 5: there is no such key; allowed here: sample_rate_hz, window_s, "),
    ],
)
def test_unknown_key_is_named_with_its_value_and_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        read(override)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("seed=-1", "seed = -1: input should be greater than or equal to 0"),
        ("seed=x", "seed = x: expected a whole number"),
        ("seed=1.5", "seed = 1.5: expected a whole number"),
        ("seed=1e3", "seed = 1e3: expected a whole number"),
        ("seed=", "seed = null: expected a whole number"),
        ("seed=true", "seed = true: expected a whole number"),
        ("seed=2020-01-01", "seed = 2020-01-01: expected a whole number"),
        ("seed={x: 1}", "seed: expected a whole number"),
        ("seed='a\nb'", "seed = a b: expected a whole number"),
        (f"seed={'x' * 200}", f"seed = {'x' * 100}…: expected a whole number"),
        ("features=3", "features = 3: expected keys with values below it"),
        ("split=[1, 2]", "split = [1, 2]: expected keys with values below it"),
        ("features.n_mfcc=yes", "features.n_mfcc = true: expected a whole number"),
        ("features.fmin_hz=no", "features.fmin_hz = false: expected a number"),
        ("features.top_db=on", "features.top_db = true: expected a number"),
        ("split.train=true", "split.train = true: expected a number"),
        ("store.mantissa_bits=true", "store.mantissa_bits = true: expected a whole number"),
        ("features.center=maybe", "features.center = maybe: expected true or false"),
        ("features.hop_s=.nan", "features.hop_s = .nan: expected a finite number"),
        ("features.hop_s=-.inf", "features.hop_s = -.inf: expected a finite number"),
        ("features.window_s=.inf", "features.window_s = .inf: expected a finite number"),
        ("features.top_db=.inf", "features.top_db = .inf: expected a finite number, or null for none"),
        ("features.top_db=1e999", "features.top_db = 1e999: expected a finite number, or null for none"),
        ("features.sample_rate_hz=200000", "features.sample_rate_hz = 200000: input should be less than or equal"),
        ("features.n_mfcc=129", "features: n_mfcc 129 must not be larger than n_mels 128"),
        ("features.window_s=0.00001", "features: window_s must hold at least 2 samples and hop_s at least 1"),
        ("features.fmax_hz=8001", "features: fmax_hz 8001.0 must lie between fmin_hz and half of sample_rate_hz"),
        ("features.fmin_hz=8000", "features: fmin_hz 8000.0 must lie below half of sample_rate_hz"),
        ("features.fmin_hz=.inf", "features.fmin_hz = .inf: expected a finite number"),
        ("store.chunks_per_shard=10000000000", "store.chunks_per_shard = 10000000000: input should be less than or"),
        ("split.test=0.5", "split: train, validation and test must sum to 1 with train above 0; they sum to 1.35"),
        ("store.timesteps=0", "store.timesteps = 0: input should be greater than or equal to 1"),
    ],
)
def test_bad_value_is_named_with_its_key_and_what_is_allowed(override: str, start: str) -> None:
    with pytest.raises(UsageError) as error:
        read(override)
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)


def test_training_without_a_share_is_refused() -> None:
    with pytest.raises(UsageError, match="with train above 0"):
        read("split.train=0", "split.validation=0.5", "split.test=0.5")


def test_several_errors_are_counted() -> None:
    with pytest.raises(UsageError) as error:
        read("sede=5", "seed=-1", "store.timesteps=0")
    assert str(error.value).endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "is not YAML: mapping values are not allowed here"),
        ("a: [", "is not YAML"),
        ("seed: 1\n---\nseed: 2\n", "expected a single document in the stream, but found another document (line 2"),
        ("- seed", "expected keys and values at the top, not [seed]"),
        ("seed", "expected keys and values at the top, not seed"),
        (
            "features:\n  n_mfcc: 9\nfeatures:\n  n_mels: 64\n",
            "has the key features twice, in lines 1 and 3; keep one",
        ),
        ("features:\n  n_mfcc: 20\n  n_mfcc: 20\n", "has the key n_mfcc twice, in lines 2 and 3; keep one"),
        ('seed: 1\n"seed": 1\n', "has the key seed twice, in lines 1 and 2; keep one"),
        ("{features: {n_mfcc: 20, n_mfcc: 13}}", "has the key n_mfcc twice, in line 1; keep one"),
    ],
)
def test_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UsageError) as error:
        load(PipelineConfig, file, [])
    assert str(error.value).startswith(f"--config {file}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_that_a_merge_brings_in_may_be_overridden(tmp_path: Path) -> None:
    text = "split: &all {train: 0.5, validation: 0.25, test: 0.25}\nstore: {<<: {timesteps: 5}, timesteps: 7}\n"
    config = load(PipelineConfig, written(tmp_path, text), [])
    assert (config.split.train, config.store.timesteps) == (0.5, 7)


def test_an_empty_section_takes_nothing_back() -> None:
    assert read("store.timesteps=7", "store=").store.timesteps == 7


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load(PipelineConfig, tmp_path / "none.yaml", [])
    assert str(error.value) == f"--config {tmp_path / 'none.yaml'}: No such file or directory"


def test_file_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(UsageError, match=r"run\.yaml is not YAML"):
        load(PipelineConfig, tmp_path / "run.yaml", [])


def test_keys_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a key must be text; put it in quotes"):
        load(PipelineConfig, written(tmp_path, "1: 2\nyes: 3\n"), [])


@pytest.mark.parametrize("model", [DEFAULT, DEFAULT.features, DEFAULT.split, DEFAULT.store])
def test_configuration_is_frozen_and_hashable(model: pydantic.BaseModel) -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(model, next(iter(type(model).model_fields)), 1)
    assert hash(model) == hash(type(model)())


@given(st.integers(1000, 192_000), st.floats(0.002, 1), st.floats(0.001, 1))
def test_a_window_is_rounded_to_samples_and_a_hop_must_be_whole(rate: int, window_s: float, hop_s: float) -> None:
    hop_length = max(1, round(hop_s * rate))
    config = Mfcc(sample_rate_hz=rate, window_s=window_s, hop_s=hop_length / rate, n_mels=8, n_mfcc=8)
    assert abs(config.n_fft - window_s * rate) <= 0.5
    assert config.hop_length == hop_length


def test_a_hop_between_two_samples_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as error:
        read("features.sample_rate_hz=22050")
    assert "hop_s 0.01 is not a whole number of samples; the nearest is 0.00997732426" in str(error.value)


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (1, 1), (159, 1), (160, 2), (16_000, 101)])
def test_centred_frames_are_one_a_hop_and_one_more(samples: int, frames: int) -> None:
    assert Mfcc().frames(samples) == frames


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2)])
def test_frames_that_are_not_centred_lie_within_the_samples(samples: int, frames: int) -> None:
    assert Mfcc(center=False).frames(samples) == frames


def test_shard_is_chunks_times_sequences() -> None:
    assert StoreConfig(sequences_per_chunk=3, chunks_per_shard=5).sequences_per_shard == 15


def test_hash_is_the_same_on_every_machine() -> None:
    assert DEFAULT.config_hash == "93c952cb31473cc6"


OTHER_VALUES = [
    "seed=2", "features.sample_rate_hz=8000", "features.window_s=0.03", "features.hop_s=0.02", "features.n_mels=64",
    "features.n_mfcc=13", "features.fmin_hz=20", "features.fmax_hz=7600", "features.top_db=60",
    "features.center=false",
    "split={train: 0.6, validation: 0.25}", "split={train: 0.6, test: 0.25}", "split={validation: 0.1, test: 0.2}",
    "store.timesteps=10", "store.sequences_per_chunk=128", "store.chunks_per_shard=8", "store.mantissa_bits=10",
    "store.mantissa_bits=23",
]  # fmt: skip


def test_hash_changes_with_every_setting() -> None:
    hashes = {read(override).config_hash for override in OTHER_VALUES}
    assert len(hashes | {DEFAULT.config_hash}) == len(OTHER_VALUES) + 1
    named = " ".join(OTHER_VALUES)
    for section in (Mfcc, SplitConfig, StoreConfig):
        assert all(key in named for key in section.model_fields.keys() - {"kind"})


@pytest.mark.parametrize("override", ["features.window_s=25e-3", "features.top_db=80", "seed=1", "split.train=0.7"])
def test_hash_does_not_depend_on_how_a_value_is_written(override: str) -> None:
    assert read(override).config_hash == DEFAULT.config_hash


def test_hash_leaves_out_what_is_added_to_the_pipeline() -> None:
    class More(PipelineConfig):
        extra: int = 0

    assert More(extra=1).config_hash == More(extra=2).config_hash == DEFAULT.config_hash
