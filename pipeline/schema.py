"""Names and codes of what an output folder holds: the contract between the packages."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

SCHEMA_VERSION: Final = 1

SPLITS: Final = ("train", "validation", "test")
"""Splits in the order of their codes, and in the order in which a store holds them."""

STATUSES: Final = ("ok", "short", "filtered", "failed")
"""What can become of a recording, from best to worst; a recording in several shards ends as the worst."""

MANIFEST_COLUMNS: Final = (
    "recording_id", "uri", "label", "speaker", "split", "duration_s", "sample_rate_hz", "channels",
    "frames", "sequences", "first_sequence", "size_bytes", "error", "append_index", "masked",
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
