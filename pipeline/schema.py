"""Names, codes and places of everything that an output folder holds: the contract between the packages."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from upath import UPath
from upath.implementations.local import PosixUPath, WindowsUPath

from pipeline.errors import UsageError

SCHEMA_VERSION: Final = 1

SPLITS: Final = ("train", "validation", "test")
"""Splits in the order of their codes, and in the order in which a store holds them."""

STATUSES: Final = ("ok", "short", "filtered", "failed")
"""What can become of a recording, from best to worst; a recording in several shards ends as the worst."""

MANIFEST_COLUMNS: Final = (
    "recording_id", "uri", "label", "speaker", "split", "duration_s", "sample_rate_hz", "channels",
    "frames", "sequences", "first_sequence", "size_bytes", "error", "growth", "masked",
)  # fmt: skip
CHUNK_INDEX: Final = (("offset", "<u8"), ("nbytes", "<u8"))
"""A shard's index of its chunks, before the four bytes of its CRC32C at the end of the object."""
AS_OF: Final = "as-of-"
"""How the evaluations of models that served at some time are called among the others."""
LEDGER_COLUMNS: Final = ("recording_id", "status", "reason", "decoded_frames", "sequences_written")


_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")


def reason_kind(reason: str) -> str:
    """Return the kind of a reason: reasons that differ in their numbers alone ("ends after 3.2 s") are of one kind."""
    return _NUMBER.sub("…", reason)


@dataclass(frozen=True)
class Layout:
    """Where things are below the output folder (a path, or any URL that fsspec opens)."""

    root: UPath

    @classmethod
    def at(cls, uri: str) -> "Layout":
        """Return the layout of the output folder `uri`."""
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
    def compacted(self) -> "Layout":
        """Where compaction writes the new manifest, ledger and store; only there while it is under way."""
        return Layout(self.root / "compacted")

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


def flag_attributes(meanings: Sequence[str]) -> dict[str, Any]:
    """Return the CF attributes that say which code means what; codes count from 0 in the order given.

    CF separates `flag_meanings` by blanks (CF conventions, section 3.5), so a meaning must hold none.
    """
    if any(not name or len(name.split()) != 1 for name in meanings):
        raise ValueError(f"flag meanings must be words without white space, not {list(meanings)}")
    return {"flag_values": list(range(len(meanings))), "flag_meanings": " ".join(meanings)}


def flag_names(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the meanings in the order of their codes, the inverse of `flag_attributes`."""
    return tuple(str(attributes["flag_meanings"]).split())


def label_of_folder(folder: str) -> str:
    """Return the label for a language folder: its name with white space as `_`."""
    return "_".join(folder.split()) or "_"


def folder_at(uri: str) -> UPath:
    """Return the folder that a path or URL names; raises UsageError where no package is there that opens it."""
    try:
        return UPath(uri).absolute()
    except (ImportError, ValueError) as error:
        raise UsageError(f"{uri} cannot be opened: {error}") from None


def is_local(path: UPath) -> bool:
    """Whether `path` is on a file system of this machine."""
    return isinstance(path, PosixUPath | WindowsUPath)


def write_atomically(path: UPath, *parts: bytes | memoryview) -> None:
    """Write a file of `parts`, one after the other, that is never seen half-written; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):  # object stores show an object when it is whole
        path.write_bytes(b"".join(parts))
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(path)  # a full disk comes without the place
        raise
