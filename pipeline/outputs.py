"""The places of all files below an output folder."""

from dataclasses import dataclass
from itertools import chain

from upath import UPath

from pipeline.durable_files import clear_partial_files, partial_files
from pipeline.storage import folder_at, is_local


@dataclass(frozen=True)
class OutputFolder:
    """The places of all files below an output folder: `root`, a path or any URL that fsspec opens."""

    root: UPath

    @classmethod
    def at(cls, uri: str) -> "OutputFolder":
        """Return the output folder at `uri`; raises UsageError for a URL that no installed package opens."""
        return cls(folder_at(uri))

    @property
    def manifest(self) -> UPath:
        """The recordings, one row each, in the order of the store."""
        return self.root / "manifest.parquet"

    @property
    def headers(self) -> UPath:
        """The folder of the headers that a scan has read, until the manifest has them."""
        return self.root / "headers"

    @property
    def ledger(self) -> UPath:
        """The outcome of each recording, in the rows of the manifest."""
        return self.root / "ledger.parquet"

    @property
    def store(self) -> UPath:
        """The feature store."""
        return self.root / "features.zarr"

    @property
    def shards(self) -> UPath:
        """The folder of the shard records."""
        return self.root / "shards"

    def shard_record(self, index: int) -> UPath:
        """Return the place of the record of shard `index`, which exists once the shard is finished."""
        return self.shards / record_name(index)

    @property
    def metadata(self) -> UPath:
        """The copy of the metadata of the store, as JSON; the files *.json beside it are the records of shards."""
        return self.shards / "_metadata"

    @property
    def shard_digests(self) -> UPath:
        """The digests of the records of all finished shards, in the form that xxhsum reads."""
        return self.shards / "_digests"

    def model(self, name: str) -> UPath:
        """Return the folder of the model `name`."""
        return self.root / "models" / name

    def metrics(self, name: str) -> UPath:
        """Return the place of the evaluation of the model `name`."""
        return self.root / "metrics" / f"{name}.json"

    def scores(self, name: str) -> UPath:
        """Return the place of the scores of the model `name` on the test sequences."""
        return self.root / "metrics" / f"{name}.scores.parquet"

    @property
    def registry(self) -> UPath:
        """The folder of the promoted models and the decisions on them."""
        return self.root / "registry"

    @property
    def decisions(self) -> UPath:
        """All decisions on which model serves; the last one holds."""
        return self.registry / "registry.json"

    @property
    def registry_digests(self) -> UPath:
        """The digests of the other files of the registry."""
        return self.registry / "digests.json"

    def version(self, version: str) -> UPath:
        """Return the folder of a promoted model."""
        return self.registry / version

    @property
    def compacted(self) -> "OutputFolder":
        """Where compaction writes the new manifest, ledger and store; it exists only during a compaction."""
        return OutputFolder(self.root / "compacted")

    @property
    def complete(self) -> UPath:
        """In a folder of compaction: marks that it is complete and has to be swapped in."""
        return self.root / "complete"

    @property
    def demo_corpus(self) -> UPath:
        """The recordings of a demo."""
        return self.root / "corpus"

    @property
    def demo_key(self) -> UPath:
        """The digest of the settings of a demo's corpus."""
        return self.root / "corpus.key"

    @property
    def report(self) -> UPath:
        """The folder of the report, whose page is index.html."""
        return self.root / "report"

    @property
    def performance(self) -> UPath:
        """Dask's performance report on the last extraction."""
        return self.report / "dask.html"

    @property
    def series(self) -> UPath:
        """The progress of the last extraction over time, as CSV."""
        return self.report / "extraction.csv"

    @property
    def run(self) -> UPath:
        """The settings, the versions of the libraries, and the record of each stage."""
        return self.root / "run.json"

    @property
    def lock(self) -> UPath:
        """The lock of the run that is at work; it names the process."""
        return self.root / "run.lock"

    def clear_partial_files(self) -> None:
        """Delete files that killed commands left half-written.

        The folders of the variables in the store are left out: they have a folder per shard, and the end of an
        extraction clears them.
        """
        if is_local(self.root):
            deep = (self.root / name for name in ("models", "metrics", "registry", "report"))
            flat = [
                self.root,
                self.headers,
                self.shards,
                self.store,
                *self.store.glob("*/"),
                self.compacted.root,
                self.compacted.shards,
            ]
            found = chain.from_iterable(map(partial_files, flat))
            clear_partial_files([*found, *chain.from_iterable(partial_files(folder, deep=True) for folder in deep)])


def record_name(index: int) -> str:
    """Return the name of the file with the record of shard `index`."""
    return f"{index:08d}.json"
