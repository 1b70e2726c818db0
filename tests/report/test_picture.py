"""Pictures of names in any script: drawn in an installed font that has them, or the missing font is named."""

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from pipeline.report import picture, plots
from pipeline.report.picture import families_with, missing_fonts

Install = Callable[[str, str], None]


def save_font(file: Path, family: str, characters: str) -> None:
    """Write a font in which every character is a black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    names = {ord(character): f"u{ord(character):04X}" for character in characters}
    glyphs = [".notdef", *names.values()]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys(glyphs, square))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)


@pytest.fixture(name="install")
def install_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """A machine with matplotlib's own fonts alone, and a function that installs a font on it."""
    own = [entry for entry in font_manager.fontManager.ttflist if entry.fname.startswith(mpl.get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(picture, "findSystemFonts", lambda: font_manager.findSystemFonts([str(tmp_path)]))
    families_with.cache_clear()
    yield lambda family, characters: save_font(tmp_path / f"{family}.ttf", family, characters)
    families_with.cache_clear()


def drawn(label: str) -> picture.Picture:
    return plots.amounts(pd.DataFrame({"train": [1.0]}, index=[label]), "hours", {label: "#0072b2"})


def test_names_without_a_font_are_drawn_as_boxes_and_reported(install: Install) -> None:
    assert drawn("français, ελληνικά, русский, العربية").boxes == frozenset()
    assert drawn("日本語 ไทย").boxes == set("日本語ไทย")


def test_names_are_drawn_in_fonts_that_were_installed_since_the_list_of_fonts_was_made(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    before = drawn("日本語 ไทย")
    families_with.cache_clear()
    install("Some Japanese", "日本語")
    install("Some Thai", "ไทย")
    after = drawn("日本語 ไทย")
    assert after.boxes == frozenset()
    assert after.png != before.png
    assert drawn("日本語 ไทย") == after
    assert plots.confusion(np.eye(2, dtype=np.int64), ["日", "ไ"], "日").boxes == frozenset()  # in bold
    assert caplog.messages == []


def test_a_script_that_is_installed_in_part_is_drawn_in_part(install: Install) -> None:
    install("Some Japanese", "日本")
    assert drawn("日本語").boxes == {"語"}


def test_the_fewest_fonts_are_chosen(install: Install) -> None:
    for family, characters in {"A": "日", "B": "日本ไ", "C": "語", "Last Resort": "日本語ไ"}.items():
        install(family, characters)
    assert families_with(frozenset("日本語ไ")) == ("B", "C")


def test_a_damaged_font_is_passed_over(install: Install, tmp_path: Path) -> None:
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    install("Some Japanese", "日本語")
    (tmp_path / "gone.ttf").symlink_to(tmp_path / "Some Japanese.ttf")
    assert drawn("日").boxes == frozenset()
    (tmp_path / "Some Japanese.ttf").unlink()
    families_with.cache_clear()
    assert families_with(frozenset("日")) == ()


@pytest.mark.parametrize(
    ("characters", "line"),
    [
        ("日本", "the characters 日本, and pictures show boxes for them; install Noto Sans CJK"),
        ("あア한", "the characters あア한, and pictures show boxes for them; install Noto Sans CJK"),
        ("ไกሀ", "the characters กไሀ, and pictures show boxes for them; install Noto Sans Ethiopic and Noto Sans Thai"),
        ("\ue000", "the characters \ue000, and pictures show boxes for them; install a font with U+E000"),
        (
            "कखगघङचछजझञटठ",
            "the characters कखगघङचछजझञ and 2 more, and pictures show boxes for them; install Noto Sans Devanagari",
        ),
    ],
)
def test_the_missing_font_is_named(characters: str, line: str) -> None:
    assert missing_fonts(frozenset(characters)) == f"no installed font has {line}"
