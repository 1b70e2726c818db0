"""WAV headers: what they name, in every byte order and with every codec, and no bytes that make the parser fail."""

import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.riff import Wav, read

SOUND = np.random.default_rng(0).uniform(-0.5, 0.5, (3200, 2))
PCM = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
CODECS = {
    "PCM_U8": "PCM", "PCM_16": "PCM", "PCM_24": "PCM", "FLOAT": "IEEE float", "DOUBLE": "IEEE float",
    "ULAW": "µ-law", "ALAW": "A-law", "IMA_ADPCM": "IMA ADPCM", "MS_ADPCM": "MS ADPCM", "GSM610": "GSM 6.10",
    "NMS_ADPCM_16": "NMS ADPCM", "G721_32": "G.721 ADPCM",
}  # fmt: skip
MONO = {"GSM610", "NMS_ADPCM_16", "G721_32"}
UNREAD = {0x000A: "WMA Voice", 0x0057: "AMR-NB", 0x0161: "WMA 2", 0x028F: "G.722", 0x00FF: "AAC", 0xF1AC: "FLAC"}


def chunk(name: bytes, body: bytes, *, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + bytes(len(body) % 2)


def wav(*chunks: bytes, form: bytes = b"RIFF") -> bytes:
    return form + struct.pack("<I", 4 + len(b"".join(chunks))) + b"WAVE" + b"".join(chunks)


def header_of(data: bytes) -> Wav:
    header = read(io.BytesIO(data))
    assert header is not None
    return header


@pytest.mark.parametrize("subtype", CODECS)
def test_codecs_that_libsndfile_reads(subtype: str) -> None:
    file = io.BytesIO()
    sound = SOUND[:, 0] if subtype in MONO else SOUND
    soundfile.write(file, sound, 8_000, format="WAV", subtype=subtype)
    header = read(file)
    assert header is not None
    assert (header.codec, header.is_supported) == (CODECS[subtype], True)
    assert (header.sample_rate_hz, header.channels) == (8_000, sound.ndim)
    assert header.data_bytes == header.bytes_there


@pytest.mark.parametrize("tag", UNREAD)
def test_codecs_that_libsndfile_does_not_read(tag: int) -> None:
    data = wav(chunk(b"fmt ", struct.pack("<HHIIHH", tag, 1, 16_000, 32_000, 2, 16)), chunk(b"data", bytes(640)))
    header = header_of(data)
    assert (header.codec, header.is_supported) == (UNREAD[tag], False)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.SoundFile(io.BytesIO(data))


def test_an_unknown_codec_is_named_by_its_number() -> None:
    header = header_of(wav(chunk(b"fmt ", struct.pack("<HHIIHH", 0xBEEF, 1, 16_000, 0, 2, 16)), chunk(b"data", b"")))
    assert (header.codec, header.is_supported) == ("0xBEEF", False)


@pytest.mark.parametrize("file_format", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_forms(file_format: str, endian: str) -> None:
    if endian == "BIG" and file_format != "WAV":
        return
    file = io.BytesIO()
    soundfile.write(file, SOUND, 48_000, format=file_format, subtype="PCM_24", endian=endian)
    header = read(file)
    assert header is not None
    assert (header.format_tag, header.channels, header.sample_rate_hz, header.block_align) == (1, 2, 48_000, 6)
    assert header.data_bytes == header.bytes_there == SOUND.size * 3
    assert header.data_begin + SOUND.size * 3 == header.file_bytes == len(file.getvalue())


@pytest.mark.parametrize("named", [0, 100, 640, 0x7FFFFFFF, 0xFFFFFFFF])
def test_the_size_is_the_one_in_the_header(named: int) -> None:
    header = header_of(wav(chunk(b"fmt ", PCM), chunk(b"data", bytes(640), size=named)))
    assert (header.data_bytes, header.bytes_there, header.data_begin) == (named, 640, 44)


def test_the_size_of_rf64_is_in_its_own_chunk() -> None:
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, 5 * 2**32, 0, 0))
    data = chunk(b"data", bytes(64), size=0xFFFFFFFF)
    assert header_of(wav(ds64, chunk(b"fmt ", PCM), data, form=b"RF64")).data_bytes == 5 * 2**32


def test_other_chunks_are_skipped() -> None:
    odd = chunk(b"bext", b"odd")
    header = header_of(wav(odd, chunk(b"fmt ", PCM), odd, chunk(b"LIST", bytes(10_000)), chunk(b"data", bytes(64))))
    assert (header.data_bytes, header.bytes_there) == (64, 64)


def test_a_header_without_samples() -> None:
    header = header_of(wav(chunk(b"fmt ", PCM)))
    assert (header.data_bytes, header.bytes_there) == (None, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"RIFF", b"RIFF\0\0\0\0AVI ", wav(), wav(chunk(b"data", b"...."), chunk(b"fmt ", PCM)),
        wav(chunk(b"fmt ", PCM[:13]), chunk(b"data", b"....")), wav(chunk(b"fmt ", b"\xfe\xff" + PCM)),
    ],
)  # fmt: skip
def test_files_that_name_no_format(data: bytes) -> None:
    assert read(io.BytesIO(data)) is None


@given(
    st.sampled_from([b"RIFF", b"RIFX", b"RF64"]),
    st.lists(
        st.builds(
            chunk,
            st.sampled_from([b"fmt ", b"data", b"ds64", b"LIST", b"\0\0\0\0"]),
            st.binary(max_size=48) | st.just(PCM),
            size=st.none() | st.integers(0, 2**32 - 1),
        ),
        max_size=8,
    ),
    st.integers(0, 60),
)
def test_any_bytes_give_a_header_or_none(form: bytes, chunks: list[bytes], cut: int) -> None:
    data = wav(*chunks, form=form)
    header = read(io.BytesIO(data[: len(data) - cut]))
    assert header is None or (header.codec and 0 <= header.bytes_there <= header.file_bytes)


def test_empty_chunks_are_bounded_in_number() -> None:
    assert read(io.BytesIO(wav(chunk(b"junk", b"") * 100_000, chunk(b"fmt ", PCM)))) is None
