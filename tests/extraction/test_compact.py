"""Compaction: a store with appends and masked recordings becomes the store of a single run."""

import shutil
from pathlib import Path

import pytest

from pipeline.config import PipelineConfig
from pipeline.errors import PipelineError, UsageError
from pipeline.extraction import compact, shard
from pipeline.outputs import OutputFolder
from pipeline.run_record import RunRecord
from tests.conftest import Killed, make_corpus
from tests.support.appending import (
    CONFIG,
    check_contract,
    each_first_step,
    features_by_place,
    killed_at_steps,
    manifest_of,
    run,
    split_of_speaker,
    write,
)  # fmt: skip
from tests.support.manifests import write_manifest
from tests.support.whole_system import store_bytes

pytestmark = pytest.mark.slow

# three speakers a language have the same splits in any order of coming
FIRST = {"de": {"anna": 2, "bert": 1, "cara": 1}, "en": {"dave": 2, "erin": 1, "fred": 1}}
LATER = {"aa": {"x": 1, "y": 1, "z": 2}, "de": {"anna": 1}}


def appended(corpus: Path, out: Path, config: PipelineConfig = CONFIG) -> None:
    """Leave a store of three appends, of which recordings are masked, short, failed, and longer than a shard."""
    make_corpus(corpus, FIRST, seconds=0.75)
    write(corpus, "de/bert/cut.flac", 1.0)
    content = (corpus / "de/bert/cut.flac").read_bytes()
    (corpus / "de/bert/cut.flac").write_bytes(content[: len(content) // 2])
    run(corpus, out, config=config)
    make_corpus(corpus, LATER, seconds=0.85, extension="wav")
    write(corpus, "en/dave/long.wav", 3.1)
    cut = write(corpus, "en/erin/short.mp3", 0.9)
    cut.write_bytes(cut.read_bytes()[:-700])
    run(corpus, out, config=config)
    write(corpus, "en/erin/late.wav", 0.5)
    (corpus / "en/dave/0.flac").unlink()
    run(corpus, out, prune=True, config=config)
    assert manifest_of(out)["append_index"].max() == 2


@pytest.mark.parametrize("mantissa_bits", [None, 7])
def test_compacted_store_is_that_of_one_run(tmp_path: Path, mantissa_bits: int | None) -> None:
    config = CONFIG.model_copy(update={"store": CONFIG.store.model_copy(update={"mantissa_bits": mantissa_bits})})
    corpus, out, one = tmp_path / "corpus", tmp_path / "out", tmp_path / "one"
    appended(corpus, out, config)
    run(corpus, one, config=config)
    assert split_of_speaker(manifest_of(one)) == split_of_speaker(manifest_of(out))
    assert store_bytes(out) != store_bytes(one)
    run(corpus, out, "compact", "verify", config=config)
    assert store_bytes(out) == store_bytes(one)
    for name in ("manifest.parquet", "ledger.parquet"):
        assert (out / name).read_bytes() == (one / name).read_bytes()
    check_contract(out)
    assert not (out / "compacted").exists()
    state = run(corpus, out, "scan", "extract", "compact", config=config)
    assert not state.changed


def test_no_recording_is_read_and_splits_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    appended(corpus, out)
    make_corpus(corpus, {"de": {"new 1": 1, "new 2": 1, "new 3": 1}}, seconds=0.6)
    run(corpus, out)
    before, held = split_of_speaker(manifest_of(out)), features_by_place(out)
    shutil.rmtree(corpus)
    run(corpus, out, "compact")
    assert split_of_speaker(manifest_of(out)) == before
    assert features_by_place(out) == held
    check_contract(out)


def test_a_changed_recording_is_taken_in_after_compaction(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    appended(corpus, out)
    write(corpus, "de/anna/0.flac", 1.6)
    run(corpus, out, prune=True)
    run(corpus, out, "compact")
    assert "de/anna/0.flac" not in set(manifest_of(out)["recording_id"])
    run(corpus, out)
    check_contract(out)
    assert sum(name == "de/anna/0.flac" for name, _ in features_by_place(out)) == 16


def test_a_store_that_is_not_extracted_or_is_damaged_is_left_as_it_is(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    appended(corpus, out)
    write(corpus, "en/erin/new.wav", 0.5)
    run(corpus, out, "scan")
    with pytest.raises(UsageError, match="run extract first"):
        run(corpus, out, "compact")
    run(corpus, out)
    damaged = out / "features.zarr" / "features" / "c" / "2" / "0" / "0"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-9] + b"!" + content[-8:])
    before = store_bytes(out)
    with pytest.raises(PipelineError, match=r"features\.zarr/features/c/2/0/0"):
        run(corpus, out, "compact")
    assert store_bytes(out) == before


def test_nothing_left_and_a_store_elsewhere_are_refused(tmp_path: Path, memory_url: str) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    appended(corpus, out)
    write_manifest(OutputFolder.at(str(out)), manifest_of(out).assign(masked="gone"))
    with pytest.raises(PipelineError, match="all recordings are masked; add recordings"):
        compact.compact(OutputFolder.at(str(out)), CONFIG, "key", None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="compact renames folders"):
        compact.compact(OutputFolder.at(memory_url), CONFIG, "key", None)  # type: ignore[arg-type]


def test_what_an_interrupted_compaction_wrote_is_kept_unless_the_store_changed_since(
    tmp_path: Path, kill_at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    appended(corpus, out)
    records = out / "compacted" / "shards"
    kill_at[0] = 80
    with pytest.raises(Killed):
        run(corpus, out, "compact")
    kill_at[0] = 10**9
    written = {path.name: path.stat().st_mtime_ns for path in records.glob("0*.json")}
    assert len(written) > 3
    moved = []
    describe = shard.describe
    monkeypatch.setattr(shard, "describe", lambda arrays, segment, timesteps: (
        moved.append(segment.recording), describe(arrays, segment, timesteps)))  # fmt: skip
    other = tmp_path / "other"
    shutil.copytree(out, other)
    run(corpus, out, "compact")
    some, moved[:] = len(moved), []
    write(corpus, "en/erin/new.wav", 0.5)
    run(corpus, other)
    moved.clear()
    run(corpus, other, "compact")
    assert some < len(moved)
    check_contract(other)
    assert {path.name for path in (out / "shards").iterdir()} > set(written)
    assert {name: (out / "shards" / name).stat().st_mtime_ns for name in written} == written


@each_first_step
def test_a_compaction_that_is_killed_at_any_write_or_move_continues_to_the_same_bytes(
    tmp_path: Path, kill_at: list[int], first: int
) -> None:
    corpus, out, expected = tmp_path / "corpus", tmp_path / "out", tmp_path / "expected"
    make_corpus(corpus, {"de": {"anna": 1}, "en": {"dave": 1}}, seconds=0.75)
    run(corpus, out)
    make_corpus(corpus, {"de": {"bert": 1}}, seconds=0.75)
    run(corpus, out, "scan", "extract", "verify")
    held = features_by_place(out)
    for there in killed_at_steps(lambda where: run(corpus, where, "compact"), out, expected, kill_at, first):
        if not (there / "compacted" / "complete").exists():
            assert features_by_place(there) == held
        if (there / "compacted" / "complete").exists():
            undisturbed = RunRecord(OutputFolder.at(str(expected))).stages
            recorded = run(corpus, there, "verify").stages
            for stage in ("extract", "compact"):
                assert recorded[stage].key == undisturbed[stage].key
            assert recorded["extract"].outputs == undisturbed["extract"].outputs
        run(corpus, there, "compact", "extract", "scan")
        assert store_bytes(there) == store_bytes(expected), there.name
        assert (there / "manifest.parquet").read_bytes() == (expected / "manifest.parquet").read_bytes()
        assert (there / "ledger.parquet").read_bytes() == (expected / "ledger.parquet").read_bytes()
        assert not (there / "compacted").exists() or not (there / "compacted" / "complete").exists()
