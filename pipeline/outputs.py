"""Where each file lies below an output folder."""

from dataclasses import dataclass

from upath import UPath

from pipeline.storage import folder_at


@dataclass(frozen=True)
class OutputFolder:
    """The places of all files below an output folder, which is a path or any URL that fsspec opens."""

    root: UPath

    @classmethod
    def at(cls, uri: str) -> "OutputFolder":
        """Return the output folder at `uri`; raises UsageError for a URL that no installed package opens."""
        return cls(folder_at(uri))

    @property
    def manifest(self) -> UPath:
        """One row a recording, in plan order."""
        return self.root / "manifest.parquet"

    @property
    def ledger(self) -> UPath:
        """One row a recording: what became of it."""
        return self.root / "ledger.parquet"

    @property
    def store(self) -> UPath:
        """The feature store."""
        return self.root / "features.zarr"

    @property
    def shards(self) -> UPath:
        """One record a finished shard."""
        return self.root / "shards"

    def shard_record(self, index: int) -> UPath:
        """Return the place of the record that says that shard `index` is finished."""
        return self.shards / f"{index:08d}.json"

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
        """The models that serve or have served, and the decisions on them."""
        return self.root / "registry"

    @property
    def decisions(self) -> UPath:
        """Every decision on which model serves; what it says last is so."""
        return self.registry / "registry.json"

    def version(self, version: str) -> UPath:
        """Return the folder of a promoted model."""
        return self.registry / version

    @property
    def compacted(self) -> "OutputFolder":
        """Where compaction writes the new manifest, ledger and store; only there while it is under way."""
        return OutputFolder(self.root / "compacted")

    @property
    def complete(self) -> UPath:
        """In a folder of compaction: it is finished, and has to change places with what is there."""
        return self.root / "complete"

    @property
    def demo_corpus(self) -> UPath:
        """The demo's recordings; only a demo has them."""
        return self.root / "corpus"

    @property
    def demo_key(self) -> UPath:
        """Digest of the settings of the demo's corpus; only a demo has it."""
        return self.root / "corpus.key"

    @property
    def report(self) -> UPath:
        """The report's folder; its page is index.html."""
        return self.root / "report"

    @property
    def performance(self) -> UPath:
        """Dask's performance report of the last extraction."""
        return self.report / "dask.html"

    @property
    def series(self) -> UPath:
        """How the last extraction went over time, as CSV."""
        return self.report / "extraction.csv"

    @property
    def run(self) -> UPath:
        """Configuration, versions, and what each stage did."""
        return self.root / "run.json"
