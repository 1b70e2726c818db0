"""A further variable over `sequence` is one row of the schema and the line that computes it."""

from pathlib import Path

import numpy as np
import pytest

from model.data.store_reader import Store
from pipeline import schema
from pipeline.errors import UsageError
from pipeline.extraction import shard
from pipeline.schema import SEQUENCE_VARIABLES, Variable
from tests.conftest import Killed, make_corpus
from tests.support.appending import check_contract, manifest_of, run, store_of
from tests.support.whole_system import store_bytes

LOUDNESS = Variable("loudness", "float32", ("sequence",), float("nan"), "mean level", units="dB", computed=True)
PLACE = Variable("place", "uint16", ("sequence",), 9, "first row of the recording within the shard")


@pytest.fixture
def more_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "SEQUENCE_VARIABLES", (*SEQUENCE_VARIABLES, LOUDNESS, PLACE))
    monkeypatch.setitem(shard.COMPUTED, "loudness", lambda features: features[:, :, 0].mean(axis=1))
    monkeypatch.setitem(shard.PLANNED, "place", lambda segment, _: segment.place)


def check_variables(out: Path) -> None:
    store = store_of(out)
    np.testing.assert_array_equal(store["loudness"], store["features"].to_numpy()[:, :, 0].mean(axis=1))
    assert (np.isnan(store["loudness"]) == ~store["valid"]).all()
    assert store["place"].max() > 0
    assert store["loudness"].attrs == {"long_name": "mean level", "units": "dB"}


def test_every_variable_has_the_line_that_computes_it() -> None:
    assert set(shard.COMPUTED) == {variable.name for variable in SEQUENCE_VARIABLES if variable.computed}
    assert set(shard.PLANNED) == {variable.name for variable in SEQUENCE_VARIABLES if not variable.computed}


@pytest.mark.usefixtures("more_variables")
def test_further_variables_survive_an_append_a_killed_rewrite_and_compaction(
    tmp_path: Path, kill_at: list[int]
) -> None:
    corpus, out, one = tmp_path / "corpus", tmp_path / "out", tmp_path / "one"
    make_corpus(
        corpus, {"de": {"anna": 2, "bert": 1, "cara": 1}, "en": {"dave": 2, "erin": 1, "fred": 1}}, seconds=0.75
    )
    run(corpus, out)
    check_variables(out)
    held = store_of(out)["loudness"].to_numpy()
    make_corpus(corpus, {"aa": {"x": 1, "y": 1, "z": 1}}, seconds=0.85)
    (corpus / "en/dave/0.flac").unlink()
    run(corpus, out, "scan", prune=True)
    kill_at[0] = 8  # while the shard of the pruned recording is rewritten
    with pytest.raises(Killed):
        run(corpus, out, "extract")
    kill_at[0] = 10**9
    assert not (store_of(out)["valid"] & np.isnan(store_of(out)["loudness"])).any()
    run(corpus, out, "extract", "verify")
    check_contract(out)
    check_variables(out)
    now = store_of(out)["loudness"].to_numpy()[: len(held)]
    masked = ~store_of(out)["valid"].to_numpy()[: len(held)]
    assert 0 < masked.sum() < len(held)
    np.testing.assert_array_equal(now, np.where(masked, np.nan, held))
    run(corpus, out, "compact", "verify")
    check_variables(out)
    run(corpus, one)
    assert store_bytes(out) == store_bytes(one)


@pytest.mark.usefixtures("more_variables")
def test_the_loader_gives_further_variables_that_it_is_asked_for(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    make_corpus(corpus, {"de": {"anna": 2}, "en": {"dave": 2}}, seconds=0.75)
    run(corpus, out)
    (block,) = Store(str(out / "features.zarr"), extra=("loudness",)).shuffled_blocks("train", seed=1, epoch=0)
    assert len(block) == manifest_of(out)["sequences"].sum()
    np.testing.assert_array_equal(block.extra["loudness"], block.features[:, :, 0].mean(axis=1))
    with pytest.raises(UsageError, match=r"has no variable volume over sequence; it has label, loudness, place, rec"):
        Store(str(out / "features.zarr"), extra=("volume",))
