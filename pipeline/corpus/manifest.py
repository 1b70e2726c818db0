"""The manifest: the table of all recordings with their splits and the places of their sequences in the store."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.corpus.sources import PART_COLUMNS, AudioSources, container_names
from pipeline.corpus.splits import assign_splits, stable_hash
from pipeline.digests import table_digest
from pipeline.durable_files import write_parquet
from pipeline.errors import UsageError, few
from pipeline.outputs import OutputFolder
from pipeline.schema import MANIFEST_COLUMNS, SPLITS
from pipeline.storage import can_be_read, read_parquet

HEADER_TYPES: Final = {
    "samples": "int64",
    "sample_rate_hz": "int32",
    "channels": "int32",
    "error": "string",
    "transient": "bool",
}
"""Columns and types of headers. Where a file has no header, `error` is the reason and the numbers are 0. `transient`
is true if the file system is the cause."""
ROWS_PER_GROUP: Final = 2**14
"""Rows of a row group of the file: workers read a few of them, and hold the statistics of all."""
UNDIGESTED: Final = ("uri", "append_index", "masked", "modified_ns", "transient")
"""Columns that the digest of a manifest does not cover: they may change without another store."""
MAX_SAMPLES_PER_BYTE: Final = 6_000
MAX_SAMPLES_OF_NOTHING: Final = 2**20
"""Bounds on the samples in a file. FLAC holds most: 65,535 samples of silence in a frame of 12 bytes (RFC 9639)."""
NOT_READ: Final = {"duration_s": 0.0, "frames": 0, "sequences": 0, "error": "not read yet", "modified_ns": -1}
"""Values of a row whose recording has to be read again."""
OLDER: Final = {"modified_ns": -1, "transient": False}
"""Values of columns that an older manifest does not have. No file has this time: what had failed is tried again."""


def read_manifest(output: OutputFolder) -> pd.DataFrame:
    """Read the manifest of an output folder; raises UsageError for one that lacks columns."""
    manifest = read_parquet(output.manifest)
    manifest = manifest.assign(**{name: value for name, value in OLDER.items() if name not in manifest})
    missing = [name for name in MANIFEST_COLUMNS if name not in manifest]
    if missing:
        raise UsageError(
            f"{output.manifest} was written by another version of the pipeline: it has no column {few(missing)}; "
            "choose another --out"
        )
    return manifest


def write_manifest(output: OutputFolder, manifest: pd.DataFrame) -> None:
    """Write the manifest of an output folder."""
    write_parquet(output.manifest, manifest, ROWS_PER_GROUP)


def build_manifest(
    recordings: pd.DataFrame, headers: pd.DataFrame, config: PipelineConfig, known: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the manifest of a corpus: one row per recording, in the order of the store.

    `recordings` is that of a Listing. `headers` has the same rows, in any order, and the columns HEADER_TYPES; for a
    segment it is the header of the whole audio. Raises UsageError where a language has no usable recording.

    The rows of `known`, an earlier manifest, do not change and come first. The other rows are an append: they are
    sorted among themselves, and their sequences follow those of `known`.
    """
    new = _describe(recordings, headers, config)
    new["append_index"], new["masked"] = np.int32(0), pd.array([None] * len(new), "string")
    if known is not None:
        new["append_index"] = np.int32(known["append_index"].max() + 1)
    everything = new if known is None else pd.concat([known, new], ignore_index=True)
    _check_languages(everything, config)
    usable_s = everything["duration_s"].where((everything["sequences"] > 0) & ~masked_rows(everything), 0.0)
    splits = assign_splits(everything, usable_s, config.split, config.seed)
    new = in_plan_order(new.assign(split=splits.to_numpy()[-len(new) :]), config.seed)
    if known is None:
        return new
    new["first_sequence"] += int(known["sequences"].sum())
    return pd.concat([known, new], ignore_index=True)


def in_plan_order(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the rows of one append in the order of the store, and number their sequences from 0.

    Rows are sorted by split (in the order of SPLITS) and within a split by a hash of seed and recording id, which
    mixes languages and speakers. The rows of one container share the hash and are sorted by member and start, so that
    one decoding reads them all.
    """
    if manifest[list(PART_COLUMNS)].notna().to_numpy().any():
        manifest = manifest.sort_values(["member", "start_s", "stop_s", "recording_id"])
    split_code = as_codes(manifest["split"], SPLITS)
    shuffled = np.array([stable_hash(seed, name) for name in container_names(manifest)], np.uint64)
    manifest = manifest.iloc[np.lexsort((shuffled, split_code))].reset_index(drop=True)
    manifest["first_sequence"] = (manifest["sequences"].cumsum() - manifest["sequences"]).astype(np.int64)
    return manifest[list(MANIFEST_COLUMNS)]


def compacted_manifest(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the manifest that a single run on the recordings that are not masked gives; splits do not change."""
    kept = manifest[~masked_rows(manifest)]
    return in_plan_order(kept.assign(append_index=np.int32(0), masked=pd.array([None] * len(kept), "string")), seed)


def masked_rows(manifest: pd.DataFrame) -> NDArray[np.bool_]:
    """Return for each recording whether it is masked, (row,) bool: the column `masked` holds the reason.

    NA stands for a recording that was never masked, an empty reason for one that is in use again.
    """
    return np.asarray(manifest["masked"].fillna("") != "", np.bool_)


def _describe(recordings: pd.DataFrame, headers: pd.DataFrame, config: PipelineConfig) -> pd.DataFrame:
    """Return the rows of a listing with the columns that follow from the headers."""
    from pipeline.features.audio import resampled_length  # noqa: PLC0415 loads decoders, which reading does not need

    rows = recordings.join(headers)
    rate_hz = rows["sample_rate_hz"]
    samples = _samples(recordings, rows.pop("samples"), rate_hz)
    rows["duration_s"] = (samples / rate_hz.where(rate_hz > 0, 1)).astype(np.float64)
    target_hz = config.features.sample_rate_hz
    frames = (
        config.features.frames(resampled_length(count, source_hz, target_hz)) if count else 0
        for count, source_hz in zip(samples, rate_hz, strict=True)
    )
    rows["frames"] = np.fromiter(frames, np.int64, len(rows))
    rows["sequences"] = rows["frames"] // config.store.timesteps
    return rows


def _samples(recordings: pd.DataFrame, in_file: pd.Series, rate_hz: pd.Series) -> pd.Series:
    """Return the samples of each recording, which is a segment of a file with the samples `in_file` or all of it."""
    if recordings["start_s"].isna().all():
        return in_file
    spans = zip(AudioSources(recordings), in_file, rate_hz, strict=True)
    return pd.Series([source.length(samples, hz) for source, samples, hz in spans], in_file.index, np.int64)


def _check_languages(manifest: pd.DataFrame, config: PipelineConfig) -> None:
    usable = manifest.groupby("label")["sequences"].sum()
    for label in usable.index[usable == 0]:
        rows = manifest[manifest["label"] == label]
        failed = int(rows["error"].notna().sum())
        short_s = config.store.timesteps * config.features.hop_s
        raise UsageError(
            f"language {label!r} has no usable recording ({failed} unreadable, {len(rows) - failed} shorter than "
            f"one sequence of {short_s:g} s{_first_error(rows)}); repair its files or remove the folder"
        )


def _first_error(rows: pd.DataFrame) -> str:
    """Return the first of the rows that cannot be read and its reason, if there is one, to go on after a list."""
    failed = rows[rows["error"].notna()].sort_values("recording_id")
    return f"; {failed['recording_id'].iloc[0]}: {failed['error'].iloc[0]}" if len(failed) else ""


def manifest_digest(manifest: pd.DataFrame) -> str:
    """Return a digest of the recordings and their places in the store.

    It does not depend on where the files lie, nor on which recordings are masked. A column counts only if it applies
    to a recording.
    """
    counted = manifest.drop(columns=list(UNDIGESTED))
    return table_digest(pa.Table.from_pandas(counted, preserve_index=False, nthreads=1))


def extends(manifest: pd.DataFrame, earlier_digest: str) -> bool:
    """Whether `manifest` is the manifest with the digest `earlier_digest` and one or more appends."""
    indices = range(int(manifest["append_index"].max()) - 1, -1, -1)
    return any(manifest_digest(manifest[manifest["append_index"] <= index]) == earlier_digest for index in indices)


def stored_rows(manifest: pd.DataFrame, stored_digest: str) -> pd.DataFrame:
    """Return the rows of `manifest` that a store of the manifest with the digest `stored_digest` holds.

    Later appends are not in the store yet: a scan may plan them anew, with headers that are read anew. Returns all
    rows for a store of another manifest.
    """
    for index in range(int(manifest["append_index"].max()), -1, -1):
        if manifest_digest(manifest[manifest["append_index"] <= index]) == stored_digest:
            return rows_before(manifest, index + 1)
    return manifest


def impossible_rows(manifest: pd.DataFrame) -> NDArray[np.int64]:
    """Return the rows with more samples than a file of their size can hold, as headers were once believed: (row,)."""
    samples = manifest["duration_s"] * manifest["sample_rate_hz"]
    return np.flatnonzero(samples > MAX_SAMPLES_PER_BYTE * manifest["size_bytes"] + MAX_SAMPLES_OF_NOTHING)


def rows_before(manifest: pd.DataFrame, append_index: int) -> pd.DataFrame:
    """Return the rows of the appends before `append_index`, from which the others are taken back.

    Where a row of a later append stands among them, it keeps its place as a recording that has failed.
    """
    held = (manifest["append_index"] < append_index).to_numpy()
    rows = manifest.iloc[: int(np.flatnonzero(held)[-1]) + 1]
    not_held = pd.Series(~held[: len(rows)], rows.index)
    return rows.assign(**{name: rows[name].mask(not_held, value) for name, value in NOT_READ.items()})


def unread_rows(manifest: pd.DataFrame, listing: pd.DataFrame) -> NDArray[np.int64]:
    """Return the rows of the manifest whose header could not be read and may be readable now: (row,) int64.

    Their file has another size or time in the `listing`, or it can be opened after a failure of the file system.
    """
    failed = manifest[manifest["error"].notna() & ~masked_rows(manifest)]
    now = listing[listing["unusable"].isna()].set_index("recording_id").reindex(failed["recording_id"])
    there = now["uri"].notna().to_numpy()
    differs = (now["size_bytes"].to_numpy() != failed["size_bytes"].to_numpy()) | (
        now["modified_ns"].to_numpy() != failed["modified_ns"].to_numpy()
    )
    opened = np.array([
        here and transient and not changed and can_be_read(uri)
        for here, transient, changed, uri in zip(there, failed["transient"], differs, now["uri"], strict=True)
    ], np.bool_)  # fmt: skip
    return np.asarray(failed.index[there & (differs | opened)], np.int64)


def with_rows_read(manifest: pd.DataFrame, built: pd.DataFrame, rows: NDArray[np.int64]) -> pd.DataFrame:
    """Return `manifest` with `rows` replaced, and the other new rows after it.

    `built` is the manifest of `build_manifest` whose known rows are those of `manifest` without `rows`. The rows keep
    their numbers, which the store refers to. Their sequences are those of the last append, to which they belong.
    """
    kept = manifest.drop(index=pd.Index(rows))
    fresh = built.iloc[len(kept) :].copy()
    fresh["append_index"] = np.int32(manifest["append_index"].max() + (0 if len(rows) else 1))
    ids = fresh["recording_id"].isin(manifest["recording_id"])
    place = dict(zip(manifest["recording_id"].iloc[rows], rows, strict=True))
    again = fresh[ids].set_index(fresh["recording_id"][ids].map(place).astype(np.int64).to_numpy())
    return pd.concat([pd.concat([kept, again]).sort_index(), fresh[~ids]], ignore_index=True)


def label_names(manifest: pd.DataFrame) -> tuple[str, ...]:
    """Return the labels in the order of their codes: sorted, the labels of each append after the earlier ones."""
    begun = manifest.groupby("label")["append_index"].min()
    return tuple(sorted(begun.index, key=lambda label: (begun[label], label)))


def languages_without(manifest: pd.DataFrame, split: str) -> list[str]:
    """Return the labels, sorted, that have no recording in `split` which is not masked and has sequences."""
    usable = (manifest["sequences"] > 0) & ~masked_rows(manifest)
    present = manifest["label"][(manifest["split"] == split) & usable]
    return sorted(set(manifest["label"].unique()) - set(present.unique()))


def as_codes(values: pd.Series, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the position of each value in `names`: (row,) int64."""
    return np.asarray(values.map({name: code for code, name in enumerate(names)}), np.int64)
