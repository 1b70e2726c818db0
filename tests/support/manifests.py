"""Manifests of recordings without files, for tests of splits and order."""

import pandas as pd
from hypothesis import strategies as st

from pipeline.config import PipelineConfig, SplitConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.extraction.plan import Plan
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


def plan_of(table: pd.DataFrame, config: PipelineConfig) -> Plan:
    """The plan of a manifest that is written nowhere."""
    return Plan.of(ManifestFile.of(table), config)
