"""Kinds of files that are not read as audio, by their first bytes."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.file_kind import HEAD_BYTES, describe


def a_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.wav", b"RIFF")
    return file.getvalue()


def a_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.wav"))
    return file.getvalue()


def an_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(9))
    return file.getvalue()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "MP4/AAC"),
        (b"\0\0\0\x18ftypmp42", "MP4/AAC"),
        (b"\0\0\0\x18ftyp3gp4", "3GP (AMR or AAC)"),
        (b"\0\0\0\x14ftypqt  ", "QuickTime"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x84webm", "WebM"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x88matroska", "Matroska"),
        (b"#!AMR\n\x3c", "AMR"),
        (b"#!AMR-WB\n", "AMR-WB"),
        (b"\x02#!SILK_V3", "SILK"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c", "WMA (ASF)"),
        (b"\xff\xf1\x50\x80\x00\x1f\xfc", "AAC"),
        (b"RIFF\0\0\0\0AVI LIST", "AVI"),
        (b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\n", "NIST SPHERE with shorten"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"/annex/objects/SHA256E-s9--0.wav\n", "a git-annex pointer"),
        (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "macOS metadata (AppleDouble)"),
        (a_zip(), "a zip archive"),
        (a_tar(), "a tar archive"),
        (gzip.compress(b"RIFF", mtime=0), "a gzip archive"),
        (an_array(), "a NumPy array"),
        (b"<!DOCTYPE html>\n<title>404", "HTML"),
        (b"\xef\xbb\xbf\r\n <HTML lang=en>", "HTML"),
        (b"<head><title>", "HTML"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "XML"),
        (b'{"error": "not found"}', "JSON"),
        (b'[{"a": 1}]', "JSON"),
        ("Il était une fois".encode(), "text"),
        ("Bonjour é".encode()[:-1], "text"),
        ("[music] Grüße".encode("utf-16"), "text"),
        (bytes(HEAD_BYTES), "zeros only"),
        (b"", None),
        (b"RIFF", None),
        (bytes(100) + b"\x01\xfe", None),
        (b"ID3\4\0\0\0\0\0\0", None),
        (b"Gr\xfc\xdfe", None),
    ],
)
def test_kinds(head: bytes, kind: str | None) -> None:
    assert describe(head) == kind


@pytest.mark.parametrize("file_format", sorted(soundfile.available_formats().keys() - {"RAW", "SD2", "SVX", "WVE"}))
def test_audio_that_is_read_is_not_taken_for_anything_else(file_format: str) -> None:
    file = io.BytesIO()
    rate = 8_000 if soundfile.default_subtype(file_format) == "GSM610" else 16_000
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 1600)
    soundfile.write(file, sound, rate, format=file_format, endian="FILE")
    assert describe(file.getvalue()[:HEAD_BYTES]) is None


@given(st.binary(max_size=80), st.sampled_from([b"", b"<html", b"{", b"\xff\xfe", b"\0\0\0\0ftyp", b"NIST_1A"]))
def test_any_bytes_have_a_kind_or_none(data: bytes, front: bytes) -> None:
    kind = describe(front + data)
    assert kind is None or kind
