"""Where the samples of the rows of a listing or manifest are, and which rows share a container."""

from collections.abc import Sequence
from copy import copy
from typing import Final, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.features.audio_source import AudioSource

PART_TYPES: Final = {"member": "string", "start_s": "float64", "stop_s": "float64"}
"""Columns and types of what names a part of a file; NA for a recording that is a whole file."""
PART_COLUMNS: Final = tuple(PART_TYPES)


class AudioSources(Sequence[AudioSource]):
    """The audio sources of the rows of a listing or manifest, each made when it is asked for."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._container = table["uri"].to_numpy(object)
        parts = table[list(PART_COLUMNS)]
        self._is_part = np.asarray(parts.notna().any(axis=1), np.bool_)
        self._parts = parts.astype(object).where(parts.notna(), None).to_numpy() if self._is_part.any() else None

    def __len__(self) -> int:
        return len(self._container)

    @overload
    def __getitem__(self, index: int) -> AudioSource: ...

    @overload
    def __getitem__(self, index: slice) -> "AudioSources": ...

    def __getitem__(self, index: "int | slice") -> "AudioSource | AudioSources":
        if isinstance(index, slice):  # columns: as objects they would take longer to pickle than a header to read
            part = copy(self)
            part._container, part._is_part = self._container[index], self._is_part[index]
            part._parts = None if self._parts is None else self._parts[index]
            return part
        if self._parts is None:
            return AudioSource(self._container[index])
        member, start_s, stop_s = self._parts[index]
        return AudioSource(self._container[index], member, start_s or 0.0, stop_s)

    def begins_container(self) -> NDArray[np.bool_]:
        """Return for each row whether it is not in the same container as the row before: (row,) bool."""
        begins = np.ones(len(self), np.bool_)
        if self._parts is not None:
            same = self._container[1:] == self._container[:-1]
            begins[1:] = ~(same & self._is_part[1:] & self._is_part[:-1])
        return begins
