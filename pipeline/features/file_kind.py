"""What a file is that is not read as audio, by its first bytes: for the reason in the ledger."""

import codecs
import re

HEAD_BYTES = 4096
"""First bytes of a file that are enough to describe it."""

_READ = (
    b"RIFF",
    b"RIFX",
    b"RF64",
    b"fLaC",
    b"OggS",
    b"FORM",
    b".snd",
    b"dns.",
    b"ID3",
    b"NIST_1A",
    b"caff",
    b"Creative",
)
_MP4_BRANDS = {
    b"qt  ": "QuickTime",
    b"3gp": "3GP (AMR or AAC)",
    b"3g2": "3GP (AMR or AAC)",
    b"avi": "AVIF",
    b"hei": "HEIF",
}
_SIGNATURES = (
    # sound and video
    (0, b"#!AMR-WB", "AMR-WB"),
    (0, b"#!AMR", "AMR"),
    (0, b"#!SILK", "SILK"),
    (1, b"#!SILK", "SILK"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA (ASF)"),
    (0, b"ADIF", "AAC"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"wvpk", "WavPack"),
    (0, b"MPCK", "Musepack"),
    (0, b"MP+", "Musepack"),
    (0, b"TTA1", "True Audio"),
    (0, b"OFR ", "OptimFROG"),
    (0, b"ajkg", "Shorten"),
    (0, b"DSD ", "DSD"),
    (0, b"FRM8", "DSD"),
    (0, b".RMF", "RealMedia"),
    (0, b".ra\xfd", "RealAudio"),
    (0, b"MThd", "MIDI"),
    (0, b"\x0b\x77", "AC-3"),
    (0, b"\x7f\xfe\x80\x01", "DTS"),
    (0, b"FLV\x01", "Flash video"),
    (0, b"\x00\x00\x01\xba", "MPEG video"),
    (8, b"AVI ", "AVI"),
    (4, b"moov", "QuickTime"),
    (4, b"mdat", "QuickTime"),
    # archives
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    # what stands in for a file
    (0, b"version https://git-lfs.github.com/", "a Git LFS pointer"),
    (0, b"/annex/objects/", "a git-annex pointer"),
    (0, b"outs:\n", "a DVC pointer"),
    (0, b"\x00\x05\x16\x07", "macOS metadata (AppleDouble)"),
    # other data
    (0, b"%PDF", "PDF"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"PAR1", "Parquet"),
    (0, b"SQLite format 3", "SQLite"),
)  # fmt: skip
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!--|!doctype\s+html|html?\b|head\b|body\b)", re.IGNORECASE)
_XML = re.compile(rb"(\xef\xbb\xbf)?\s*<\?xml\b")
_JSON = re.compile(r'\s*(\{\s*["}]|\[\s*["{\[\]])')
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def describe(head: bytes) -> str | None:
    """Return what a file is that begins with `head`, as a noun; None for audio that is read and for what is unknown.

    HEAD_BYTES are enough; fewer are taken for the whole file.
    """
    return _container(head) or (None if head.startswith(_READ) else _contents(head))


def _container(head: bytes) -> str | None:
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    if head[4:8] == b"ftyp":
        return next((kind for brand, kind in _MP4_BRANDS.items() if head.startswith(brand, 8)), "MP4/AAC")
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "WebM" if b"webm" in head[:64] else "Matroska"
    if head.startswith(b"NIST_1A") and b"shorten" in head[:1024]:
        return "NIST SPHERE with shorten"
    return None


def _contents(head: bytes) -> str | None:
    if not head:
        return None
    if not head.strip(b"\x00"):
        return "zeros only"
    for pattern, kind in ((_HTML, "HTML"), (_XML, "XML")):
        if pattern.match(head):
            return kind
    text = _text(head)
    if text is None:
        return None
    return "JSON" if _JSON.match(text) else "text"


def _text(head: bytes) -> str | None:
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return None
    return None if _NO_TEXT.search(text) else text
