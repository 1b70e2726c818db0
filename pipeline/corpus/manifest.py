"""The manifest: every recording with its split, and the place of its sequences in the store."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd
import xxhash
from numpy.typing import NDArray

from pipeline.config import PipelineConfig, SplitConfig
from pipeline.errors import UsageError, few
from pipeline.outputs import OutputFolder
from pipeline.schema import MANIFEST_COLUMNS, SPLITS
from pipeline.storage import read_parquet

HEADER_TYPES: Final = {"samples": "int64", "sample_rate_hz": "int32", "channels": "int32", "error": "string"}
"""Columns and types of what the headers say; where there is no header, `error` says why and the others are 0."""

ROWS_AT_ONCE = 2**16


def read(output: OutputFolder) -> pd.DataFrame:
    """Read the manifest of an output folder; raises UsageError for one of an earlier version."""
    table = read_parquet(output.manifest)
    missing = [name for name in MANIFEST_COLUMNS if name not in table]
    if missing:
        raise UsageError(
            f"{output.manifest} was written by another version of the pipeline: it has no column {few(missing)}; take "
            "another --out"
        )
    return table


def build(
    recordings: pd.DataFrame, headers: pd.DataFrame, config: PipelineConfig, known: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Build the manifest, one row a recording in plan order, as a function of the corpus and `config`.

    `recordings` is that of a Listing; `headers` has the same rows, in any order, and the columns of HEADER_TYPES.
    Rows are sorted by split (in the order of SPLITS) and, within a split, by a hash of seed and recording id, so
    that reading the store in order meets languages and speakers mixed. Raises UsageError where a language has no
    usable recording.

    The rows of `known`, an earlier manifest, stay as they are and come first. The others, an append of it, are sorted
    among themselves, and their sequences follow those of `known`.
    """
    table = _describe(recordings, headers, config)
    table["append_index"], table["masked"] = np.int32(0), pd.array([None] * len(table), "string")
    if known is not None:
        table["append_index"] = np.int32(known["append_index"].max() + 1)
    everything = table if known is None else pd.concat([known, table], ignore_index=True)
    _check_languages(everything, config)
    splits = assign_splits(everything, config.split, config.seed)
    new = in_plan_order(table.assign(split=splits.to_numpy()[-len(table) :]), config.seed)
    if known is None:
        return new
    new["first_sequence"] += int(known["sequences"].sum())
    return pd.concat([known, new], ignore_index=True)


def in_plan_order(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the rows of a manifest in the order of a single run, and their sequences one after the other."""
    split_code = as_codes(table["split"], SPLITS)
    shuffled = np.array([stable_hash(seed, name) for name in table["recording_id"]], np.uint64)
    table = table.iloc[np.lexsort((shuffled, split_code))].reset_index(drop=True)
    table["first_sequence"] = (table["sequences"].cumsum() - table["sequences"]).astype(np.int64)
    return table[list(MANIFEST_COLUMNS)]


def compacted(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the manifest of a single run on the recordings that are not masked, each in the split that it has."""
    table = manifest[~masked(manifest)]
    return in_plan_order(table.assign(append_index=np.int32(0), masked=pd.array([None] * len(table), "string")), seed)


def masked(manifest: pd.DataFrame) -> NDArray[np.bool_]:
    """Return for each recording whether it is masked: the column `masked` has the reason.

    NA stands for one that never was, and an empty reason for one that is in use again.
    """
    return np.asarray(manifest["masked"].fillna("") != "", np.bool_)


def _describe(recordings: pd.DataFrame, headers: pd.DataFrame, config: PipelineConfig) -> pd.DataFrame:
    """One row a recording: what the listing and the header say, and the frames and sequences that follow."""
    from pipeline.features.audio import resampled_length  # noqa: PLC0415 not for who reads a manifest

    table = recordings.join(headers)
    samples, rate_hz = table.pop("samples"), table["sample_rate_hz"]
    table["duration_s"] = (samples / rate_hz.where(rate_hz > 0, 1)).astype(np.float64)
    target_hz = config.features.sample_rate_hz
    frames = (
        config.features.frames(resampled_length(count, source_hz, target_hz)) if count else 0
        for count, source_hz in zip(samples, rate_hz, strict=True)
    )
    table["frames"] = np.fromiter(frames, np.int64, len(table))
    table["sequences"] = table["frames"] // config.store.timesteps
    return table


def _check_languages(table: pd.DataFrame, config: PipelineConfig) -> None:
    usable = table.groupby("label")["sequences"].sum()
    for label in usable.index[usable == 0]:
        rows = table[table["label"] == label]
        failed = int(rows["error"].notna().sum())
        short_s = config.store.timesteps * config.features.hop_s
        raise UsageError(
            f"language {label!r} has no usable recording ({failed} unreadable, {len(rows) - failed} shorter than "
            f"{short_s:g} s); mend its files or take the folder away"
        )


def assign_splits(table: pd.DataFrame, fractions: SplitConfig, seed: int) -> pd.Series:
    """Return the split of each row of `table`.

    Of its columns, recording_id, label, speaker, duration_s, sequences, masked and split count; there is no split
    yet where it is NA, or where there is no such column.

    All recordings of a speaker fall into one split; a recording without a speaker counts as a speaker of its own.
    Within a language the speakers, in the order of a stable hash of seed and name, go to training until its
    fraction of the language's duration is reached, then to validation, then to test; but the first goes to
    training, the second to test and the third to validation whatever the fractions, so that a language with few
    speakers can be trained before it can be tested. A speaker of several languages keeps the split that the first
    of them, by name, gave.

    Speakers that have a split keep it, and count first: the new ones of a language fill the splits that are empty, in
    the order training, test, validation, and then go on filling the fractions of what the language now has. So the
    splits depend on which recordings came together. A speaker that is known keeps the split even if nothing of it is
    usable, or all of it masked.
    """
    speaker = _speakers(table)
    usable_s = table["duration_s"].where((table["sequences"] > 0) & ~masked(table), 0.0)
    duration_s = usable_s.groupby([table["label"], speaker]).sum()
    split_of: dict[str, str] = {}
    if "split" in table:
        known = table["split"].notna()
        split_of = dict(zip(speaker[known], table["split"][known], strict=True))
    for label in duration_s.index.unique(level=0):
        _split_language(duration_s[label].to_dict(), fractions, seed, split_of)
    # a speaker of whom nothing is usable in any language decides nothing
    return speaker.map(split_of).fillna("train")


def speaker_codes(manifest: pd.DataFrame) -> NDArray[np.int64]:
    """Return a number for the speaker of each row: (row,) int64; a recording without one is a speaker of its own."""
    return np.asarray(pd.factorize(_speakers(manifest))[0], np.int64)


def _speakers(table: pd.DataFrame) -> pd.Series:
    # no path holds a NUL, so a recording never passes for a speaker
    return table["speaker"].fillna("\0" + table["recording_id"])


def _split_language(
    duration_s: Mapping[str, float], fractions: SplitConfig, seed: int, split_of: dict[str, str]
) -> None:
    """Give each speaker of one language a split in `split_of`, unless another language gave one already."""
    held_s = dict.fromkeys(SPLITS, 0.0)
    for name, seconds in duration_s.items():
        if name in split_of:
            held_s[split_of[name]] += seconds
    new = sorted((name for name in duration_s if name not in split_of), key=lambda name: stable_hash(seed, name))
    usable = [name for name in new if duration_s[name] > 0]
    empty = [split for split in ("train", "test", "validation") if held_s[split] == 0]
    for name, split in zip(usable, empty, strict=False):
        split_of[name] = split
        held_s[split] += duration_s[name]
    total_s = sum(duration_s.values())
    for name in usable[len(empty) :]:
        # the split in whose part of the duration the middle of the speaker falls
        middle_s = duration_s[name] / 2
        if held_s["train"] + middle_s <= fractions.train * total_s:
            split = "train"
        elif held_s["validation"] + middle_s <= fractions.validation * total_s:
            split = "validation"
        else:
            split = "test"
        split_of[name] = split
        held_s[split] += duration_s[name]


def stable_hash(seed: int, name: str) -> int:
    """Return a 64-bit hash that is the same on every machine and in every Python."""
    text = f"{seed}\0{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def digest(manifest: pd.DataFrame) -> str:
    """Return a digest of the recordings and their places in the store, wherever they lie and whatever is masked."""
    state = xxhash.xxh3_128()
    for name in manifest.columns.drop(["uri", "append_index", "masked"]):
        state.update(name.encode())
        for start in range(0, len(manifest), ROWS_AT_ONCE):  # text becomes Python objects
            values = manifest[name].iloc[start : start + ROWS_AT_ONCE]
            state.update(pd.util.hash_pandas_object(values, index=False).to_numpy().tobytes())
    return state.hexdigest()


def extends(manifest: pd.DataFrame, earlier_digest: str) -> bool:
    """Whether `manifest` is an append of the one with the digest `earlier_digest`."""
    indices = range(int(manifest["append_index"].max()) - 1, -1, -1)
    return any(digest(manifest[manifest["append_index"] <= index]) == earlier_digest for index in indices)


def labels(manifest: pd.DataFrame) -> tuple[str, ...]:
    """Return the labels in the order of their codes: sorted, and those of each append after those there were."""
    begun = manifest.groupby("label")["append_index"].min()
    return tuple(sorted(begun.index, key=lambda label: (begun[label], label)))


def split_runs(manifest: pd.DataFrame) -> dict[str, list[list[int]]]:
    """Return where each split's sequences are: {split: [[start, stop], …]}, no entry for an empty split."""
    rows = manifest[manifest["sequences"] > 0]
    code = as_codes(rows["split"], SPLITS)
    begins = np.flatnonzero(np.diff(code, prepend=-1))
    starts = [*rows["first_sequence"].iloc[begins].tolist(), int(rows["sequences"].sum())]
    runs: dict[str, list[list[int]]] = {}
    for i in np.argsort(code[begins], kind="stable"):
        runs.setdefault(SPLITS[code[begins[i]]], []).append(starts[i : i + 2])
    return runs


def languages_without(manifest: pd.DataFrame, split: str) -> list[str]:
    """Return the labels that have no sequence in `split`."""
    present = manifest[(manifest["split"] == split) & (manifest["sequences"] > 0) & ~masked(manifest)]["label"]
    return sorted(set(labels(manifest)) - set(present))


def as_codes(values: pd.Series, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the position of each value in `names`."""
    return np.asarray(values.map(_code_of(names)), np.int64)


def _code_of(names: Sequence[str]) -> dict[str, int]:
    return {name: code for code, name in enumerate(names)}
