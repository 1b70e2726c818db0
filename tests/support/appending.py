"""What the tests of growing corpora share: stages run in this process, and checks of what they leave."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import xarray as xr

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.features.mfcc import Mfcc
from pipeline.outputs import OutputFolder
from pipeline.run_config import RunConfig
from pipeline.run_context import LazyExecutor, Run
from pipeline.run_record import ExtractRecord, RunRecord
from pipeline.runtime.executor import SerialExecutor
from pipeline.schema import SPLITS
from pipeline.stages import execute, finish_compaction
from tests.conftest import Killed, noise

CONFIG = PipelineConfig(
    features=Mfcc(n_mfcc=13), store=StoreConfig(timesteps=10, sequences_per_chunk=4, chunks_per_shard=2)
)
SHARD = CONFIG.store.sequences_per_shard


def write(corpus: Path, name: str, seconds: float) -> Path:
    """Write a recording of noise that depends on its name."""
    path = corpus / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(name, round(seconds * 16_000)), 16_000)
    return path


def run(
    corpus: Path, out: Path, *stages: str, prune: bool = False, repair: bool = False, config: PipelineConfig = CONFIG
) -> RunRecord:
    """Run stages, scan and extract where none is named; return the state of the output folder."""
    out.mkdir(exist_ok=True)
    output = OutputFolder.at(str(out))
    if output.compacted.complete.exists():
        finish_compaction(output, RunRecord(output))
    state = RunRecord(output)
    settings = RunConfig.model_validate(config.model_dump())
    execute(
        Run(output, settings, state, LazyExecutor(SerialExecutor), str(corpus), prune=prune, repair=repair),
        list(stages or ("scan", "extract")),
    )
    return state


def extracted(record: RunRecord) -> ExtractRecord:
    """The record of the last extraction."""
    found = record.stages["extract"]
    assert isinstance(found, ExtractRecord)
    return found


STRIDE = 6
"""See `killed_at_steps`."""
each_first_step = pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.long) for first in range(1, STRIDE))]
)


def killed_at_steps(
    work: Callable[[Path], object], out: Path, expected: Path, kill_at: list[int], first: int
) -> Iterator[Path]:
    """Yield copies of `out` in which `work` was killed: at the write or move `first`, and at every STRIDE-th after it.

    `expected` becomes a copy in which it was not.
    """
    shutil.copytree(out, expected)
    before = kill_at[0]
    work(expected)
    steps = before - kill_at[0]
    assert steps > 30
    for number in range(first, steps, STRIDE):
        there = out.with_name(f"killed {number}")
        shutil.copytree(out, there)
        kill_at[0] = number
        with pytest.raises(Killed):
            work(there)
        kill_at[0] = 10**9
        yield there
        shutil.rmtree(there)


def manifest_of(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "manifest.parquet")


def ledger_of(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "ledger.parquet").set_index("recording_id")


def split_of_speaker(table: pd.DataFrame) -> dict[str, str]:
    named = table[table["speaker"].notna()]
    return dict(zip(named["speaker"], named["split"], strict=True))


def store_of(out: Path) -> xr.Dataset:
    with xr.open_zarr(out / "features.zarr", chunks=None) as store:
        return store.load()


def features_by_place(out: Path) -> dict[tuple[str, int], bytes]:
    """Return the valid sequences: {(recording_id, start_frame): features}."""
    names = manifest_of(out)["recording_id"]
    store = store_of(out)
    rows = np.flatnonzero(store["valid"])
    places = zip(names.iloc[store["recording"][rows]], store["start_frame"][rows].to_numpy().tolist(), strict=True)
    found = dict(zip(places, [block.tobytes() for block in store["features"].to_numpy()[rows]], strict=True))
    assert len(found) == len(rows)
    return found


def check_contract(out: Path) -> None:
    """Check that manifest, ledger and store agree, from what is stored alone."""
    table, ledger = manifest_of(out), ledger_of(out)
    store = store_of(out)
    assert ledger.index.tolist() == table["recording_id"].tolist()
    assert table["recording_id"].is_unique
    assert (ledger["reason"][ledger["status"] != "ok"].str.len() > 0).all()
    rows = store["recording"].to_numpy()
    # a recording that was read again keeps its row, its sequences are those of an append
    placed = table[table["sequences"] > 0].sort_values("first_sequence")
    np.testing.assert_array_equal(rows, np.repeat(placed.index, placed["sequences"]))
    np.testing.assert_array_equal(
        store["start_frame"], np.concatenate([np.arange(n) for n in placed["sequences"]]) * store.sizes["timestep"]
    )
    np.testing.assert_array_equal(placed["first_sequence"], placed["sequences"].cumsum() - placed["sequences"])
    for name in ("label", "split"):
        meaning = np.array(store[name].attrs["flag_meanings"].split())
        np.testing.assert_array_equal(meaning[store[name]], table[name].to_numpy(object)[rows])
    covered = np.full(len(rows), -1)
    for split, runs in store.attrs["split_runs"].items():
        for start, stop in runs:
            assert start < stop
            assert (covered[start:stop] == -1).all()
            covered[start:stop] = SPLITS.index(split)
    np.testing.assert_array_equal(covered, store["split"])
    valid = store["valid"].to_numpy()
    written = np.bincount(rows, weights=valid, minlength=len(table))
    np.testing.assert_array_equal(ledger["sequences_written"], written)
    np.testing.assert_array_equal(np.isnan(store["features"]).any(("timestep", "mfcc")), ~valid)
    _check_statistics(store, valid)


def _check_statistics(store: xr.Dataset, valid: np.ndarray) -> None:
    training = store["features"].to_numpy()[valid & (store["split"].to_numpy() == 0)]
    frames = training.reshape(-1, store.sizes["mfcc"]).astype(np.float64)
    assert int(store["train_count"]) == len(frames)
    np.testing.assert_allclose(store["train_mean"], frames.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(store["train_std"], frames.std(axis=0), rtol=1e-6, atol=1e-6)
