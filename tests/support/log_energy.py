"""A front end that the package does not have: one file, and one line in FRONTENDS."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.features.framing import Frames, Framing, RecordingFeatures, Samples, frame_blocks


class LogEnergy(Framing):
    """The energy in bands of equal width, in dB with a floor of -100 dB."""

    kind: Literal["log_energy"] = "log_energy"
    n_bands: Annotated[int, Field(ge=1, le=64)] = 8

    @property
    def dims(self) -> Mapping[str, int]:
        return {"band": self.n_bands}

    @property
    def variable_attributes(self) -> Mapping[str, Mapping[str, str]]:
        return {"features": {"long_name": "energy per band", "units": "dB"}, "band": {"long_name": "band number"}}

    def bytes_per_frame(self) -> int:
        return 4 * self.n_bands

    def extract(self, blocks: Iterable[Samples], start: int = 0, stop: int | None = None) -> RecordingFeatures:
        parts, frames = [np.empty((0, self.n_bands), np.float32)], 0
        for block in self._energies(blocks):
            part = slice(max(0, start - frames), None if stop is None else max(0, stop - frames))
            parts.append(block[part])
            frames += len(block)
        return RecordingFeatures(np.concatenate(parts), frames)

    def stream(self, read: Callable[[], Iterable[Samples]], start: int = 0) -> tuple[int, Iterator[Frames]]:
        def blocks() -> Iterator[Frames]:
            place = 0
            for block in self._energies(read()):
                yield block[max(0, start - place) :]
                place += len(block)

        return sum(frames for _, frames in frame_blocks(read(), self)), blocks()

    def _energies(self, blocks: Iterable[Samples]) -> Iterator[NDArray[np.float32]]:
        for samples, frames in frame_blocks(blocks, self):
            windows = np.lib.stride_tricks.sliding_window_view(samples, self.n_fft)[:: self.hop_length][:frames]
            power = np.square(np.abs(np.fft.rfft(windows * np.hanning(self.n_fft))))  # (frame, bin)
            bands = [band.sum(axis=1) for band in np.array_split(power, self.n_bands, axis=1)]
            yield (10 * np.log10(np.maximum(np.stack(bands, axis=1), 1e-10))).astype(np.float32)
