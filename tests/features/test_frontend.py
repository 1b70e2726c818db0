"""A front end of another kind: chosen by `features.kind`, extracted, stored under its own dimension, and streamed."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from model.data.store_reader import Store
from model.loader import sequence_dataset
from pipeline.config import PipelineConfig, StoreConfig, load
from pipeline.errors import UsageError
from pipeline.features.audio import read
from pipeline.features.audio_source import AudioSource
from pipeline.features.frontend import FRONTENDS
from pipeline.features.mfcc import Mfcc
from tests.conftest import make_corpus, noise
from tests.support.appending import run
from tests.support.log_energy import LogEnergy


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FRONTENDS, "log_energy", LogEnergy)


def settings(*overrides: str, file: Path | None = None) -> PipelineConfig:
    return load(PipelineConfig, file, overrides)


def message(*overrides: str, file: Path | None = None) -> str:
    with pytest.raises(UsageError) as error:
        settings(*overrides, file=file)
    return str(error.value)


@pytest.mark.parametrize("kind", FRONTENDS)
def test_registered_name_and_kind_agree(kind: str) -> None:
    assert FRONTENDS[kind]().kind == kind


def test_without_a_kind_features_are_mfccs() -> None:
    assert settings().features == settings("features.kind=mfcc").features == Mfcc()
    assert PipelineConfig.model_validate({"features": {"n_mfcc": 13}}).features == Mfcc(n_mfcc=13)


@pytest.mark.parametrize(
    "overrides",
    [
        ("features.kind=log_energy", "features.n_bands=4"),
        ("features.n_bands=4", "features.kind=log_energy"),
        ("features={kind: log_energy, n_bands: 4}",),
    ],
)
def test_a_kind_has_its_own_settings_and_defaults(overrides: tuple[str, ...]) -> None:
    config = settings(*overrides)
    assert config.features == LogEnergy(n_bands=4)
    assert config.model_dump()["features"] == LogEnergy(n_bands=4).model_dump()
    assert config.config_hash != settings("features.kind=log_energy").config_hash != settings().config_hash


def test_a_kind_that_overrides_the_files_drops_the_settings_of_the_other(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("features:\n  kind: log_energy\n  n_bands: 4\n", encoding="utf-8")
    assert settings("features.n_bands=5", file=file).features == LogEnergy(n_bands=5)
    assert settings("features.kind=mfcc", file=file).features == Mfcc()


def test_an_unknown_kind_is_refused_with_those_there_are() -> None:
    allowed = "there is no such front end; allowed here: mfcc, log_energy"
    assert message("features.kind=plp") == f"features.kind = plp: {allowed}"
    assert message("features.kind=null") == f"features.kind = null: {allowed}"
    assert message("features.kind=[mfcc]") == f"features.kind = [mfcc]: {allowed}"


def test_a_key_of_another_kind_is_refused_with_those_there_are() -> None:
    expected = "there is no such key; allowed here: sample_rate_hz, window_s, hop_s, center, kind, n_bands"
    assert message("features.kind=log_energy", "features.n_mfcc=5") == f"features.n_mfcc = 5: {expected}"
    mine = "features.n_bands = 5: there is no such key; allowed here: sample_rate_hz, window_s, hop_s, center, kind, "
    assert message("features.n_bands=5").startswith(f"{mine}n_mels, ")


def test_values_of_a_kind_are_checked() -> None:
    bad = message("features.kind=log_energy", "features.n_bands=0", "features.hop_s=2")
    assert bad.startswith("features.hop_s = 2: input should be less than or equal to 1")
    assert bad.endswith("(and 1 more)")


@pytest.mark.parametrize("frontend", [Mfcc(n_mfcc=13), LogEnergy()], ids=lambda frontend: frontend.kind)
@pytest.mark.parametrize("start", [0, 255, 256, 700, 2000])
def test_a_part_and_a_stream_have_the_bits_of_the_whole(frontend: Mfcc | LogEnergy, start: int) -> None:
    samples = noise("whole", 160_000).astype(np.float32)
    whole = frontend.extract([samples])
    assert whole.values.shape == (frontend.frames(len(samples)), *frontend.dims.values())
    part = frontend.extract(np.array_split(samples, 7), start, 900)
    np.testing.assert_array_equal(part.values, whole.values[start:900])
    frames, blocks = frontend.stream(lambda: np.array_split(samples, 5), start)
    assert frames == part.recording_frames == whole.recording_frames == len(whole.values)
    np.testing.assert_array_equal(np.concatenate([whole.values[:0], *blocks]), whole.values[start:])


def test_another_front_end_is_extracted_verified_and_streamed(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", {"a": {"x": 1, "y": 2}, "b": {"x": 2}}, seconds=1.5)
    long = corpus / "a" / "y" / "1.flac"
    long.write_bytes((make_corpus(tmp_path / "long", {"a": {"z": 1}}, seconds=30) / "a/z/0.flac").read_bytes())
    config = PipelineConfig(
        features=LogEnergy(), store=StoreConfig(timesteps=10, sequences_per_chunk=16, chunks_per_shard=4)
    )
    run(corpus, tmp_path / "out", "scan", "extract", "verify", config=config)

    uri = str(tmp_path / "out" / "features.zarr")
    with xr.open_zarr(uri, chunks=None) as dataset:
        store = dataset.load()
    sequences = 4 * 15 + 300
    assert dict(store.sizes) == {"sequence": sequences, "timestep": 10, "band": 8}
    assert store["features"].dims == ("sequence", "timestep", "band")
    assert store["train_mean"].dims == store["train_std"].dims == ("band",)
    assert store["band"].to_numpy().tolist() == list(range(8))
    assert store["features"].attrs["long_name"] == "energy per band"
    assert store["band"].attrs["long_name"] == "band number"
    assert store.attrs["config"]["features"] == LogEnergy().model_dump()
    assert store["valid"].all()
    # this recording lies in several shards, so its frames were streamed
    expected = LogEnergy().extract([read(AudioSource(str(long)), 16_000)]).values
    rows = np.flatnonzero(store["start_frame"] == 2990)
    assert len(rows) == 1
    stored = store["features"].to_numpy()[rows[0] - 299 : rows[0] + 1].reshape(-1, 8)
    np.testing.assert_array_equal(stored, expected[:3000])

    batches = list(sequence_dataset(uri, "train", 32, shuffle=False))
    (_, stop), *_ = store.attrs["split_runs"]["train"]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), store["features"][:stop])
    assert Store(uri).label_counts("train").sum() == stop
