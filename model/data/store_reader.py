"""Reading a feature store in blocks of sequences, in the order of the store or shuffled."""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from upath import UPath
from zarr.errors import ContainsArrayError

from model.data.array_reader import open_arrays
from pipeline.errors import PipelineError, UsageError, in_one_line
from pipeline.schema import SCHEMA_VERSION, SPLITS, flag_names, version_mismatch
from pipeline.storage import folder_at

POOL_CHUNKS = 16
"""Chunks that are mixed at a time. Recordings are stored in random order, so a pool of chunks drawn at random is a
fair sample of the split, and each chunk is still read sequentially."""

ATTRIBUTES: Final = ("schema_version", "config", "config_hash", "manifest_digest", "split_runs")
"""The attributes of a store without which it cannot be read."""

Rest = Literal["keep", "drop", "repeat"]
"""Treatment of the sequences that remain when an epoch is divided among trainers, see `Store.part`."""

ALIGNMENT = 64
"""Bytes; TensorFlow copies arrays that begin at another multiple."""


@dataclass(frozen=True)
class Block:
    """Valid sequences that were read together.

    `features` (sequence, timestep, feature) float32; `label` (sequence,) int64; `recording` (sequence,) uint32, the
    row of the manifest; `index` (sequence,) int64, the place in the store; `extra`: the further variables that the
    store was opened with, by name.
    """

    features: NDArray[np.float32]
    label: NDArray[np.int64]
    recording: NDArray[np.uint32]
    index: NDArray[np.int64]
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)


def _aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an uninitialised array that TensorFlow takes without copying it."""
    values = math.prod(shape)
    raw = np.empty(values + ALIGNMENT // 4, np.float32)
    skipped = -raw.ctypes.data % ALIGNMENT // 4
    return raw[skipped : skipped + values].reshape(shape)


def share(count: int, index: int, of: int, rest: Rest) -> tuple[int, int]:
    """Return the items [start, stop) out of `count` for trainer `index` of `of`; see `Store.part`."""
    if rest == "keep":
        return count * index // of, count * (index + 1) // of
    size = count // of if rest == "drop" else -(-count // of)
    start = (count - size) * index // max(1, of - 1)
    return start, start + size


def _open(uri: str) -> xr.Dataset:
    """Return the store as a dataset; raises ValueError, UsageError or PipelineError if it cannot be used."""
    try:
        dataset: xr.Dataset = xr.open_zarr(uri, chunks=None)  # with chunks Dask would list every chunk of the store
    except (FileNotFoundError, ContainsArrayError):
        inside = UPath(uri) / "features.zarr"
        place = inside if inside.exists() else "features.zarr in the output folder of a run"
        raise ValueError(f"{uri} is no feature store; give {place}") from None
    except ValueError as error:  # xarray opens no store in which the lengths of a dimension differ
        raise PipelineError(
            f"{uri} cannot be opened: {in_one_line(error)}; delete variables of another length that were added to it"
        ) from None
    mismatch = version_mismatch(uri, dataset.attrs.get("schema_version", SCHEMA_VERSION))
    if mismatch:
        raise UsageError(mismatch)
    lost = [name for name in ATTRIBUTES if name not in dataset.attrs]
    lost += [] if "label" in dataset and "flag_meanings" in dataset["label"].attrs else ["label.flag_meanings"]
    if lost:
        raise PipelineError(f"{uri} lacks the attributes {', '.join(lost)}; run extract, which restores them")
    return dataset


class Store:
    """A feature store opened for reading; holds only metadata.

    `extra` names further variables over `sequence` that each block is to hold. Raises ValueError for a folder that is
    no store, UsageError for a variable that the store does not have and for a store of another schema version, and
    PipelineError for a store that has lost attributes.
    """

    def __init__(self, uri: str, extra: Sequence[str] = ()) -> None:
        with _open(uri) as dataset:
            self.labels = flag_names(dataset["label"].attrs)
            self.split_runs: dict[str, list[list[int]]] = dataset.attrs["split_runs"]
            self.attributes: dict[str, Any] = dict(dataset.attrs)
            self.train_mean: NDArray[np.float64] = dataset["train_mean"].to_numpy()
            self.train_std: NDArray[np.float64] = dataset["train_std"].to_numpy()
            self.timesteps, self.n_features = dataset["features"].shape[1:]
            there = sorted(str(name) for name, array in dataset.items() if array.dims == ("sequence",))
        for name in extra:
            if name not in there:
                raise UsageError(f"{uri} has no variable {name} over sequence; it has {', '.join(there)}")
        self.uri = uri
        self._extra = tuple(extra)
        self._arrays = open_arrays(uri, folder_at(uri), ("features", "label", "recording", "valid", *extra))
        self.sequences_per_chunk = self._arrays["features"].chunk_size
        self._index, self._of = 0, 1
        self._rest: Rest = "keep"
        self._counts: dict[str, NDArray[np.int64]] = {}

    def part(self, index: int, of: int, rest: Rest = "keep") -> "Store":
        """Return the part of the store for trainer `index` of `of`.

        Each epoch, in its order, is divided into `of` consecutive parts. With `rest="keep"` the trainers together read
        every valid sequence once, and some of them one sequence more than others. Otherwise all of them read the same
        number of sequences and have the same number of steps, as collective steps require: with "drop", up to `of` - 1
        sequences are left out, in each epoch others; with "repeat", up to `of` - 1 are read by two trainers.

        Raises ValueError unless 0 <= index < of, and for another `rest`.
        """
        if not 0 <= index < of:
            raise ValueError(f"part {index} of {of}: the index must be at least 0 and less than the number of parts")
        if rest not in get_args(Rest):
            raise ValueError(f"rest = {rest!r}: it must be {', '.join(get_args(Rest))}")
        store = copy(self)
        store._index, store._of, store._rest = index, of, rest
        return store

    def runs(self, split: str) -> list[list[int]]:
        """Return the sequences [start, stop) of each run of a split; raises ValueError for a name of no split."""
        if split not in SPLITS:
            raise ValueError(f"{split!r} is no split of {self.uri}; it has {', '.join(self.split_runs)}")
        return self.split_runs.get(split, [])

    def chunks(self, split: str) -> NDArray[np.int64]:
        """Return the sequences [start, stop) of each chunk, or part of a chunk, in `split`: (chunk, 2)."""
        size = self.sequences_per_chunk
        parts = [np.empty((0, 2), np.int64)]
        for start, stop in self.runs(split):
            edges = np.arange(start // size, -(-stop // size) + 1, dtype=np.int64) * size
            np.clip(edges, start, stop, out=edges)
            parts.append(np.stack([edges[:-1], edges[1:]], axis=1))
        return np.concatenate(parts)

    @property
    def block_size(self) -> int:
        """Default number of sequences that are read together."""
        return POOL_CHUNKS * self.sequences_per_chunk

    def read(self, start: int, stop: int) -> Block:
        """Read the valid ones of the sequences [start, stop)."""
        return self._block([(start, stop)])

    def blocks(self, split: str, pool_chunks: int = POOL_CHUNKS) -> Iterator[Block]:
        """Yield a split in the order of the store, up to `pool_chunks` chunks per block."""
        if self._of > 1:
            yield from self._pools(self._share(split, slice(None)), pool_chunks)
            return
        for start, stop in self._spans(split, pool_chunks):
            block = self.read(start, stop)
            if len(block):
                yield block

    def shuffled_blocks(self, split: str, seed: int, epoch: int, pool_chunks: int = POOL_CHUNKS) -> Iterator[Block]:
        """Yield a split in an order that depends only on (seed, epoch).

        Chunks are drawn in random order, and the sequences of `pool_chunks` chunks at a time are mixed.
        """
        random = np.random.default_rng([seed, epoch])
        chunks = self.chunks(split)
        order = random.permutation(len(chunks))
        yield from self._pools(self._share(split, order) if self._of > 1 else chunks[order], pool_chunks, random)

    def sequences(self, split: str) -> int:
        """Return the number of sequences that an epoch of a split, or of this part of it, has."""
        start, stop = share(int(self._valid_counts(split).sum()), self._index, self._of, self._rest)
        return stop - start

    def _pools(
        self, chunks: NDArray[np.int64], pool_chunks: int, random: np.random.Generator | None = None
    ) -> Iterator[Block]:
        """Yield the chunks (chunk, 2), a pool of them at a time, in their order or shuffled within the pool."""
        for begin in range(0, len(chunks), pool_chunks):
            block = self._block(chunks[begin : begin + pool_chunks].tolist(), random)
            if len(block):
                yield block

    def _share(self, split: str, order: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """Return the trainer's part of the chunks of `split` in an `order`; the first and the last may be cut."""
        chunks, counts = self.chunks(split)[order], self._valid_counts(split)[order]
        ends = np.cumsum(counts)
        start, stop = share(int(counts.sum()), self._index, self._of, self._rest)
        if start == stop:
            return chunks[:0]
        first, last = int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, stop))
        begin = self._nth_valid(chunks[first], start - int(ends[first] - counts[first]))
        end = self._nth_valid(chunks[last], stop - 1 - int(ends[last] - counts[last])) + 1
        chosen = chunks[first : last + 1].copy()
        chosen[0, 0], chosen[-1, 1] = begin, end
        return chosen

    def _nth_valid(self, chunk: NDArray[np.int64], n: int) -> int:
        """Return the place in the store of valid sequence `n` of a chunk [start, stop)."""
        start, stop = (int(edge) for edge in chunk)
        return start + int(np.flatnonzero(self._arrays["valid"].read(start, stop))[n])

    def _valid_counts(self, split: str) -> NDArray[np.int64]:
        """Return the number of valid sequences of each chunk of `chunks(split)`: (chunk,)."""
        if split not in self._counts:
            size, counts = self.sequences_per_chunk, [np.empty(0, np.int64)]
            for start, stop in self.runs(split):
                counts.append(np.zeros(-(-stop // size) - start // size, np.int64))
                for begin in range(start, stop, self.block_size):
                    valid = self._arrays["valid"].read(begin, min(begin + self.block_size, stop))
                    found = np.bincount((begin + np.flatnonzero(valid)) // size - begin // size)
                    first = begin // size - start // size
                    counts[-1][first : first + len(found)] += found
            self._counts[split] = np.concatenate(counts)
        return self._counts[split]

    def _block(self, spans: Sequence[tuple[int, int]], random: np.random.Generator | None = None) -> Block:
        """Read the valid ones of the sequences [start, stop) of all spans, in the order of the store or shuffled."""
        read = {
            name: np.concatenate([self._arrays[name].read(*span) for span in spans])
            for name in ("valid", "label", "recording", *self._extra)
        }
        rows = np.flatnonzero(read["valid"])
        if random is not None:
            rows = rows[random.permutation(len(rows))]
        places = np.full(len(read["valid"]), -1, np.int64)
        places[rows] = np.arange(len(rows))
        features = _aligned((len(rows), self.timesteps, self.n_features))
        begin = 0
        for start, stop in spans:
            self._arrays["features"].scatter(start, stop, features, places[begin : begin + stop - start])
            begin += stop - start
        return Block(
            features=features,
            label=read["label"][rows].astype(np.int64),
            recording=read["recording"][rows],
            index=np.concatenate([np.arange(*span) for span in spans])[rows],
            extra={name: read[name][rows] for name in self._extra},
        )

    def label_counts(self, split: str) -> NDArray[np.int64]:
        """Return the number of valid sequences of each label in a split: (label,) int64."""
        counts = np.zeros(len(self.labels), np.int64)
        for start, stop in self._spans(split, POOL_CHUNKS):
            label = self._arrays["label"].read(start, stop)[self._arrays["valid"].read(start, stop)]
            counts += np.bincount(label, minlength=len(counts))
        return counts

    def _spans(self, split: str, pool_chunks: int) -> Iterator[tuple[int, int]]:
        """Yield the sequences [start, stop) of a split, up to `pool_chunks` chunks at a time."""
        step = pool_chunks * self.sequences_per_chunk
        for start, stop in self.runs(split):
            for begin in range(start, stop, step):
                yield begin, min(begin + step, stop)
