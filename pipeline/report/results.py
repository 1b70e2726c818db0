"""What an output folder holds for the report, and the pictures drawn from it."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd
from upath import UPath

from pipeline import run_record
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.durable_files import write_atomically
from pipeline.outputs import OutputFolder
from pipeline.report.picture import Picture
from pipeline.run_record import RunFile, StageRecord

if TYPE_CHECKING:
    from model.metrics.metrics_file import Metrics


@dataclass(frozen=True)
class Results:
    """What the stages have left in an output folder so far.

    `labels` are the languages of the corpus, sorted. `metrics` and `histories`, the epochs of the trainings, are keyed
    by the models in the settings.
    """

    output: OutputFolder
    manifest: ManifestFile
    labels: tuple[str, ...]
    run: RunFile
    metrics: Mapping[str, "Metrics"]
    histories: Mapping[str, pd.DataFrame]

    @classmethod
    def read(
        cls, output: OutputFolder, metrics: Mapping[str, "Metrics"], histories: Mapping[str, pd.DataFrame]
    ) -> "Results":
        """Read an output folder; raises PipelineError for a file that is damaged."""
        manifest = ManifestFile.at(output.manifest, whole=True)
        labels = tuple(sorted(manifest.label_names()))
        return cls(output, manifest, labels, run_record.read(output), metrics, histories)

    @property
    def has_ledger(self) -> bool:
        """Whether something was extracted."""
        return self.output.ledger.exists()

    @property
    def stages(self) -> Mapping[str, StageRecord]:
        """What each stage did last that the report shows."""
        return run_record.reported(self.run.stages)

    @property
    def hop_s(self) -> float | None:
        """Seconds from frame to frame, or None if no run is recorded."""
        return float(self.run.config["features"]["hop_s"]) if self.run.config else None

    @property
    def sequence_s(self) -> float | None:
        """Seconds in a sequence, or None if no run is recorded."""
        return None if self.hop_s is None else int(self.run.config["store"]["timesteps"]) * self.hop_s


@dataclass
class Pictures:
    """The page's pictures: written to `folder` as NAME.png, and kept in `sources` as data URLs.

    `boxes` are the characters in them that no installed font has.
    """

    folder: UPath
    sources: dict[str, str] = field(default_factory=dict)
    boxes: set[str] = field(default_factory=set)

    def add(self, name: str, picture: Picture) -> None:
        """Write and keep a picture."""
        write_atomically(self.folder / f"{name}.png", picture.png)
        self.sources[name] = "data:image/png;base64," + base64.b64encode(picture.png).decode()
        self.boxes |= picture.boxes
