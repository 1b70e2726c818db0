"""Frames of the recordings of a task, each decoded once however many shards of the task hold a part of it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline.config import PipelineConfig
from pipeline.extraction.plan import Segment, frames_of
from pipeline.features.audio import AudioError, read_blocks
from pipeline.features.framing import Frames, RecordingFeatures, Samples


class SharedRecording:
    """A recording that lies in several shards of a task, read from beginning to end for all of them.

    Frames that a shard has room for are read at once, and held. Of more, no more than a block is held at a time; but
    as the floor of the features depends on the recording's peak, which may lie anywhere, it is then read twice, once
    for the peak and once for the frames, however many shards it fills.
    """

    def __init__(self, segments: Sequence[Segment], config: PipelineConfig) -> None:
        self._first, self._config = segments[0], config.features
        self._most_held = config.store.sequences_per_shard * config.store.timesteps
        self._stop = frames_of(segments[-1], config.store.timesteps)[1]
        self._failure: str | None = None
        self._frames = self.bytes_read = 0
        self._blocks: Iterator[Frames] | None = None
        self._rest = np.empty((0, *self._config.dims.values()), np.float32)

    def take(self, start: int, stop: int) -> RecordingFeatures:
        """Return frames [start, stop) as `Frontend.extract` does; `start` is where the call before stopped."""
        if self._failure:
            raise AudioError(self._failure)
        try:
            if self._blocks is None:
                self._blocks = self._from(start)
            parts, taken = [self._rest], len(self._rest)
            while taken < stop - start and (block := next(self._blocks, None)) is not None:
                parts.append(block)
                taken += len(block)
        except AudioError as error:
            self._failure = str(error)
            raise
        frames = np.concatenate(parts)
        self._rest = frames[stop - start :].copy()
        return RecordingFeatures(frames[: stop - start], self._frames)

    def _from(self, start: int) -> Iterator[Frames]:
        if self._stop - start <= self._most_held:
            extract = self._config.extract(self._samples(), start, self._stop)
            self._frames = extract.recording_frames
            return iter((extract.values,))
        self._frames, blocks = self._config.stream(self._samples, start)
        return blocks

    def _samples(self) -> Iterator[Samples]:
        self.bytes_read += self._first.size_bytes
        return read_blocks(self._first.source, self._config.sample_rate_hz)


Shared = Mapping[int, SharedRecording]
"""By the recordings' rows in the manifest."""
