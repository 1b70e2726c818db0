"""Shards that need more memory than there is: refused by arithmetic, before a store is begun."""

from pathlib import Path

import pytest

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.errors import PipelineError
from pipeline.runtime import executor
from tests.conftest import make_corpus
from tests.support.appending import CONFIG, run

REFUSED = (
    r"^a shard of \d+ sequences needs up to \d+ MiB of memory, but the workers have \d+ MiB; "
    r"make store\.chunks_per_shard or store\.sequences_per_chunk smaller, or give the workers more memory$"
)


@pytest.fixture(name="corpus")
def corpus_fixture(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus", {"a": {"x": 1}, "b": {"y": 1}}, seconds=0.5)


@pytest.mark.parametrize(("sequences", "chunks"), [(10**9, 1), (1, 10**9), (10**9, 10**9)])
def test_a_shard_larger_than_the_machine_is_refused(corpus: Path, tmp_path: Path, sequences: int, chunks: int) -> None:
    out, store = tmp_path / "out", StoreConfig(sequences_per_chunk=sequences, chunks_per_shard=chunks)
    with pytest.raises(PipelineError, match=REFUSED):
        run(corpus, out, config=PipelineConfig(store=store))
    assert not (out / "features.zarr").exists()


def test_the_memory_of_a_container_is_the_limit(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no_limit").write_text("max\n")
    monkeypatch.setattr(executor, "CGROUP_LIMITS", (tmp_path / "missing", tmp_path / "no_limit"))
    run(corpus, tmp_path / "out", config=CONFIG)
    (tmp_path / "limit").write_text(f"{100 * 2**20}\n")
    monkeypatch.setattr(executor, "CGROUP_LIMITS", (tmp_path / "no_limit", tmp_path / "limit"))
    with pytest.raises(PipelineError, match="but the workers have 100 MiB"):
        run(corpus, tmp_path / "other", config=CONFIG)
