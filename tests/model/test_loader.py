"""The loader: every valid sequence once an epoch, in an order that is a function of seed and epoch."""

import itertools
import re
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fsspec
import keras
import numpy as np
import pytest
import tensorflow as tf
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.data.store_reader import ATTRIBUTES, Rest, Store, share
from model.loader import sequence_dataset
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from tests.support import model_stores
from tests.support.model_stores import COEFFICIENTS, LANGUAGES, TIMESTEPS

# as after two appends: three runs of training, most boundaries inside a chunk of 4
RUNS = {
    "train": [(0, 13), (21, 30), (33, 46)],
    "validation": [(13, 17), (30, 31)],
    "test": [(17, 21), (31, 33), (46, 50)],
}
INVALID = (0, 5, 22, 23, 30, 45)
LABEL = np.arange(50) * 7 % 3
TRAIN = [i for start, stop in RUNS["train"] for i in range(start, stop) if i not in INVALID]


@pytest.fixture(scope="module")
def appended(tmp_path_factory: pytest.TempPathFactory) -> Store:
    valid = ~np.isin(np.arange(50), INVALID)
    output = model_stores.write(tmp_path_factory.mktemp("appended"), RUNS, LABEL, valid=valid)
    return Store(str(output.store))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One run of 40 training sequences, all valid, ten whole chunks."""
    output = model_stores.write(tmp_path_factory.mktemp("plain"), {"train": [(0, 40)]}, np.arange(40) % 3)
    return Store(str(output.store))


def _sequences(features: NDArray[np.float32]) -> list[int]:
    """Which sequences numbered features (sequence, timestep, mfcc) are, after checking that they are whole."""
    numbers = features[:, 0, 0].astype(int)
    np.testing.assert_array_equal(features, model_stores.numbered(50)[numbers])
    return numbers.tolist()


def _order(dataset: tf.data.Dataset) -> list[int]:
    return [number for features, _ in dataset for number in _sequences(features.numpy())]


def _frames(dataset: tf.data.Dataset) -> list[tuple[int, int]]:
    """(sequence, timestep) of each numbered frame that a pass gives."""
    first = np.concatenate([features.numpy()[:, 0] for features, _ in dataset])
    return [(int(value), round(float(value) % 1 * 64)) for value in first]


def test_a_batch_of_sequences_is_float32_features_and_int64_labels(plain: Store) -> None:
    dataset = sequence_dataset(plain, "train", 8)
    assert dataset.element_spec[0].dtype == tf.float32
    features, label = next(iter(dataset))
    assert (features.dtype, label.dtype) == (tf.float32, tf.int64)
    assert features.shape == (8, TIMESTEPS, COEFFICIENTS)
    assert label.shape == (8,)


def test_a_dataset_opens_the_store_at_an_address_as_well(plain: Store, tmp_path: Path) -> None:
    output = model_stores.write(tmp_path, {"train": [(0, 6)]}, [0, 1, 2, 0, 1, 2])
    assert _order(sequence_dataset(str(output.store), "train", 4, shuffle=False)) == [0, 1, 2, 3, 4, 5]
    assert len(_frames(sequence_dataset(str(output.store), "train", 4, frames=True))) == 6 * TIMESTEPS


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("split", list(RUNS))
def test_a_pass_gives_every_valid_sequence_of_its_split_once_and_no_other(
    appended: Store, split: str, shuffle: bool
) -> None:
    dataset = sequence_dataset(appended, split, 5, shuffle=shuffle, pool_chunks=2)
    wanted = [i for start, stop in RUNS[split] for i in range(start, stop) if i not in INVALID]
    assert sorted(_order(dataset)) == wanted
    assert sorted(_order(dataset)) == wanted


def test_labels_stay_with_their_sequences(appended: Store) -> None:
    for features, label in sequence_dataset(appended, "train", 6):
        np.testing.assert_array_equal(label, LABEL[_sequences(features.numpy())])


def test_without_shuffling_every_pass_is_in_the_order_of_the_store(appended: Store) -> None:
    dataset = sequence_dataset(appended, "train", 5, shuffle=False)
    assert [_order(dataset), _order(dataset)] == [TRAIN, TRAIN]


def test_each_epoch_has_an_order_of_its_own(plain: Store) -> None:
    dataset = sequence_dataset(plain, "train", 7, seed=3)
    orders = [_order(dataset) for _ in range(3)]
    assert len({tuple(order) for order in orders}) == 3


def test_two_datasets_of_one_seed_give_the_same_orders(plain: Store) -> None:
    first, second = (sequence_dataset(plain, "train", 7, seed=3) for _ in range(2))
    assert [_order(first) for _ in range(3)] == [_order(second) for _ in range(3)]


def test_another_seed_gives_another_order(plain: Store) -> None:
    assert _order(sequence_dataset(plain, "train", 7, seed=3)) != _order(sequence_dataset(plain, "train", 7, seed=4))


def test_the_order_does_not_depend_on_the_batch_size(plain: Store) -> None:
    assert _order(sequence_dataset(plain, "train", 7, seed=3)) == _order(sequence_dataset(plain, "train", 40, seed=3))


@pytest.mark.parametrize("frames", [False, True])
def test_a_dataset_that_starts_at_epoch_two_gives_what_epoch_two_gave(plain: Store, frames: bool) -> None:
    read = _frames if frames else _order
    whole = sequence_dataset(plain, "train", 7, seed=3, frames=frames)
    orders = [read(whole) for _ in range(4)]
    continued = sequence_dataset(plain, "train", 7, seed=3, first_epoch=2, frames=frames)
    assert [read(continued) for _ in range(2)] == orders[2:]


def test_the_orders_of_a_seed_are_these_for_all_time(plain: Store) -> None:
    # published results are repeated from (seed, epoch): another order must be a decision, never an accident
    dataset = sequence_dataset(plain, "train", 40, seed=1, pool_chunks=4)
    assert _order(dataset)[:10] == [33, 2, 19, 32, 28, 3, 18, 17, 29, 31]
    assert _order(dataset)[:10] == [18, 8, 10, 25, 11, 16, 28, 26, 29, 19]
    frames = sequence_dataset(plain, "train", 40, seed=1, pool_chunks=4, frames=True)
    assert _frames(frames)[:5] == [(33, 1), (33, 0), (0, 1), (3, 2), (16, 3)]


@pytest.mark.parametrize(("batch_size", "sizes"), [(16, [16, 16, 8]), (20, [20, 20]), (64, [40])])
def test_the_last_batch_may_be_smaller_and_the_number_of_batches_is_known(
    plain: Store, batch_size: int, sizes: list[int]
) -> None:
    dataset = sequence_dataset(plain, "train", batch_size)
    assert [len(label) for _, label in dataset] == sizes
    assert dataset.cardinality().numpy() == len(sizes)


def test_the_number_of_batches_counts_valid_sequences_alone(appended: Store) -> None:
    assert sequence_dataset(appended, "train", 1).cardinality().numpy() == len(TRAIN)
    assert sequence_dataset(appended, "train", 1, frames=True).cardinality().numpy() == len(TRAIN) * TIMESTEPS


def test_chunks_are_cut_where_runs_begin_and_end(appended: Store) -> None:
    assert [tuple(chunk) for chunk in appended.chunks("train").tolist()] == [
        *[(0, 4), (4, 8), (8, 12), (12, 13)],
        *[(21, 24), (24, 28), (28, 30)],
        *[(33, 36), (36, 40), (40, 44), (44, 46)],
    ]
    assert appended.chunks("validation").tolist() == [[13, 16], [16, 17], [30, 31]]


def test_a_batch_mixes_the_sequences_of_a_whole_pool_of_chunks(plain: Store) -> None:
    first = next(iter(sequence_dataset(plain, "train", 12, pool_chunks=5)))[0]
    of_chunk = np.bincount(np.array(_sequences(first.numpy())) // 4, minlength=10)
    assert np.count_nonzero(of_chunk) == 5
    unmixed = next(iter(sequence_dataset(plain, "train", 4, pool_chunks=1)))[0]
    assert len(set(np.array(_sequences(unmixed.numpy())) // 4)) == 1


def test_pools_are_drawn_from_the_whole_split(plain: Store) -> None:
    first_pools = [
        next(plain.shuffled_blocks("train", seed=0, epoch=epoch, pool_chunks=2)).index // 4 for epoch in range(8)
    ]
    assert any(np.ptp(chunks) > 1 for chunks in first_pools)
    assert len({tuple(np.unique(chunks)) for chunks in first_pools}) > 1


def test_a_block_says_recording_and_place_of_each_sequence(tmp_path: Path) -> None:
    recording = np.repeat([4, 9, 2], [3, 4, 5])
    valid = np.arange(12) != 6
    output = model_stores.write(tmp_path, {"test": [(0, 12)]}, np.zeros(12, int), valid=valid, recording=recording)
    store = Store(str(output.store))
    blocks = list(store.blocks("test", pool_chunks=2))
    assert [block.index.tolist() for block in blocks] == [[0, 1, 2, 3, 4, 5, 7], [8, 9, 10, 11]]
    assert [block.recording.tolist() for block in blocks] == [[4, 4, 4, 9, 9, 9, 2], [2, 2, 2, 2]]
    for block in store.shuffled_blocks("test", seed=0, epoch=0, pool_chunks=2):
        np.testing.assert_array_equal(block.recording, recording[block.index])
        assert _sequences(block.features) == block.index.tolist()


def test_a_batch_of_frames_is_float32_features_and_int64_labels(plain: Store) -> None:
    features, label = next(iter(sequence_dataset(plain, "train", 8, frames=True)))
    assert (features.dtype, label.dtype) == (tf.float32, tf.int64)
    assert features.shape == (8, COEFFICIENTS)
    assert label.shape == (8,)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_pass_gives_every_frame_once_labelled_as_its_sequence(appended: Store, shuffle: bool) -> None:
    dataset = sequence_dataset(appended, "train", 9, shuffle=shuffle, pool_chunks=2, frames=True)
    frames = _frames(dataset)
    assert sorted(frames) == [(sequence, t) for sequence in TRAIN for t in range(TIMESTEPS)]
    assert (frames == sorted(frames)) is not shuffle
    label = np.concatenate([label for _, label in dataset])
    sequences = np.concatenate([features.numpy()[:, 0].astype(int) for features, _ in dataset])
    assert np.bincount(label).tolist() == (np.bincount(LABEL[TRAIN]) * TIMESTEPS).tolist()
    if not shuffle:  # two passes in one order
        np.testing.assert_array_equal(label, LABEL[sequences])


def test_frames_keep_their_labels_when_they_are_mixed(plain: Store) -> None:
    for features, label in sequence_dataset(plain, "train", 9, frames=True):
        np.testing.assert_array_equal(label, features.numpy()[:, 0].astype(int) % 3)


def test_frames_are_mixed_beyond_their_sequence_and_anew_in_each_epoch(plain: Store) -> None:
    dataset = sequence_dataset(plain, "train", 50, frames=True)
    first, second = _frames(dataset), _frames(dataset)
    assert first != second
    neighbours = sum(a[0] == b[0] for a, b in itertools.pairwise(first))
    assert neighbours < len(first) / 4  # in the order of the store it would be three in four


def test_label_counts_are_of_valid_sequences_of_the_split(appended: Store) -> None:
    assert appended.label_counts("train").tolist() == np.bincount(LABEL[TRAIN], minlength=3).tolist()
    assert appended.label_counts("validation").sum() == 4


def test_a_split_without_sequences_is_empty(plain: Store) -> None:
    assert plain.chunks("test").shape == (0, 2)
    assert plain.label_counts("test").tolist() == [0, 0, 0]
    assert list(sequence_dataset(plain, "test", 8)) == []
    assert list(sequence_dataset(plain.part(1, of=2, rest="repeat"), "test", 8)) == []


@pytest.mark.parametrize("split", ["dev", "val", "", "Train"])
def test_an_unknown_split_is_refused_with_those_there_are(appended: Store, split: str) -> None:
    message = f"'{split}' is no split of {appended.uri}; it has train, validation, test"
    for use in (
        lambda: sequence_dataset(appended, split, 8),
        lambda: sequence_dataset(appended.part(0, of=2), split, 8),
        lambda: next(appended.blocks(split)),
        lambda: next(appended.shuffled_blocks(split, seed=1, epoch=0)),
        lambda: appended.label_counts(split),
        lambda: appended.chunks(split),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            use()


@pytest.mark.parametrize("name", ["batch_size", "pool_chunks", "seed", "first_epoch"])
def test_a_number_that_is_too_small_is_refused(plain: Store, name: str) -> None:
    lowest = int(name in {"batch_size", "pool_chunks"})
    for value in (lowest - 1, -7):
        with pytest.raises(ValueError, match=f"{name} = {value}: it must be at least {lowest}"):
            sequence_dataset(plain, "train", **{"batch_size": 8, name: value})


def test_a_folder_that_is_no_store_is_refused_with_the_store_in_it(plain: Store, tmp_path: Path) -> None:
    out = Path(plain.uri).parent
    with pytest.raises(ValueError, match=f"{out} is no feature store; give {plain.uri}"):
        sequence_dataset(str(out), "train", 8)
    for place in (tmp_path, tmp_path / "nothing", Path(plain.uri) / "features"):
        with pytest.raises(ValueError, match=f"{place} is no feature store; give features.zarr in the output folder"):
            Store(str(place))


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part:zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda group: group.attrs.put({}), ", ".join([*ATTRIBUTES])),
        (lambda group: group.attrs.pop("split_runs"), "split_runs"),
        (lambda group: group["label"].attrs.put({}), "label.flag_meanings"),
    ],
)
def test_a_store_without_its_attributes_is_one_line(
    tmp_path: Path, change: Callable[[zarr.Group], object], lost: str
) -> None:
    output = model_stores.write(tmp_path, {"train": [(0, 4)]}, [0, 1, 2, 0])
    change(zarr.open_group(str(output.store), mode="r+", use_consolidated=False))
    zarr.consolidate_metadata(str(output.store))
    with pytest.raises(PipelineError, match=f"zarr lacks the attributes {lost}; run extract, which restores them"):
        Store(str(output.store))


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part:zarr.errors.ZarrUserWarning")
def test_a_store_with_a_variable_of_another_length_is_one_line(tmp_path: Path) -> None:
    output = model_stores.write(tmp_path, {"train": [(0, 4)]}, [0, 1, 2, 0])
    group = zarr.open_group(str(output.store), mode="r+", use_consolidated=False)
    group.create_array("energy", data=np.zeros(3), dimension_names=("sequence",))
    zarr.consolidate_metadata(str(output.store))
    with pytest.raises(PipelineError, match=r"cannot be opened: conflicting sizes for dimension 'sequence'.*'energy'"):
        Store(str(output.store))


@given(st.integers(0, 50), st.integers(1, 9))
def test_parts_of_one_size_cover_the_items_and_differ_by_less_than_their_number(count: int, of: int) -> None:
    parts = {
        rest: [[*range(*share(count, index, of, rest))] for index in range(of)] for rest in ("keep", "drop", "repeat")
    }
    assert sorted(itertools.chain(*parts["keep"])) == [*range(count)]
    assert len({len(part) for part in parts["keep"]}) <= 2
    for rest in ("drop", "repeat"):
        assert len({len(part) for part in parts[rest]}) == 1
    dropped, repeated = ([*itertools.chain(*parts[rest])] for rest in ("drop", "repeat"))
    assert len(dropped) == len(set(dropped)) > count - of
    assert set(repeated) == {*range(count)}
    assert len(repeated) < count + of


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.integers(0, 3), st.integers(1, 5))
def test_trainers_share_an_epoch_between_them(appended: Store, count: int, epoch: int, pool_chunks: int) -> None:
    parts = [appended.part(index, of=count) for index in range(count)]
    shuffled = [[*part.shuffled_blocks("train", 3, epoch, pool_chunks)] for part in parts]
    in_order = [[*part.blocks("train", pool_chunks)] for part in parts]
    for blocks in (shuffled, in_order):
        assert sorted(i for part in blocks for block in part for i in block.index.tolist()) == TRAIN
    again = [[*part.shuffled_blocks("train", 3, epoch, pool_chunks)] for part in parts]
    for one, other in zip(itertools.chain(*shuffled), itertools.chain(*again), strict=True):
        np.testing.assert_array_equal(one.index, other.index)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("frames", [True, False])
@pytest.mark.parametrize("rest", ["drop", "repeat"])
def test_trainers_with_collective_steps_have_the_same_batches_in_every_epoch(
    appended: Store, rest: Rest, frames: bool, shuffle: bool
) -> None:
    steps = [sequence_dataset(appended.part(index, of=4), "train", 7).cardinality() for index in range(4)]
    assert len(set(map(int, steps))) == 2  # with what remains, some trainers have one more
    sizes = []
    for index in range(4):
        part = appended.part(index, of=4, rest=rest)
        dataset = sequence_dataset(part, "train", 7, seed=2, frames=frames, shuffle=shuffle, pool_chunks=2)
        epochs = [[len(label) for _, label in dataset] for _ in range(3)]
        assert [len(epoch) for epoch in epochs] == [dataset.cardinality().numpy()] * 3
        sizes += epochs
    assert sizes == [sizes[0]] * 12


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_trainer_that_is_none_is_refused(plain: Store, index: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"part {index} of {count}: the index must be at least 0 and less than"):
        plain.part(index, of=count)
    with pytest.raises(ValueError, match="rest = 'cut': it must be keep, drop, repeat"):
        plain.part(0, of=2, rest="cut")


def test_a_dataset_of_a_part_gives_the_part(plain: Store) -> None:
    datasets = [sequence_dataset(plain.part(index, of=3), "train", 8) for index in range(3)]
    parts = [_order(dataset) for dataset in datasets]
    assert sorted(itertools.chain(*parts)) == list(range(40))
    assert sorted(map(len, parts)) == [13, 13, 14]
    assert [dataset.cardinality().numpy() for dataset in datasets] == [2, 2, 2]


def test_a_store_behind_a_url_gives_what_a_folder_gives(appended: Store, memory_url: str, tmp_path: Path) -> None:
    valid = ~np.isin(np.arange(50), INVALID)
    output = model_stores.write(tmp_path, RUNS, LABEL, valid=valid)
    files = fsspec.filesystem("memory")
    files.put(str(output.store), "/pipeline-tests/", recursive=True)
    there = Store(f"{memory_url}/features.zarr")
    blocks = [list(store.shuffled_blocks("train", 1, 2, pool_chunks=3)) for store in (appended, there)]
    for one, other in zip(*blocks, strict=True):
        for name in ("features", "label", "recording", "index"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.fixture
def compressed(tmp_path: Path) -> OutputFolder:
    """The sequences of `appended`, rounded to as many bits as their numbers have, so that they are the same."""
    valid = ~np.isin(np.arange(50), INVALID)
    return model_stores.write(tmp_path, RUNS, LABEL, valid=valid, mantissa_bits=20)


def test_a_compressed_store_gives_what_a_plain_one_gives(appended: Store, compressed: OutputFolder) -> None:
    store = Store(str(compressed.store))
    for split in RUNS:
        blocks = [list(s.shuffled_blocks(split, 1, 2, pool_chunks=3)) for s in (appended, store)]
        for one, other in zip(*blocks, strict=True):
            np.testing.assert_array_equal(one.features, other.features)
            np.testing.assert_array_equal(one.index, other.index)
    for start, stop in itertools.combinations(range(0, 51, 3), 2):
        np.testing.assert_array_equal(store.read(start, stop).features, appended.read(start, stop).features)


def test_a_compressed_store_is_read_without_zarr(compressed: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(compressed.store))
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda *_: pytest.fail("zarr reads"))
    assert _sequences(store.read(6, 13).features) == list(range(6, 13))


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    output = model_stores.write(tmp_path, {"train": [(0, 16)]}, np.arange(16) % 3)
    (output.store / "features/c/1/0/0").unlink()
    store = Store(str(output.store))
    assert len(store.read(0, 8)) == 8
    with pytest.raises(PipelineError, match=r"features/c/1/0/0 \(shard 1\) cannot be read: No such file"):
        store.read(8, 12)


def test_a_label_that_a_split_lacks_counts_zero(tmp_path: Path) -> None:
    output = model_stores.write(tmp_path, {"train": [(0, 5)], "test": [(5, 7)]}, [1, 1, 0, 1, 1, 2, 2])
    store = Store(str(output.store))
    assert store.labels == LANGUAGES
    assert store.label_counts("train").tolist() == [1, 4, 0]
    assert store.label_counts("test").tolist() == [0, 0, 2]


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_without_valid_sequences_gives_no_batch(tmp_path: Path, frames: bool, split: str) -> None:
    # no sequence of validation is planned, the two of test are not valid
    output = model_stores.write(
        tmp_path, {"train": [(0, 4)], "test": [(4, 6)]}, [0, 1, 2, 0, 1, 2], valid=[True] * 4 + [False] * 2
    )
    dataset = sequence_dataset(str(output.store), split, 2, frames=frames)
    assert list(dataset) == []
    assert dataset.cardinality().numpy() == 0


def test_opening_a_store_reads_none_of_its_shards(tmp_path: Path) -> None:
    output = model_stores.write(tmp_path, {"train": [(0, 8)]}, np.arange(8) % 3)
    for name in ("features", "label", "split", "recording", "start_frame", "valid"):
        for path in (output.store / name / "c").rglob("*"):
            if path.is_file():
                path.write_bytes(b"this is no shard")
    store = Store(str(output.store))
    assert (store.labels, store.timesteps, store.n_features) == (LANGUAGES, TIMESTEPS, COEFFICIENTS)
    np.testing.assert_allclose(store.train_mean, model_stores.numbered(8).mean(axis=(0, 1)), rtol=1e-6)
    with pytest.raises(PipelineError, match=r"valid/c/0 \(shard 0\) cannot be read: .*; run verify"):
        store.read(0, 4)


def test_opening_a_store_of_a_billion_sequences_takes_little_memory(tmp_path: Path, plain: Store) -> None:
    runs = {"train": [(0, 700_000_000)], "validation": [(700_000_000, 850_000_000)], "test": [(850_000_000, 10**9)]}
    output = model_stores.create(
        tmp_path, runs, timesteps=20, coefficients=40, sequences_per_chunk=256, chunks_per_shard=16
    )
    tracemalloc.start()
    try:
        store = Store(str(output.store))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (store.sequences_per_chunk, store.timesteps, store.n_features) == (256, 20, 40)
    assert peak_bytes < 4 * 2**20
    tracemalloc.start()
    try:
        chunks = store.chunks("train")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert chunks[[0, -1]].tolist() == [[0, 256], [699_999_744, 700_000_000]]
    assert peak_bytes < 48 * len(chunks)


class Stored(NamedTuple):
    """A store to make: `runs` are (split, length, which are valid)."""

    runs: list[tuple[str, list[bool]]]
    sequences_per_chunk: int
    chunks_per_shard: int

    def write(self, root: Path) -> tuple[OutputFolder, dict[str, list[int]]]:
        """Write it; return the valid sequences of each split as well."""
        runs: dict[str, list[tuple[int, int]]] = {"train": [], "test": []}
        valid: list[bool] = []
        for split, flags in self.runs:
            runs[split].append((len(valid), len(valid) + len(flags)))
            valid += flags
        wanted = {
            split: [i for start, stop in parts for i in range(start, stop) if valid[i]]
            for split, parts in runs.items()
        }
        output = model_stores.write(
            root,
            runs,
            np.arange(len(valid)) % 3,
            valid=valid,
            sequences_per_chunk=self.sequences_per_chunk,
            chunks_per_shard=self.chunks_per_shard,
        )
        return output, wanted


STORES = st.builds(
    Stored,
    st.lists(
        st.tuples(st.sampled_from(["train", "test"]), st.lists(st.booleans(), min_size=1, max_size=12)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 5),
    st.integers(1, 3),
)


@settings(max_examples=15, deadline=None)
@given(STORES, st.integers(1, 5), st.integers(1, 9), st.booleans(), st.integers(0, 2**32 - 1))
def test_whatever_the_sizes_every_valid_sequence_comes_exactly_once(
    stored: Stored, pool_chunks: int, batch_size: int, shuffle: bool, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        output, wanted = stored.write(Path(folder))
        store = Store(str(output.store))
        for split, sequences in wanted.items():
            dataset = sequence_dataset(store, split, batch_size, seed, shuffle=shuffle, pool_chunks=pool_chunks)
            assert sorted(_order(dataset)) == sequences
            epochs = [store.shuffled_blocks(split, seed, epoch, pool_chunks) for epoch in range(2)]
            for blocks in epochs:
                assert sorted(i for block in blocks for i in block.index.tolist()) == sequences


class Watched(keras.Sequential):
    """A model that notes which sequences each training step is given."""

    def __init__(self, layers: list[keras.layers.Layer]) -> None:
        super().__init__(layers)
        self.seen: list[int] = []

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        self.seen += _sequences(data[0].numpy())
        return super().train_step(data)


def test_two_epochs_of_fit_train_on_epochs_zero_and_one_and_nothing_else(appended: Store) -> None:
    model = Watched(
        [keras.Input((TIMESTEPS, COEFFICIENTS)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    )
    model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(
        sequence_dataset(appended, "train", 8, seed=5),
        validation_data=sequence_dataset(appended, "validation", 8, shuffle=False),
        epochs=2,
        shuffle=False,
        verbose=0,
    )
    expected = sequence_dataset(appended, "train", 8, seed=5)
    assert model.seen == _order(expected) + _order(expected)
    assert sorted(model.seen) == sorted(TRAIN * 2)
