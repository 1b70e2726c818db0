"""Recordings without sound: named in the ledger, filtered on request, and the choice can be changed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import xarray as xr

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.extraction.compact import compact
from pipeline.extraction.extract import extract
from pipeline.extraction.verify import verify
from pipeline.features.mfcc import Mfcc
from pipeline.outputs import OutputFolder
from pipeline.run_record import RunFile
from pipeline.runtime.executor import SerialExecutor
from tests.conftest import make_corpus, noise
from tests.support.scans import scanned

CONFIG = PipelineConfig(
    features=Mfcc(n_mels=40, n_mfcc=13), store=StoreConfig(timesteps=10, sequences_per_chunk=4, chunks_per_shard=2)
)
SPEECH = noise("speech", 16_000)
FILES = {
    "zeros": np.zeros(16_000),
    "constant": np.full(44_100, 0.25),
    "opposite": np.stack([SPEECH, -SPEECH], axis=1),
    "offset": 0.2 + 0.3 * SPEECH,
    "one_channel": np.stack([SPEECH, 0 * SPEECH], axis=1),
}
REASONS = {
    "zeros": "silent: all of its samples are equal",
    "constant": "silent: all of its samples are equal",
    "opposite": "silent: its channels cancel each other out when their mean is taken",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_corpus(tmp_path_factory.mktemp("corpus"), {"de": {"anna": 1, "bert": 1}, "en": {"dora": 1, "emil": 1}})
    for name, samples in FILES.items():
        rate_hz = 44_100 if len(samples) == 44_100 else 16_000
        soundfile.write(root / "de" / "anna" / f"{name}.wav", samples, rate_hz, subtype="FLOAT")
    return root


def extracted(corpus: Path, out: Path, *, filter_silent: bool) -> OutputFolder:
    output = OutputFolder.at(str(out))
    manifest = scanned(corpus, output, CONFIG)
    extract(output, ManifestFile.of(manifest), CONFIG, SerialExecutor(), filter_silent=filter_silent)
    return output


def silent_rows(output: OutputFolder) -> pd.DataFrame:
    ledger = pd.read_parquet(str(output.ledger))
    rows = ledger[ledger["reason"] != ""]
    return rows.set_index(rows["recording_id"].str.extract(r"(\w+)\.wav$", expand=False))


def contents(output: OutputFolder) -> dict[str, bytes]:
    root = Path(str(output.root))
    files = [*(root / "features.zarr").rglob("*"), *(root / "shards").rglob("*"), root / "ledger.parquet"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def kept(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> OutputFolder:
    return extracted(corpus, tmp_path_factory.mktemp("kept"), filter_silent=False)


@pytest.fixture(scope="module")
def filtered(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> OutputFolder:
    return extracted(corpus, tmp_path_factory.mktemp("filtered"), filter_silent=True)


def test_recordings_without_sound_are_named_and_kept(kept: OutputFolder) -> None:
    rows = silent_rows(kept)
    assert dict(rows["reason"]) == REASONS
    assert set(rows["status"]) == {"ok"}
    assert (rows["sequences_written"] == 10).all()


def test_filtered_recordings_are_invalid_and_the_others_are_where_they_were(
    kept: OutputFolder, filtered: OutputFolder
) -> None:
    rows = silent_rows(filtered)
    assert dict(rows["reason"]) == REASONS
    assert set(rows["status"]) == {"filtered"}
    before, after = (xr.open_zarr(str(o.store), chunks=None).load() for o in (kept, filtered))
    silent = np.isin(after["recording"], pd.read_parquet(str(filtered.ledger)).index[
        pd.read_parquet(str(filtered.ledger))["status"] == "filtered"
    ])  # fmt: skip
    assert after["valid"].to_numpy().tolist() == (~silent).tolist()
    xr.testing.assert_equal(after["recording"], before["recording"])
    xr.testing.assert_equal(after["features"][~silent], before["features"][~silent])


@pytest.mark.parametrize("filter_first", [False, True])
def test_choice_can_be_changed_as_if_it_had_been_made_at_first(
    corpus: Path, tmp_path: Path, kept: OutputFolder, filtered: OutputFolder, filter_first: bool
) -> None:
    extracted(corpus, tmp_path, filter_silent=filter_first)
    output = OutputFolder.at(str(tmp_path))
    manifest = ManifestFile.at(output.manifest)
    assert extract(output, manifest, CONFIG, SerialExecutor(), filter_silent=filter_first).shards_new == 0
    assert extract(output, manifest, CONFIG, SerialExecutor(), filter_silent=not filter_first).shards_new > 0
    assert contents(output) == contents(kept if filter_first else filtered)


@pytest.mark.parametrize("filter_silent", [False, True])
def test_verification_and_compaction_keep_what_is_known_of_silence(
    corpus: Path, tmp_path: Path, filter_silent: bool
) -> None:
    output = extracted(corpus, tmp_path, filter_silent=filter_silent)
    manifest = ManifestFile.at(output.manifest)
    assert not verify(output, manifest, CONFIG, RunFile(stages={}), SerialExecutor()).damaged
    before = silent_rows(output)
    compact(output, CONFIG, "key", SerialExecutor())
    pd.testing.assert_frame_equal(silent_rows(output), before)
