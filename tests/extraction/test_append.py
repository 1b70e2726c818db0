"""Corpora that grow, shrink and change after a store was begun."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PipelineConfig
from pipeline.corpus import header_task
from pipeline.corpus.manifest import as_codes, label_names
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.manifest_summary import split_runs
from pipeline.errors import PipelineError, UsageError
from pipeline.extraction import recording_reader
from pipeline.extraction.plan import Plan
from pipeline.features import audio
from pipeline.outputs import OutputFolder
from pipeline.run_record import RunRecord
from pipeline.schema import SPLITS
from tests.conftest import Killed, make_corpus, make_manifest, make_probe
from tests.support.appending import (
    CONFIG,
    SHARD,
    check_contract,
    each_first_step,
    extracted,
    features_by_place,
    killed_at_steps,
    ledger_of,
    manifest_of,
    run,
    split_of_speaker,
    write,
)  # fmt: skip
from tests.support.manifests import extends, manifest_digest, plan_of
from tests.support.scans import build_manifest, compacted_manifest, probed
from tests.support.whole_system import store_bytes

pytestmark = pytest.mark.slow

FIRST = {"de": {"anna": 2, "bert": 2, "cara": 1}, "en": {"dave": 2, "erin": 1, "": 2}}
LATER = {"de": {"anna": 1, "dora": 2}, "aa": {"x": 1, "y": 1, "z": 1}}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Recordings of 7 sequences each."""
    return make_corpus(tmp_path / "corpus", FIRST, seconds=0.75)


@pytest.fixture
def out(corpus: Path, tmp_path: Path) -> Path:
    """What a run on the corpus left; its last shard is not full."""
    run(corpus, tmp_path / "out")
    assert manifest_of(tmp_path / "out")["sequences"].sum() % SHARD
    return tmp_path / "out"


def extend(corpus: Path) -> None:
    make_corpus(corpus, LATER, seconds=0.85, extension="wav")


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every object and record of every shard: a file that is replaced has others."""
    arrays = [*out.glob("features.zarr/features/c/*/0/0"), *out.glob("features.zarr/[lrsv]*/c/*")]
    paths = [*arrays, *out.glob("shards/[0-9]*")]
    return {str(p.relative_to(out)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in paths}


def of_shard(path: str) -> int:
    parts = Path(path).parts
    return int(Path(parts[1]).stem if parts[0] == "shards" else parts[3])


def test_new_recordings_are_appended_and_full_shards_are_not_touched(corpus: Path, out: Path) -> None:
    before, table, held = stamps(out), manifest_of(out), features_by_place(out)
    content = store_bytes(out)
    extend(corpus)
    run(corpus, out)
    check_contract(out)
    appended = manifest_of(out)
    pd.testing.assert_frame_equal(appended.iloc[: len(table)], table)
    assert appended["append_index"].tolist() == [0] * len(table) + [1] * 6
    old, full = int(table["sequences"].sum()), int(table["sequences"].sum()) // SHARD
    over_sequences = {
        path for path in before if "train_" not in path and "timestep" not in path and "/mfcc/" not in path
    }
    untouched = {path for path in over_sequences if of_shard(path) < full}
    assert len(untouched) == 7 * full
    after = stamps(out)
    assert {path: after[path] for path in untouched} == {path: before[path] for path in untouched}
    assert {path for path in untouched if content[path] != store_bytes(out)[path]} == set()
    with xr.open_zarr(out / "features.zarr") as store:
        labels = store["label"].attrs["flag_meanings"].split()
        assert labels == ["de", "en", "aa"]
        assert store.sizes["sequence"] > old
    now = features_by_place(out)
    assert {place: now[place] for place in held} == held
    assert set(ledger_of(out)["status"]) == {"ok"}


def test_only_new_headers_are_read_and_only_new_recordings_decoded(
    corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = set(manifest_of(out)["uri"])
    probed, decoded = [], []
    read_header, read_blocks = audio.read_header, audio.read_blocks
    probe = lambda source, *floor: probed.append(source.container) or read_header(source, *floor)  # noqa: E731
    monkeypatch.setattr(header_task, "read_header", probe)
    decode = lambda source, rate, **how: decoded.append(source.container) or read_blocks(source, rate, **how)  # noqa: E731
    monkeypatch.setattr(recording_reader, "read_blocks", decode)
    extend(corpus)
    state = run(corpus, out)
    new = set(manifest_of(out)["uri"]) - old
    assert (sorted(probed), set(decoded)) == (sorted(new), new)
    facts = extracted(state)
    assert facts.shards_new == (facts.shards or 0) - len(old) * 7 // SHARD
    assert facts.audio_s_new == pytest.approx(6 * 8 * 0.1)


def test_an_appended_store_holds_the_sequences_of_a_single_run(corpus: Path, out: Path, tmp_path: Path) -> None:
    extend(corpus)
    run(corpus, out)
    run(corpus, tmp_path / "one run")
    assert features_by_place(out) == features_by_place(tmp_path / "one run")


def test_known_speakers_keep_their_split_even_if_nothing_of_them_was_usable(corpus: Path, tmp_path: Path) -> None:
    for speaker in ("silent", "mute"):
        write(corpus, f"de/{speaker}/0.wav", 0.01)
    out = tmp_path / "out"
    run(corpus, out)
    known = split_of_speaker(manifest_of(out))
    assert known["silent"] == "train"
    make_corpus(corpus, {"de": {"silent": 30}, "aa": dict.fromkeys((*known, "new"), 1)}, seconds=0.3)
    run(corpus, out)
    check_contract(out)
    now = split_of_speaker(manifest_of(out))
    assert {name: now[name] for name in known} == known
    assert (manifest_of(out).groupby("speaker")["split"].nunique() == 1).all()


def test_scan_of_a_corpus_in_another_place_reads_no_header(
    corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store_bytes(out)
    moved = corpus.rename(corpus.with_name("moved"))
    monkeypatch.setattr(header_task, "read_header", None)
    state = run(moved, out)
    assert set(manifest_of(out)["uri"].str.startswith(str(moved))) == {True}
    assert extracted(state).shards_new or store_bytes(out) == before
    assert store_bytes(out) == before


def test_what_is_gone_or_changed_stays_unless_it_is_pruned(
    corpus: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pipeline")
    before = store_bytes(out), (out / "ledger.parquet").read_bytes()
    (corpus / "de" / "anna" / "0.flac").unlink()
    (corpus / "en" / "1.flac").write_bytes(b"another recording")
    run(corpus, out)
    assert "1 recording gone: de/anna/0.flac; kept in the store" in caplog.text
    assert "1 recording changed: en/1.flac; kept in the store" in caplog.text
    assert "scan: nothing new" in caplog.text
    assert (store_bytes(out), (out / "ledger.parquet").read_bytes()) == before


def test_pruning_masks_what_is_gone_and_nothing_else(corpus: Path, out: Path) -> None:
    held, before, table = features_by_place(out), stamps(out), manifest_of(out)
    (corpus / "de" / "anna" / "0.flac").unlink()
    (corpus / "en" / "1.flac").write_bytes(b"another recording")
    pruned = ["de/anna/0.flac", "en/1.flac"]
    run(corpus, out, "scan", "extract", "verify", prune=True)
    check_contract(out)
    assert features_by_place(out) == {place: held[place] for place in held if place[0] not in pruned}
    rows = ledger_of(out).loc[pruned]
    assert rows["status"].tolist() == ["filtered", "filtered"]
    assert rows["reason"].tolist() == ["gone from the corpus", "changed in the corpus"]
    assert rows["sequences_written"].tolist() == [0, 0]
    holding = set()
    for row in table[table["recording_id"].isin(pruned)].itertuples():
        holding |= set(range(row.first_sequence // SHARD, (row.first_sequence + row.sequences - 1) // SHARD + 1))
    after = stamps(out)
    changed = {of_shard(path) for path in after if path.startswith("shards") and after[path] != before[path]}
    assert changed == holding


def test_masked_recordings_that_come_back_are_in_use_again(corpus: Path, out: Path) -> None:
    before, ledger = store_bytes(out), (out / "ledger.parquet").read_bytes()
    names = ["de/anna/0.flac", "en/1.flac"]
    content = {name: (corpus / name).read_bytes() for name in names}
    for name in names:
        (corpus / name).unlink()
    run(corpus, out, prune=True)
    assert store_bytes(out) != before
    for name in names:
        (corpus / name).write_bytes(content[name])
    run(corpus, out)
    check_contract(out)
    assert store_bytes(out) == before
    assert (out / "ledger.parquet").read_bytes() == ledger


def test_a_masked_recording_that_comes_back_otherwise_stays_masked(corpus: Path, out: Path) -> None:
    (corpus / "de" / "anna" / "0.flac").unlink()
    run(corpus, out, prune=True)
    before = store_bytes(out)
    write(corpus, "de/anna/0.flac", 2.0)
    run(corpus, out, prune=True)
    assert store_bytes(out) == before
    assert ledger_of(out).loc["de/anna/0.flac", "status"] == "filtered"


def test_a_damaged_shard_is_not_written_anew_from_what_it_holds(corpus: Path, out: Path) -> None:
    whole = store_bytes(out)
    last = max(out.glob("features.zarr/features/c/*"), key=lambda path: int(path.name)) / "0" / "0"
    content = bytearray(last.read_bytes())
    content[0] ^= 1
    last.write_bytes(content)
    extend(corpus)
    with pytest.raises(PipelineError, match="differs from its checksums and cannot be reused; run extract --repair"):
        run(corpus, out)
    (out / "shards" / f"{int(last.parts[-3]):08d}.json").unlink()
    run(corpus, out)
    check_contract(out)
    assert whole["shards/00000000.json"] == store_bytes(out)["shards/00000000.json"]


def test_another_manifest_than_the_store_s_is_refused(corpus: Path, out: Path) -> None:
    manifest = out / "manifest.parquet"
    before = manifest.read_bytes()
    manifest.unlink()
    run(corpus, out, "scan")
    assert manifest.read_bytes() == before
    manifest.unlink()
    (corpus / "de" / "anna" / "0.flac").unlink()
    with pytest.raises(PipelineError, match="the recordings give another one than that of the store"):
        run(corpus, out, "scan")
    run(corpus, out.with_name("other"), "scan")
    shutil.copy(out.with_name("other") / "manifest.parquet", manifest)
    RunRecord(OutputFolder.at(str(out))).forget("scan")
    with pytest.raises(UsageError, match="holds a store of another manifest"):
        run(corpus, out, "extract")


@each_first_step
def test_an_append_that_is_killed_at_any_write_continues_to_the_same_bytes(
    corpus: Path, out: Path, tmp_path: Path, kill_at: list[int], first: int
) -> None:
    write(corpus, "aa/dora/0.wav", 0.85)
    gone = "de/bert/1.flac"
    (corpus / gone).unlink()
    old = features_by_place(out)
    expected = tmp_path / "expected"
    for there in killed_at_steps(lambda where: run(corpus, where, prune=True), out, expected, kill_at, first):
        seen = features_by_place(there)
        assert {place: content for place, content in seen.items() if place in old}.items() <= old.items()
        assert {place for place in old if place not in seen and place[0] != gone} == set()
        run(corpus, there, prune=True)
        assert store_bytes(there) == store_bytes(expected), there.name
        assert (there / "ledger.parquet").read_bytes() == (expected / "ledger.parquet").read_bytes()


def test_a_pruning_that_was_killed_and_then_taken_back_leaves_no_shard_half_done(
    corpus: Path, out: Path, kill_at: list[int]
) -> None:
    before, path = features_by_place(out), corpus / "de" / "bert" / "1.flac"
    content = path.read_bytes()
    path.unlink()
    run(corpus, out, "scan", prune=True)
    kill_at[0] = 8  # within a shard
    with pytest.raises(Killed):
        run(corpus, out, "extract")
    kill_at[0] = 10**9
    assert len(features_by_place(out)) < len(before)
    path.write_bytes(content)
    run(corpus, out, prune=True)
    assert features_by_place(out) == before
    check_contract(out)


# pure planning

LANGUAGES = ("de", "en", "fr")
found_recordings = st.lists(
    st.tuples(
        st.sampled_from(LANGUAGES),
        st.one_of(st.none(), st.sampled_from("abcdef")),
        st.one_of(st.just(1000), st.integers(1000, 60_000)),
        st.integers(0, 3),
    ),
    max_size=30,
)


def manifests_of(found: list[tuple[str, str | None, int, int]], config: PipelineConfig) -> list[pd.DataFrame]:
    """The manifest after each append; one usable recording of each language, and of one more, is there first."""
    probes = [(0, make_probe(f"{language}/usable in all/0.wav", 20_000)) for language in LANGUAGES]
    for number, (language, speaker, samples, group) in enumerate(found):
        path = "/".join(part for part in (language, speaker, f"{number}.wav") if part)
        probes.append((group, make_probe(path, samples)))
    probes.append((2, make_probe("az/late/0.wav")))
    tables: list[pd.DataFrame] = []
    for group in range(4):
        some = [probe for there, probe in probes if there == group]
        if some:
            tables.append(build_manifest(*probed(some), config, known=tables[-1] if tables else None))
    return tables


@given(found_recordings, st.integers(0, 100))
def test_a_manifest_only_ever_gets_longer(found: list[tuple[str, str | None, int, int]], seed: int) -> None:
    config = CONFIG.model_copy(update={"seed": seed})
    tables = manifests_of(found, config)
    for earlier, later in itertools.pairwise(tables):
        pd.testing.assert_frame_equal(later.iloc[: len(earlier)], earlier)
        assert extends(later, manifest_digest(earlier))
        assert not extends(earlier, manifest_digest(later))
        assert label_names(later)[: len(label_names(earlier))] == label_names(earlier)
        assert len(plan_of(later, config).changeable()) == len(plan_of(later, config))
    last = tables[-1]
    assert last["first_sequence"].tolist() == [0, *last["sequences"].cumsum().tolist()[:-1]]
    assert (last.groupby("speaker")["split"].nunique() == 1).all()
    split = np.repeat(last["split"].to_numpy(object), last["sequences"])
    found_runs = split_runs(ManifestFile.of(last))
    where = {name: [i for start, stop in runs for i in range(start, stop)] for name, runs in found_runs.items()}
    assert where == {name: np.flatnonzero(split == name).tolist() for name in SPLITS if name in set(split)}
    for _, rows in last.groupby("append_index"):
        codes = as_codes(rows["split"], SPLITS)
        assert (np.diff(codes) >= 0).all()


@given(found_recordings)
def test_the_plan_of_an_append_begins_with_the_earlier_plan(found: list[tuple[str, str | None, int, int]]) -> None:
    tables = manifests_of(found, CONFIG)
    for earlier, later in itertools.pairwise(tables):
        old, new = plan_of(earlier, CONFIG), plan_of(later, CONFIG)
        full = old.sequences // SHARD
        assert [new[index] for index in range(full)] == [old[index] for index in range(full)]
        if len(old) > full and len(new):
            assert new[full].segments[: len(old[full].segments)] == old[full].segments
            assert new.changeable()[full] or new.sequences == old.sequences
    position = 0
    for planned in plan_of(tables[-1], CONFIG):
        for segment in planned.segments:
            assert planned.start + segment.place == position
            position += segment.count
    assert position == tables[-1]["sequences"].sum()


@given(found_recordings, st.integers(1, 5), st.data())
def test_the_plan_does_not_depend_on_the_row_groups_of_the_manifest(
    found: list[tuple[str, str | None, int, int]], rows_per_group: int, data: st.DataObject
) -> None:
    table = manifests_of(found, CONFIG)[-1]
    rows = data.draw(st.permutations(range(len(table))))  # recordings that were read later lie out of order
    later = data.draw(st.sets(st.sampled_from(range(len(table))), max_size=3))
    table.loc[sorted(later), "masked"] = data.draw(st.sampled_from(["gone from the corpus", ""]))
    shuffled = table.iloc[rows].reset_index(drop=True) if data.draw(st.booleans()) else table
    whole = plan_of(shuffled, CONFIG)
    file = ManifestFile.of(shuffled, rows_per_group)
    assert file.label_names() == whole.labels
    plan = Plan(file, whole.labels, CONFIG)
    assert (plan.sequences, list(plan)) == (whole.sequences, list(whole))
    assert plan.changeable().tolist() == whole.changeable().tolist()
    held = [{segment.recording for segment in shard.segments} for shard in whole]
    placed = shuffled[shuffled["sequences"] > 0].sort_values("first_sequence").drop_duplicates("append_index")
    changed = {*np.flatnonzero(shuffled["masked"].notna()).tolist(), *placed.index[placed["append_index"] > 0]}
    ends = [*[False] * (len(plan) - 1), True]
    assert plan.changeable().tolist() == [bool(rows & changed) or end for rows, end in zip(held, ends, strict=True)]
    wanted = data.draw(st.sets(st.integers(0, len(table) + 1)))
    assert plan.shards_with(np.array(sorted(wanted), np.int64)).tolist() == [bool(rows & wanted) for rows in held]
    pending = np.arange(len(plan))
    assert list(plan.tasks(pending, lambda _: 2)) == list(whole.tasks(pending, lambda _: 2))


@given(found_recordings)
def test_an_appended_manifest_compacts_to_that_of_a_single_run_with_its_splits(
    found: list[tuple[str, str | None, int, int]],
) -> None:
    appended = manifests_of(found, CONFIG)[-1]
    compacted = compacted_manifest(appended, CONFIG)
    assert split_of_speaker(compacted) == split_of_speaker(appended)
    whole = manifests_of([(*place, 0) for *place, _ in found], CONFIG)
    assert sorted(compacted["recording_id"]) == sorted(whole[-1]["recording_id"])
    pd.testing.assert_frame_equal(compacted_manifest(compacted, CONFIG), compacted)
    assert all(len(runs) == 1 for runs in split_runs(ManifestFile.of(compacted)).values())
    one = make_manifest([make_probe(name, 16_000) for name in sorted(compacted["recording_id"])], CONFIG)
    if split_of_speaker(one) == split_of_speaker(compacted) and one["speaker"].notna().all():
        assert one["recording_id"].tolist() == compacted["recording_id"].tolist()


@settings(max_examples=8)
@given(groups=st.lists(st.integers(0, 3), min_size=11, max_size=11), prune=st.booleans())
def test_any_grouping_of_additions_gives_the_sequences_of_one_run(
    whole: tuple[Path, Path], groups: list[int], prune: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    everything, one_run = whole
    place = tmp_path_factory.mktemp("growing")
    names = [str(path.relative_to(everything)) for path in sorted(everything.rglob("*.flac"))]
    always = [names[0], names[-1]]  # two languages
    splits: dict[str, str] = {}
    for group in range(4):
        new = [name for name, chosen in zip(names, groups, strict=True) if chosen == group]
        for name in {*new, *(always if group == 0 else [])}:
            (place / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(everything / name, place / "corpus" / name)
        run(place / "corpus", place / "out", prune=prune)
        check_contract(place / "out")
        now = split_of_speaker(manifest_of(place / "out"))
        assert splits.items() <= now.items()
        splits = now
    assert features_by_place(place / "out") == features_by_place(one_run)
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus, and what one run on it left."""
    place = tmp_path_factory.mktemp("whole")
    corpus = place / "corpus"
    lengths = [0.35, 0.05, 0.8, 1.3, 0.4, 0.22, 2.9, 0.6, 0.1, 0.7, 0.5]
    names = [
        "de/a/0",
        "de/a/1",
        "de/b/0",
        "de/c/0",
        "de/0",
        "en/d/0",
        "en/d/1",
        "en/e/0",
        "en/f/0",
        "fr/a/0",
        "fr/g/0",
    ]
    for name, seconds in zip(names, lengths, strict=True):
        write(corpus, f"{name}.flac", seconds)
    run(corpus, place / "out")
    return corpus, place / "out"
