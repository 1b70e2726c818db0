"""Shuffled batches from a warm store, beside other formats of the same rows; and the loader's memory."""

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from model.tensorflow_setup import load_tensorflow
from tests.benchmarks import stores
from tests.benchmarks.measure import SPAWN, Contender, alternate, timed
from tests.benchmarks.report import MIB, Row, Table, comparison, same_within
from tests.benchmarks.settings import Settings

TITLE = "Loader"
BATCH = 512
SHARDS = 24
LARGE_SHARDS = 100 * SHARDS
ROUND_S = 1.0
SLOW_SHARDS = 2
"""Of the rows, for what reads one at a time."""
POOL = 16 * 256
"""Sequences that are mixed, by every contender that mixes."""
PARTS = 16
TFRECORD, ARRAY_RECORD = "TFRecord, parse_example", "Grain over ArrayRecord"
BARS = {TFRECORD: 3.0, ARRAY_RECORD: 10.0}
BATCHES_FOR_MEMORY = 400
CAPTION = (
    "Batches of {batch} sequences of (20, 40) float32 with labels, from a warm cache, on two cores; in sequences per "
    "second over whole passes of at least one second, after a warm-up. The store holds {gib:.2f} GiB of random "
    "numbers; contenders that read one row at a time (Grain, unbatch) use its first {slow:,} sequences. Ours, "
    "TFRecord and unbatch shuffle {pool} sequences at a time; Grain permutes all rows; xbatcher permutes batches, but "
    "not the rows in a batch. TFRecord: {parts} files, interleaved in parallel, shuffled, batched and parsed, either "
    "as floats by parse_example or as bytes by decode_raw. The npy file is read sequentially without shuffling; it "
    "shows the limit of the machine."
)


def run(settings: Settings) -> tuple[Table, ...]:
    """Measure."""
    small = str(stores.make(settings.work / "store-small", SHARDS).store)
    large = str(stores.make(settings.work / "store-large", LARGE_SHARDS, links=True).store)
    peers = settings.work / "store-peers"
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:  # for TensorFlow stays where it was loaded
        pool.submit(write_peers, peers).result()
    contenders = [
        Contender("ours, tf.data", ours_tf, {"store": small}),
        Contender("ours, Python", ours_python, {"store": small}),
        Contender(TFRECORD, tfrecord, {"folder": peers, "kind": "floats"}),
        Contender("TFRecord, decode_raw", tfrecord, {"folder": peers, "kind": "bytes"}),
        Contender(ARRAY_RECORD, grain_array_record, {"folder": peers}, rounds=3),
        Contender("Grain over npy", grain_npy, {"folder": peers}, rounds=3),
        Contender("xbatcher", xbatcher_dataset, {"store": small}, rounds=3),
        Contender("tf.data unbatch over zarr", unbatch, {"store": small}, rounds=3),
        Contender("npy, sequential", npy, {"folder": peers}),
    ]
    measured = alternate(contenders, settings.rounds)
    rows = SHARDS * stores.SEQUENCES_PER_SHARD
    caption = CAPTION.format(
        batch=BATCH, gib=rows * 3200 / 2**30, slow=SLOW_SHARDS * stores.SEQUENCES_PER_SHARD, pool=POOL, parts=PARTS
    )
    return Table("Batches", caption, comparison("sequences/s", measured, BARS)), _memory(small, large)


def _memory(small: str, large: str) -> Table:
    peaks = alternate(
        [Contender(name, few_batches, {"store": uri}) for name, uri in (("small", small), ("large", large))], 1
    )
    ours, other = peaks["small"].peak_bytes / MIB, peaks["large"].peak_bytes / MIB
    gib = SHARDS * stores.SEQUENCES_PER_SHARD * 3200 / 2**30
    return Table(
        "Memory of the loading process",
        f"Peak resident memory (VmHWM) after {BATCHES_FOR_MEMORY} batches through tf.data, including TensorFlow.",
        (
            Row(f"store of {gib:.2f} GiB", "MiB", (ours,)),
            same_within(f"store of {100 * gib:.0f} GiB", "MiB", other, ours, 0.1),
        ),
    )


def write_peers(folder: Path) -> None:
    """Write the rows of the small store in the other formats, unless they are there."""
    load_tensorflow()
    import tensorflow as tf
    from array_record.python.array_record_module import ArrayRecordWriter

    if (folder / "label.npy").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    features, label = stores.rows(SHARDS)
    np.save(folder / "features.npy", features)
    for kind in ("floats", "bytes"):
        for part in range(PARTS):
            with tf.io.TFRecordWriter(str(folder / f"{kind}-{part:02d}.tfrecord")) as file:
                for i in range(part, len(label), PARTS):
                    file.write(_example(tf, kind, features[i], int(label[i])))
    writer = ArrayRecordWriter(str(folder / "rows.array_record"), "group_size:1,uncompressed")
    for i in range(SLOW_SHARDS * stores.SEQUENCES_PER_SHARD):
        writer.write(features[i].tobytes() + int(label[i]).to_bytes(8, "little"))
    writer.close()
    np.save(folder / "label.npy", label)


def _example(tf: Any, kind: str, features: Any, label: int) -> bytes:
    if kind == "floats":
        value = tf.train.Feature(float_list=tf.train.FloatList(value=features.reshape(-1)))
    else:
        value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[features.tobytes()]))
    number = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    example = tf.train.Example(features=tf.train.Features(feature={"features": value, "label": number}))
    return bytes(example.SerializeToString())


def _per_second(batches: Callable[[], Iterator[Any]]) -> Callable[[], float]:
    """Return the function of a round: sequences a second of passes that begin within ROUND_S; the first one warms."""

    def once() -> float:
        count, started_s = 0, time.perf_counter()
        while (wall_s := time.perf_counter() - started_s) < ROUND_S:
            count += sum(len(features) for features, _ in batches())
        return count / wall_s

    once()
    return once


@contextmanager
def ours_tf(store: str) -> Iterator[Callable[[], float]]:
    load_tensorflow()
    from model.loader import sequence_dataset

    dataset = sequence_dataset(store, "train", BATCH, seed=1)
    yield _per_second(lambda: iter(dataset))


@contextmanager
def ours_python(store: str) -> Iterator[Callable[[], float]]:
    load_tensorflow()
    from model.data.store_reader import Store

    opened, epochs = Store(store), itertools.count()

    def batches() -> Iterator[Any]:
        for block in opened.shuffled_blocks("train", 1, next(epochs)):
            for start in range(0, len(block), BATCH):
                yield block.features[start : start + BATCH], block.label[start : start + BATCH]

    yield _per_second(batches)


@contextmanager
def tfrecord(folder: Path, kind: str) -> Iterator[Callable[[], float]]:
    load_tensorflow()
    import tensorflow as tf

    columns = {
        "features": tf.io.FixedLenFeature((20, 40), tf.float32) if kind == "floats"
        else tf.io.FixedLenFeature((), tf.string),
        "label": tf.io.FixedLenFeature((), tf.int64),
    }  # fmt: skip

    def parse(examples: Any) -> Any:
        row = tf.io.parse_example(examples, columns)
        if kind == "floats":
            return row["features"], row["label"]
        return tf.reshape(tf.io.decode_raw(row["features"], tf.float32), (-1, 20, 40)), row["label"]

    files = tf.data.Dataset.list_files(str(folder / f"{kind}-*.tfrecord"), shuffle=True)
    options = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": False}
    dataset = files.interleave(tf.data.TFRecordDataset, cycle_length=PARTS, block_length=16, **options)
    dataset = dataset.shuffle(POOL).batch(BATCH).map(parse, **options).prefetch(tf.data.AUTOTUNE)
    yield _per_second(lambda: iter(dataset))


def _grain(source: Any, parse: Callable[[Any], Any]) -> Callable[[], float]:
    import grain

    dataset = grain.MapDataset.source(source).seed(1).shuffle().map(parse).batch(BATCH)
    return _per_second(lambda: iter(dataset.to_iter_dataset()))


@contextmanager
def grain_array_record(folder: Path) -> Iterator[Callable[[], float]]:
    from grain.sources import ArrayRecordDataSource

    def parse(record: bytes) -> Any:
        return np.frombuffer(record, np.float32, 800).reshape(20, 40), np.frombuffer(record, np.int64, 1, 3200)[0]

    yield _grain(ArrayRecordDataSource(str(folder / "rows.array_record")), parse)


class Rows:
    """A memory-mapped npy file as a source of Grain."""

    def __init__(self, folder: Path, count: int) -> None:
        self._features = np.load(folder / "features.npy", mmap_mode="r")
        self._label, self._count = np.load(folder / "label.npy"), count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Any:
        return self._features[i], self._label[i]


@contextmanager
def grain_npy(folder: Path) -> Iterator[Callable[[], float]]:
    yield _grain(Rows(folder, SLOW_SHARDS * stores.SEQUENCES_PER_SHARD), lambda row: row)


@contextmanager
def xbatcher_dataset(store: str) -> Iterator[Callable[[], float]]:
    import xarray
    import xbatcher

    dataset = xarray.open_zarr(store, chunks=None)[["features", "label"]]
    sizes = {"sequence": BATCH, "timestep": 20, "mfcc": 40}
    generator = xbatcher.BatchGenerator(dataset, sizes, preload_batch=False)
    random = np.random.default_rng(1)

    def batches() -> Iterator[Any]:
        for i in random.permutation(len(generator)).tolist():
            batch = generator[i].load()
            yield batch["features"].to_numpy(), batch["label"].to_numpy()

    yield _per_second(batches)


@contextmanager
def unbatch(store: str) -> Iterator[Callable[[], float]]:
    """What one writes first: a generator of chunks, cut into rows for TensorFlow's own shuffle."""
    load_tensorflow()
    import tensorflow as tf
    import xarray

    dataset = xarray.open_zarr(store, chunks=None)

    def chunks() -> Iterator[Any]:
        for start in range(0, SLOW_SHARDS * stores.SEQUENCES_PER_SHARD, 256):
            part = dataset.isel(sequence=slice(start, start + 256))
            yield part["features"].to_numpy(), part["label"].to_numpy().astype(np.int64)

    signature = tf.TensorSpec((None, 20, 40), tf.float32), tf.TensorSpec((None,), tf.int64)
    rows = tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch()
    batches = rows.shuffle(POOL).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    yield _per_second(lambda: iter(batches))


@contextmanager
def npy(folder: Path) -> Iterator[Callable[[], float]]:
    label = np.load(folder / "label.npy")
    room = np.empty((BATCH, 20, 40), np.float32)

    def batches() -> Iterator[Any]:
        with (folder / "features.npy").open("rb", buffering=0) as file:
            file.seek(-len(label) * room[0].nbytes, 2)
            for start in range(0, len(label), BATCH):
                file.readinto(room)
                yield room, label[start : start + BATCH]

    yield _per_second(batches)


@contextmanager
def few_batches(store: str) -> Iterator[Callable[[], float]]:
    load_tensorflow()
    from model.loader import sequence_dataset

    dataset = sequence_dataset(store, "train", BATCH, seed=1).repeat().take(BATCHES_FOR_MEMORY)
    yield lambda: timed(lambda: [None for _ in dataset])
