"""A speech corpus that anyone can make: espeak-ng reads texts aloud, or the demo's synthesiser makes syllables.

Every recording is written four times, with the same speech: FLAC and WAV at 16 kHz, MP3 and Opus at 48 kHz.
"""

import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pipeline.config import DemoConfig
from pipeline.demo.speech import SAMPLE_RATE_HZ, utterance
from tests.benchmarks.measure import SPAWN

Samples = NDArray[np.float32]

TEXTS: Final[Mapping[str, tuple[str, ...]]] = {
    "en": (
        "The ferry leaves at", "from the old pier behind the market.", "Nobody had counted the chairs, but there were",
        "of them in the hall.", "When the rain stopped, we walked along the river for", "minutes without a word.",
        "She keeps the letters in a tin box, number", "on the second shelf.",
    ),
    "de": (
        "Die Fähre legt um", "vom alten Steg hinter dem Markt ab.", "Niemand hatte die Stühle gezählt, es waren aber",
        "davon im Saal.", "Als der Regen aufhörte, gingen wir", "Minuten lang schweigend am Fluss entlang.",
        "Sie bewahrt die Briefe in einer Blechdose auf, Nummer", "auf dem zweiten Brett.",
    ),
    "fr": (
        "Le bac part à", "du vieux quai derrière le marché.", "Personne n'avait compté les chaises, il y en avait",
        "dans la salle.", "Quand la pluie a cessé, nous avons marché pendant", "minutes sans dire un mot.",
        "Elle garde les lettres dans une boîte en fer, numéro", "sur la deuxième étagère.",
    ),
    "es": (
        "El barco sale a las", "del viejo muelle detrás del mercado.", "Nadie había contado las sillas, pero había",
        "en la sala.", "Cuando paró la lluvia, caminamos durante", "minutos junto al río sin decir palabra.",
        "Ella guarda las cartas en una caja de lata, número", "en el segundo estante.",
    ),
}  # fmt: skip
VOICES: Final = ("m1", "m3", "m4", "m7", "f1", "f2", "f4", "f5")
SHORTEST_S, LONGEST_S, LONG_S = 2.0, 30.0, 600.0
LONG_PART = 0.2
"""Of the corpus, at most; a small one has no room for ten minutes in one piece."""
CODECS: Final = {
    "flac": (16_000, "FLAC", "PCM_16"),
    "wav": (16_000, "WAV", "PCM_16"),
    "mp3": (48_000, "MP3", "MPEG_LAYER_III"),
    "opus": (48_000, "OGG", "OPUS"),
}
WRITTEN_AT_ONCE_S = 10


@dataclass(frozen=True)
class Recording:
    """One recording; everything in it follows from `number` and `seconds`."""

    number: int
    language: str
    voice: str
    seconds: float


def make(folder: Path, hours: float) -> Path:
    """Return the folder of a corpus of so many hours, made if it is not there: CODEC/LANGUAGE/VOICE/file."""
    root = folder / f"corpus-{hours:g}h"
    finished = root / "corpus.json"
    facts = {"hours": hours, "voice": "espeak-ng" if shutil.which("espeak-ng") else "synthesiser"}
    if finished.exists() and json.loads(finished.read_text(encoding="utf-8")) == facts:
        return root
    shutil.rmtree(root, ignore_errors=True)
    with ProcessPoolExecutor(mp_context=SPAWN) as pool:
        for written in [pool.submit(write, root, recording) for recording in recordings(hours)]:
            written.result()
    finished.write_text(json.dumps(facts), encoding="utf-8")
    return root


def speaks(root: Path) -> str:
    """Return what made the speech."""
    return str(json.loads((root / "corpus.json").read_text(encoding="utf-8"))["voice"])


def long_recording(root: Path, codec: str) -> Path:
    """Return the one long recording."""
    return next((root / codec).rglob(f"00000.{codec}"))


def recordings(hours: float) -> Iterator[Recording]:
    """Yield the recordings of a corpus: a long one, then short ones until it is full."""
    left_s = hours * 3600
    random = np.random.default_rng([1])
    languages = list(TEXTS)
    number = 0
    while left_s > 0:
        seconds = min(LONG_S, left_s * LONG_PART) if number == 0 else float(random.uniform(SHORTEST_S, LONGEST_S))
        yield Recording(number, languages[number % len(languages)], VOICES[number // len(languages) % len(VOICES)],
                        round(seconds, 2))  # fmt: skip
        left_s -= seconds
        number += 1


def write(root: Path, recording: Recording) -> None:
    """Write a recording in all codecs."""
    samples, rate_hz = speech(recording)
    for codec, (target_hz, container, subtype) in CODECS.items():
        path = root / codec / recording.language / recording.voice / f"{recording.number:05d}.{codec}"
        path.parent.mkdir(parents=True, exist_ok=True)
        resampled = soxr.resample(samples, rate_hz, target_hz, quality="HQ")
        step = WRITTEN_AT_ONCE_S * target_hz
        with soundfile.SoundFile(path, "w", target_hz, 1, subtype, format=container) as file:
            for start in range(0, len(resampled), step):
                file.write(resampled[start : start + step])


def speech(recording: Recording) -> tuple[Samples, int]:
    """Return the samples (sample,) float32 of a recording, and their rate."""
    make_part = _espeak if shutil.which("espeak-ng") else _synthesised
    random = np.random.default_rng([2, recording.number])
    parts, held_s, rate_hz = [], 0.0, SAMPLE_RATE_HZ
    while held_s < recording.seconds:
        samples, rate_hz = make_part(recording, random)
        parts.append(samples)
        held_s += len(samples) / rate_hz
    return np.concatenate(parts)[: round(recording.seconds * rate_hz)], rate_hz


def text(language: str, random: np.random.Generator) -> str:
    """Return some sentences with numbers in them, which are words when they are read aloud."""
    halves = TEXTS[language]
    chosen = random.integers(len(halves) // 2, size=6) * 2
    return " ".join(f"{halves[i]} {random.integers(2, 999)} {halves[i + 1]}" for i in chosen)


def _espeak(recording: Recording, random: np.random.Generator) -> tuple[Samples, int]:
    command = [
        "espeak-ng", "--stdout", "-v", f"{recording.language}+{recording.voice}", "-s", str(random.integers(130, 190)),
        "-p", str(random.integers(30, 70)), text(recording.language, random),
    ]  # fmt: skip
    spoken = subprocess.run(command, capture_output=True, check=True)
    # the length in the header of a stream is not known yet, so libsndfile is told where it ends
    return _wav(spoken.stdout)


def _wav(content: bytes) -> tuple[Samples, int]:
    data = content.index(b"data") + 8
    rate_hz = int.from_bytes(content[24:28], "little")
    raw = io.BytesIO(content[data:])
    samples, _ = soundfile.read(raw, dtype="float32", samplerate=rate_hz, channels=1, format="RAW", subtype="PCM_16")
    return samples, rate_hz


def _synthesised(recording: Recording, random: np.random.Generator) -> tuple[Samples, int]:
    config = DemoConfig(utterance_s=LONGEST_S)
    language = sorted(TEXTS).index(recording.language) % 3
    return utterance(config, language, VOICES.index(recording.voice), int(random.integers(2**31))), SAMPLE_RATE_HZ


def linked(corpus: Path, root: Path, copies: int) -> Path:
    """Return a corpus in which every speaker is there `copies` times; the files are links, read from one cache."""
    if root.exists():
        return root
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for source in sorted(path for path in corpus.rglob("*") if path.is_file()):
        language, speaker, name = source.relative_to(corpus).parts
        for copy in range(copies):
            target = partial / language / f"{speaker}-{copy:04d}" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
    partial.rename(root)
    return root
