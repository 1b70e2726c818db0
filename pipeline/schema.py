"""Names, types and codes of what an output folder holds: the contract between the packages."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

SCHEMA_VERSION: Final = 2
"""The version of the store's layout, names and codes; stores of other versions are refused."""

SPLITS: Final = ("train", "validation", "test")
"""Splits in the order of their codes, which is also their order in a store."""

STATUSES: Final = ("ok", "short", "filtered", "failed")
"""Outcomes of a recording, from best to worst; a recording in several shards gets the worst of them."""

MANIFEST_COLUMNS: Final = (
    "recording_id", "uri", "member", "start_s", "stop_s", "label", "speaker", "split", "duration_s",
    "sample_rate_hz", "channels", "frames", "sequences", "first_sequence", "size_bytes", "error",
    "append_index", "masked", "modified_ns", "transient",
)  # fmt: skip
ENDS_EARLY: Final = "before the end its header names"
"""End of the reason of a recording that is sound and short; only its last sequences are missing."""
LEDGER_COLUMNS: Final = ("recording_id", "status", "reason", "decoded_frames", "sequences_written")

CHUNK_INDEX: Final = (("offset", "<u8"), ("nbytes", "<u8"))
"""Entry of a shard's chunk index, which is followed by its CRC32C (4 bytes) at the end of the object."""

SILENT: Final = "silent: "
"""How the reason begins for a recording that holds no sound."""

AS_OF: Final = "as-of-"
"""Prefix of the names of evaluations of the model that was serving at a given time."""

FEATURE: Final = "feature"
"""In the dimensions of a variable: stands for the dimensions of the front end, such as `mfcc`."""


class Variable(NamedTuple):
    """A variable of the store.

    `dtype` is NumPy's name of the type, `fill` the value where nothing was written, `meaning` the attribute
    `long_name`, `units` the attribute of that name. A `computed` variable depends on the audio: appending and
    compacting copy it. The others follow from the plan.
    """

    name: str
    dtype: str
    dims: tuple[str, ...]
    fill: float
    meaning: str
    units: str = ""
    computed: bool = False

    def attributes(self) -> dict[str, str]:
        """Return the CF attributes of the variable."""
        return {"long_name": self.meaning, **({"units": self.units} if self.units else {})}


SEQUENCE_VARIABLES: tuple[Variable, ...] = (
    Variable("features", "float32", ("sequence", "timestep", FEATURE), float("nan"),
             "features of each frame; NaN where valid is false", computed=True),
    Variable("label", "uint16", ("sequence",), 0, "language"),
    Variable("split", "uint8", ("sequence",), 0, "split by speaker"),
    Variable("recording", "uint32", ("sequence",), 0, "row of manifest.parquet"),
    Variable("start_frame", "uint32", ("sequence",), 0, "first frame of the sequence within its recording"),
    Variable("valid", "bool", ("sequence",), 0, "false where the recording failed or fell short", computed=True),
)  # fmt: skip
"""The variables over `sequence`, which shards fill.

To add one, add its row here and the line that computes it in `pipeline.extraction.shard` (COMPUTED or PLANNED).
"""

SHARED_VARIABLES: Final = (
    Variable("timestep", "float32", ("timestep",), float("nan"), "time from the start of the sequence", units="s"),
    Variable("train_mean", "float64", (FEATURE,), float("nan"), "mean over the frames of valid training sequences"),
    Variable("train_std", "float64", (FEATURE,), float("nan"),
             "standard deviation over the frames of valid training sequences"),
    Variable("train_count", "int64", (), 0, "frames of valid training sequences"),
)  # fmt: skip
"""The other variables, beside an index (int32) over each dimension of the front end."""


def computed_names() -> tuple[str, ...]:
    """Return the names of the variables over `sequence` that depend on the audio."""
    return tuple(variable.name for variable in SEQUENCE_VARIABLES if variable.computed)


def version_mismatch(store: str, found: object) -> str | None:
    """Return why a store with the schema version `found` cannot be used, in one line, or None if it can."""
    if found == SCHEMA_VERSION:
        return None
    return (
        f"{store} has schema version {found}, but this version of the pipeline needs {SCHEMA_VERSION}; choose another "
        "--out, or use the version of the pipeline that wrote the store"
    )


_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)*")


def reason_kind(reason: str) -> str:
    """Return `reason` with `…` for each number: "ends after 3.2 s" and "ends after 7 s" are of one kind."""
    return _NUMBER.sub("…", reason)


def flag_attributes(meanings: Sequence[str]) -> dict[str, Any]:
    """Return the CF attributes that map codes, counted from 0, to `meanings`.

    `flag_meanings` is separated by blanks (CF conventions, section 3.5): raises ValueError for a meaning that is empty
    or contains white space.
    """
    if any(not name or len(name.split()) != 1 for name in meanings):
        raise ValueError(f"flag meanings must be words without white space, not {list(meanings)}")
    return {"flag_values": list(range(len(meanings))), "flag_meanings": " ".join(meanings)}


def flag_names(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the meanings in the order of their codes: the inverse of `flag_attributes`."""
    return tuple(str(attributes["flag_meanings"]).split())


def label_of_folder(folder: str) -> str:
    """Return the label of a language folder: its name with each run of white space replaced by `_`."""
    return "_".join(folder.split()) or "_"
