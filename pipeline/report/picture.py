"""Figures as PNG bytes: one style, and a font for every script that an installed font has."""

import functools
import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, ParamSpec

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.font_manager import findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font

Parameters = ParamSpec("Parameters")

INK, QUIET, FAINT = "#1f2d3d", "#93a1b0", "#d5dbe1"

STYLE: Final[dict[str, Any]] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e8ebee",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    # a dollar sign in a name is not mathematics
    "text.parse_math": False,
}

GLYPH: Final = re.compile(r"Glyph (\d+) .* missing from font")
"""Matplotlib's warning about a character that it draws as a box."""
PLACEHOLDERS: Final = ("Last Resort", ".LastResort", "Adobe Blank")
"""Families that show a box, or nothing, for every character."""
SCRIPT: Final = re.compile(r"(.+?) (?:LETTER|SYLLABLE|SYLLABICS|VOWEL|SIGN|DIGIT|CHARACTER|LIGATURE|MARK)\b")
"""The names of characters in Unicode begin with their script: "THAI CHARACTER KO KAI"."""
EAST_ASIAN: Final = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "FULLWIDTH", "HALFWIDTH", "IDEOGRAPHIC")
MAX_CHARACTERS_NAMED: Final = 10


class Picture(NamedTuple):
    """PNG bytes, and the characters in them that no installed font has: boxes stand for these."""

    png: bytes
    boxes: frozenset[str]


def picture(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Picture]:
    """Turn a function that draws a figure into one that returns a picture.

    The bytes depend neither on the user's matplotlibrc nor on the clock. They depend on the installed fonts only where
    the font that comes with matplotlib lacks a character.
    """

    @functools.wraps(draw)
    def render(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Picture:
        drawn = _rendered(lambda: draw(*args, **kwargs), ())
        families = families_with(drawn.boxes) if drawn.boxes else ()
        if not families:
            return drawn
        # a family without bold is no matter: its regular weight is drawn
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        return _rendered(lambda: draw(*args, **kwargs), families)

    return render


def _rendered(draw: Callable[[], Figure], families: Sequence[str]) -> Picture:
    """Render a figure; the first of `families` that has a character gives what matplotlib's own font lacks."""
    buffer = io.BytesIO()
    style = {**STYLE, "font.family": ["sans-serif", *families]}
    with matplotlib.style.context(["default", style]), warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=GLYPH.pattern)
        draw().savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    boxes = set()
    for warning in caught:
        if found := GLYPH.match(str(warning.message)):
            boxes.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return Picture(buffer.getvalue(), frozenset(boxes))


@functools.cache
def families_with(characters: frozenset[str]) -> tuple[str, ...]:
    """Return families of installed fonts that together have all `characters` that any has; each adds the most."""
    _find_new_fonts()
    has = {entry.name: _covered(entry.fname, entry.index, characters)
           for entry in fontManager.ttflist
           if entry.style == "normal" and not entry.name.startswith(PLACEHOLDERS)}  # fmt: skip
    families: list[str] = []
    left = set(characters)
    while left:
        best = max(sorted(has), key=lambda family: len(has[family] & left))
        if not has[best] & left:
            break
        families.append(best)
        left -= has[best]
    return tuple(families)


def _find_new_fonts() -> None:
    """Add fonts that were installed after matplotlib wrote its list of fonts."""
    for path in sorted(set(findSystemFonts()) - {entry.fname for entry in fontManager.ttflist}):
        with suppress(Exception):  # a font that is damaged or cannot be scaled; matplotlib skips these, too
            fontManager.addfont(path)


def _covered(file: str, face: int, characters: Iterable[str]) -> set[str]:
    """Return those of `characters` that a font has; a font that is gone or damaged has none."""
    with suppress(OSError, RuntimeError):
        font = FT2Font(file, face_index=face)
        return {character for character in characters if font.get_char_index(ord(character))}
    return set()


def missing_fonts(characters: Collection[str]) -> str:
    """Return in one line which characters have no font, and which fonts would have them."""
    first = "".join(sorted(characters)[:MAX_CHARACTERS_NAMED])
    more = f" and {len(characters) - MAX_CHARACTERS_NAMED} more" if len(characters) > MAX_CHARACTERS_NAMED else ""
    fonts = " and ".join(sorted({_font_for(character) for character in characters}))
    return f"no installed font has the characters {first}{more}, and pictures show boxes for them; install {fonts}"


def _font_for(character: str) -> str:
    """Return the name of a free font that has the script of a character."""
    name = unicodedata.name(character, "")
    if name.startswith(EAST_ASIAN):
        return "Noto Sans CJK"
    script = SCRIPT.match(name)
    return f"Noto Sans {script[1].title()}" if script else f"a font with U+{ord(character):04X}"
