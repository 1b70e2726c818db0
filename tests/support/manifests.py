"""Manifests of recordings without files, for tests of splits and order."""

import io
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import strategies as st
from upath import UPath

from pipeline.config import PipelineConfig, SplitConfig
from pipeline.corpus.manifest import NOT_READ, ROWS_PER_GROUP, UNDIGESTED
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.digests import table_digest
from pipeline.durable_files import write_parquet
from pipeline.extraction import ledger
from pipeline.extraction.outcomes import Outcomes
from pipeline.extraction.plan import Plan
from pipeline.outputs import OutputFolder
from tests.conftest import Probe, make_manifest, make_probe

SHORT = 16_000 // 10  # samples: less than one sequence
FRACTIONS = SplitConfig()
LANGUAGES = ("de", "en", "fr")

speakers = st.one_of(st.none(), st.sampled_from("abcdefgh"))
recordings = st.lists(
    st.tuples(st.sampled_from(LANGUAGES), speakers, st.one_of(st.just(SHORT), st.integers(SHORT, 200_000))),
    max_size=40,
)


def path_of(language: str, speaker: str | None, number: int) -> str:
    return "/".join(part for part in (language, speaker, f"{number}.wav") if part is not None)


def probes_of(found: list[tuple[str, str | None, int]]) -> list[Probe]:
    """Probes of some recordings, and one usable recording more of each language."""
    usable = [(language, "usable in all", 100_000) for language in LANGUAGES]
    return [make_probe(path_of(*place, number), samples) for number, (*place, samples) in enumerate(found + usable)]


def build(probes: list[Probe], seed: int = 1, split: SplitConfig = FRACTIONS) -> pd.DataFrame:
    return make_manifest(probes, PipelineConfig(seed=seed, split=split))


def simple(speakers_of: dict[str, list[str]], seed: int = 1) -> pd.DataFrame:
    """One recording of a second for each speaker."""
    return build(
        [make_probe(f"{language}/{s}/0.wav") for language in speakers_of for s in speakers_of[language]], seed
    )


def split_of_speaker(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table["speaker"], table["split"], strict=True))


def read_table(path: UPath) -> pd.DataFrame:
    """The table at a path or URL."""
    return pd.read_parquet(io.BytesIO(path.read_bytes()))


def ledger_of(
    table: pd.DataFrame, outcomes: Iterable[Outcomes], config: PipelineConfig, size: int = 2
) -> pd.DataFrame:
    """The ledger of a manifest with row groups of `size` rows that is written nowhere."""
    with ledger.building(ManifestFile.of(table, size), outcomes, config, UPath("memory://nowhere")) as rows:
        return pd.concat(rows)


def plan_of(table: pd.DataFrame, config: PipelineConfig) -> Plan:
    """The plan of a manifest that is written nowhere."""
    return Plan.of(ManifestFile.of(table), config)


def recording_names(table: pd.DataFrame) -> pd.Series:
    """A name per row: for segments of one recording the smallest of their ids, otherwise the recording's own id."""
    names, segments = table["recording_id"], table["start_s"].notna()
    if not segments.any():
        return names
    parts = table[segments]
    smallest = parts["recording_id"].groupby([parts["uri"], parts["member"]], dropna=False).transform("min")
    return names.mask(segments, smallest)


def write_manifest(output: OutputFolder, manifest: pd.DataFrame) -> None:
    """Write the manifest of an output folder."""
    write_parquet(output.manifest, manifest, ROWS_PER_GROUP)


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


def rows_before(manifest: pd.DataFrame, append_index: int) -> pd.DataFrame:
    """Return the rows of the appends before `append_index`, from which the others are taken back.

    Where a row of a later append stands among them, it keeps its place as a recording that has failed.
    """
    held = (manifest["append_index"] < append_index).to_numpy()
    rows = manifest.iloc[: int(np.flatnonzero(held)[-1]) + 1]
    not_held = pd.Series(~held[: len(rows)], rows.index)
    return rows.assign(**{name: rows[name].mask(not_held, value) for name, value in NOT_READ.items()})
