"""The layouts that a corpus may have."""

from collections.abc import Mapping
from typing import Final

from upath import UPath

from pipeline.corpus.layouts.folders import FolderLayout
from pipeline.corpus.layouts.protocol import CorpusLayout
from pipeline.errors import UsageError

LAYOUTS: Final[Mapping[str, CorpusLayout]] = {
    FolderLayout.name: FolderLayout(),
}
"""The layouts by name; one line registers another."""


def find_layout(corpus: str, root: UPath) -> CorpusLayout:
    """Return the one layout that claims the folder `root`, which the user named `corpus`.

    Raises UsageError where no layout or more than one claims it.
    """
    claiming = [layout for layout in LAYOUTS.values() if layout.claims(root)]
    if not claiming:
        expected = "; or ".join(layout.expected for layout in LAYOUTS.values())
        raise UsageError(f"--corpus {corpus}: no recording in it; expected {expected}")
    if len(claiming) > 1:
        names = " and ".join(layout.name for layout in claiming)
        raise UsageError(f"--corpus {corpus}: the folder has more than one layout, {names}; keep the files of one")
    return claiming[0]
