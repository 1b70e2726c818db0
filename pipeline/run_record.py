"""run.json: what each stage was given, what it wrote, and so whether it has to run again."""

import json
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import xxhash
from upath import UPath

from pipeline.errors import UsageError
from pipeline.outputs import OutputFolder
from pipeline.storage import write_atomically

LIBRARIES = (
    "dask", "distributed", "keras", "librosa", "numpy", "scipy", "soundfile", "soxr", "tensorflow", "xarray", "zarr",
)  # fmt: skip


class RunRecord:
    """The record of an output folder, read when made and written after each change."""

    def __init__(self, output: OutputFolder) -> None:
        self._output = output
        self._content: dict[str, Any] = {"stages": {}}
        self.changed = False
        """Whether a stage did anything since then."""
        if output.run.exists():
            self._content = _read(output.run)

    @property
    def stages(self) -> Mapping[str, Mapping[str, Any]]:
        """What each stage last did, by its name."""
        stages: dict[str, dict[str, Any]] = self._content["stages"]
        return stages

    def describe(self, **facts: Any) -> None:
        """Record facts about the run as a whole, beside the versions of Python and the libraries.

        A fact that is None is not known to this run, and stays as an earlier one gave it.
        """
        versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}
        known = {name: self._content.get(name) if fact is None else fact for name, fact in facts.items()}
        self._content = {**known, "versions": versions, "stages": self._content["stages"]}
        self._write()

    def unchanged(self, stage: str, key: str) -> bool:
        """Whether `stage` has run with the same inputs and settings (`key`), and its files are as it left them."""
        found = self.stages.get(stage)
        if found is None or found["key"] != key:
            return False
        return all(_digest(self._output.root / name) == digest for name, digest in found["outputs"].items())

    def record(self, stage: str, key: str, outputs: Iterable[UPath], **facts: Any) -> None:
        """Record that `stage` is done, with the files that prove it and what else is worth knowing."""
        self.changed = True
        self._content["stages"][stage] = {
            "key": key,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "outputs": self._digests(outputs),
            **facts,
        }
        self._write()

    def confirm(self, stage: str, key: str, outputs: Iterable[UPath]) -> None:
        """Record that `stage` has nothing to do for `key` either; what it did last stays on record."""
        done = self.stages.get(stage)
        if done is None:
            self.record(stage, key, outputs)
            return
        self._content["stages"][stage] = {**done, "key": key, "outputs": self._digests(outputs)}
        self._write()

    def _digests(self, outputs: Iterable[UPath]) -> dict[str, str | None]:
        prefix = len(self._output.root.parts)
        return {"/".join(path.parts[prefix:]): _digest(path) for path in outputs}

    def _write(self) -> None:
        write_atomically(self._output.run, json.dumps(self._content, indent=1, ensure_ascii=False).encode())


def _digest(path: UPath) -> str | None:
    """Return the digest of a file, or None where there is none."""
    try:
        return xxhash.xxh3_128_hexdigest(path.read_bytes())
    except FileNotFoundError:
        return None


def _read(path: UPath) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
        raise UsageError(f"{path} is not the record of a run; delete it: every stage is then checked anew")
    return content
