"""Every extension that is read: libsndfile's formats in their own files, and headers whose numbers are altered."""

import random
from pathlib import Path

import pytest
import soundfile

from pipeline.corpus.layouts.folders import EXTENSIONS
from pipeline.features.audio import Header, read, read_header
from pipeline.features.audio_source import AudioError, AudioSource
from tests.conftest import noise

FORMATS = {
    ".aif": ("AIFF", "PCM_16"), ".aifc": ("AIFF", "ULAW"), ".aiff": ("AIFF", "PCM_24"), ".au": ("AU", "ULAW"),
    ".caf": ("CAF", "ALAC_16"), ".flac": ("FLAC", "PCM_16"), ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".nist": ("NIST", "PCM_16"), ".oga": ("OGG", "VORBIS"), ".ogg": ("OGG", "VORBIS"), ".opus": ("OGG", "OPUS"),
    ".rf64": ("RF64", "PCM_16"), ".snd": ("AU", "PCM_16"), ".sph": ("NIST", "ULAW"), ".voc": ("VOC", "PCM_16"),
    ".w64": ("W64", "PCM_16"), ".wav": ("WAV", "PCM_16"),
}  # fmt: skip
SOUND = noise("extensions", 4000).reshape(-1, 2)
MOST_SAMPLES_PER_BYTE = 6000
"""FLAC takes about a byte for a thousand samples of silence, and no format less than a sixth of that."""


def written(folder: Path, extension: str) -> Path:
    path = folder / f"x{extension}"
    file_format, subtype = FORMATS[extension]
    soundfile.write(path, SOUND, 16_000, format=file_format, subtype=subtype)
    return path


def test_every_extension_has_a_format() -> None:
    assert FORMATS.keys() == EXTENSIONS


@pytest.mark.parametrize("extension", sorted(FORMATS))
def test_files_are_read(tmp_path: Path, extension: str) -> None:
    source = AudioSource(str(written(tmp_path, extension)))
    assert read_header(source) == Header(2000, 16_000, 2)
    assert len(read(source, 16_000)) == 2000


@pytest.mark.parametrize("extension", sorted(FORMATS))
def test_a_header_names_no_more_than_the_bytes_can_hold(tmp_path: Path, extension: str) -> None:
    path = written(tmp_path, extension)
    sound, chosen = path.read_bytes(), random.Random(extension)
    for _ in range(30):
        data = bytearray(sound)
        begin, size = chosen.randrange(4, 100), chosen.choice((1, 2, 4, 8))
        data[begin : begin + size] = chosen.choice((b"\xff", b"\x7f\xff", b"\0", chosen.randbytes(8))) * size
        path.write_bytes(data)
        try:
            header = read_header(AudioSource(str(path)))
        except AudioError:
            continue
        assert 0 <= header.samples <= MOST_SAMPLES_PER_BYTE * len(data)
