"""Files as people have them beside good recordings: each is read as far as it can be, or costs itself alone."""

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import soundfile

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.extraction.extract import extract
from pipeline.outputs import OutputFolder
from pipeline.runtime.executor import SerialExecutor
from tests.conftest import noise
from tests.support.scans import scanned

CONFIG = PipelineConfig(store=StoreConfig(sequences_per_chunk=64, chunks_per_shard=2))
RATE_HZ = 16_000
SOUND = noise("bad files", 2 * RATE_HZ)


def encoded(file_format: str, *, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SOUND, RATE_HZ, format=file_format, subtype=subtype)
    return file.getvalue()


def flac_named(samples: int) -> bytes:
    """A FLAC file whose STREAMINFO names this many samples: 36 bits at byte 21.5 (RFC 9639, section 8.2)."""
    data = bytearray(encoded("FLAC"))
    fields = int.from_bytes(data[18:26], "big")
    data[18:26] = (fields >> 36 << 36 | samples).to_bytes(8, "big")
    return bytes(data)


def wav_of(samples: bytes) -> bytes:
    return encoded("WAV", subtype="PCM_16")[:44] + samples


def wav_named(*, rate: int = RATE_HZ, data_bytes: int | None = None, tag: int = 1) -> bytes:
    data = bytearray(encoded("WAV", subtype="PCM_16"))
    struct.pack_into("<H", data, 20, tag)
    struct.pack_into("<I", data, 24, rate)
    if data_bytes is not None:
        struct.pack_into("<I", data, 40, data_bytes)
    return bytes(data)


def granule_named(data: bytes, granule: int) -> bytes:
    """An Ogg file whose last page names this position; libogg needs the right checksum."""
    begin = data.rindex(b"OggS")
    page = bytearray(data[begin:])
    struct.pack_into("<q", page, 6, granule)
    struct.pack_into("<I", page, 22, 0)
    crc = 0
    for byte in page:  # RFC 3533, section 6
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    struct.pack_into("<I", page, 22, crc)
    return data[:begin] + bytes(page)


def size_0(data: bytes, begin: int) -> bytes:
    return data[:begin] + bytes(4) + data[begin + 4 :]


def empty_ds64() -> bytes:
    """RF64 as a recorder that crashed leaves it: sizes of 0 in the ds64 chunk (EBU Tech 3306)."""
    data = encoded("RF64")
    return data[:20] + bytes(24) + data[44:]


MP3, VORBIS, FLAC = encoded("MP3"), encoded("OGG"), encoded("FLAC")
OPUS = encoded("OGG", subtype="OPUS")
XING = MP3.index(b"Xing")
SOUND_BEGIN = 288  # behind the frame that is the length header
ID3 = b"ID3\4\0\0\0\0\x10\0" + bytes(2048)

# name → bytes, status, seconds of features, pattern of the reason
FILES: dict[str, tuple[bytes, str, float, str]] = {
    "largest length.flac": (flac_named(2**36 - 1), "short", 2.0, "header names"),
    "no length.flac": (flac_named(0), "ok", 2.0, "^$"),
    "absurd position.ogg": (granule_named(VORBIS, 2**40), "short", 2.0, "^ends at 2.000 s, its header names"),
    "absurd position.opus": (granule_named(OPUS, 2**50), "short", 2.0, "^ends at 2.00. s, its header names"),
    "chained.ogg": (VORBIS + VORBIS, "ok", 4.0, "^$"),
    "chained.opus": (OPUS + OPUS, "ok", 4.0, "^$"),
    "without header.mp3": (MP3[SOUND_BEGIN:], "ok", 2.0, "^$"),
    "absurd frames.mp3": (
        MP3[: XING + 8] + b"\xff" * 4 + MP3[XING + 12 :],
        "short",
        2.0,
        "more frames than the file holds",
    ),
    "zeros in front.mp3": (bytes(400) + MP3, "ok", 2.0, "^$"),
    "tag and zeros in front.mp3": (ID3 + bytes(2000) + MP3, "ok", 2.0, "^$"),
    "zeros behind.mp3": (MP3[SOUND_BEGIN:] + bytes(4096), "ok", 2.0, "^$"),
    "joined.mp3": (MP3 + MP3, "ok", 4.0, "^$"),
    "size 0.wav": (wav_named(data_bytes=0), "ok", 2.0, "^$"),
    "streamed.wav": (wav_named(data_bytes=0xFFFFFFFF), "ok", 2.0, "^$"),
    "empty ds64.wav": (empty_ds64(), "ok", 2.0, "^$"),
    "cut.wav": (encoded("WAV")[:32_044], "short", 1.0, "^ends at 1.000 s, its header names 2.000 s"),
    "size 0.au": (size_0(encoded("AU"), 8), "failed", 0.0, "no samples, but the file has 64,024 bytes"),
    "rate 0.sph": (encoded("NIST").replace(b"-i 16000", b"-i 0    "), "failed", 0.0, "header contradicts itself"),
    "silent.wav": (wav_of(bytes(64_000)), "ok", 2.0, "^silent: "),
    "rate 1.wav": (wav_named(rate=1), "failed", 0.0, "rate"),
    "rate 2147483647.wav": (wav_named(rate=2**31 - 1), "failed", 0.0, "rate"),
    "g722.wav": (wav_named(tag=0x028F), "failed", 0.0, r"G\.722"),
    "page.mp3": (b"<!DOCTYPE html><html><body>404</body></html>" * 20, "failed", 0.0, "HTML"),
    "pointer.wav": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "failed", 0.0, "Git LFS"),
    "zeros.wav": (bytes(64_000), "failed", 0.0, "zeros"),
    "empty.wav": (b"", "failed", 0.0, "empty"),
    "phone.wav": (b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom" + bytes(range(256)) * 9, "failed", 0.0, "MP4"),
    "half.flac": (FLAC[: len(FLAC) // 2], "short", 0.9, r"\d s"),
}


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Path]) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("bad")
    corpus = make_corpus(folder / "corpus", {"de": {"a": 1, "b": 1}, "en": {"c": 1, "d": 1}})
    for name, (data, *_) in FILES.items():
        path = corpus / "en" / name / name  # a speaker of its own
        path.parent.mkdir()
        path.write_bytes(data)
    output = OutputFolder.at(str(folder / "out"))
    table = scanned(corpus, output, CONFIG)
    extract(output, ManifestFile.of(table), CONFIG, SerialExecutor())
    store = [path for path in (folder / "out").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in store) < 10_000_000
    return pd.read_parquet(str(output.ledger)).set_index("recording_id")


@pytest.mark.parametrize("name", FILES)
def test_each_costs_itself_alone(ledger: pd.DataFrame, name: str) -> None:
    _, status, seconds, reason = FILES[name]
    row = ledger.loc[f"en/{name}/{name}"]
    assert (row["status"], bool(re.search(reason, row["reason"]))) == (status, True), row["reason"]
    assert row["decoded_frames"] * CONFIG.features.hop_s == pytest.approx(seconds, abs=0.15)


def test_good_recordings_are_whole(ledger: pd.DataFrame) -> None:
    good = ledger[ledger.index.str.match(r"(de|en)/[abcd]/")]
    assert list(good["status"]) == ["ok"] * 4
