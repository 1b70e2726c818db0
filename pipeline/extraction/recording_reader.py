"""The features of the recordings of a task, from as few decodings as possible."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, Self

import numpy as np

from pipeline.config import PipelineConfig
from pipeline.extraction.segments import Segment, Task, frames_of
from pipeline.features.audio import AudioError, Blocks, DecodersDisagreeError, SegmentReader, read_blocks
from pipeline.features.framing import Frames, RecordingFeatures, Samples
from pipeline.features.frontend import Frontend


class Reading(NamedTuple):
    """The features of a segment, or the reason why there are none; and the bytes of the files read for it.

    `loss` is why the recording lacks audio although it has features, `silence` why it holds no sound; or empty. A
    `transient` failure is the file system's: see `AudioError`.
    """

    features: RecordingFeatures | None
    failure: str
    bytes_read: int
    transient: bool = False
    loss: str = ""
    silence: str = ""


class RecordingReader:
    """Computes the features of the segments of one task, in their order; a context manager that closes files.

    A recording that continues in the next shards of the task is computed once for all of them. Recordings that are
    segments of one audio file are cut from one decoding of it, as long as each begins at or after the beginning of
    the one before (see `SegmentReader`); the order of the plan ensures that. Otherwise the file is decoded anew.
    """

    def __init__(self, task: Task, config: PipelineConfig) -> None:
        self._config = config
        segments = (segment for shard in task.shards for segment in shard.segments)
        parts = ((recording, list(group)) for recording, group in groupby(segments, attrgetter("recording")))
        self._last = {recording: group[-1] for recording, group in parts if len(group) > 1}
        self._continued: dict[int, _ContinuedRecording] = {}
        self._file: SegmentReader | None = None
        self._bytes_read = 0
        self._careful: set[int] = set()
        self._blocks: dict[int, list[Blocks]] = {}

    def read(self, segment: Segment) -> Reading:
        """Return the features of the frames of `segment`, fewer where its recording ends early."""
        self._bytes_read = 0
        try:
            try:
                features = self._features(segment)
            except DecodersDisagreeError:
                self._careful.add(segment.recording)
                self._continued.pop(segment.recording, None)
                self._blocks.pop(segment.recording)
                features = self._features(segment)
        except AudioError as error:
            return Reading(None, str(error), self._bytes_read, error.transient)
        blocks = self._blocks[segment.recording]
        loss = next((part.loss for part in blocks if part.loss), "")
        return Reading(features, "", self._bytes_read, loss=loss, silence=blocks[0].silence)

    def _features(self, segment: Segment) -> RecordingFeatures:
        start, stop = frames_of(segment, self._config.store.timesteps)
        samples = partial(self._samples, segment)
        if segment.recording not in self._last:
            return self._config.features.extract(samples(), start, stop)
        if segment.recording not in self._continued:
            end = frames_of(self._last[segment.recording], self._config.store.timesteps)[1]
            max_held = self._config.store.sequences_per_shard * self._config.store.timesteps
            self._continued[segment.recording] = _ContinuedRecording(samples, self._config.features, end, max_held)
        return self._continued[segment.recording].take(start, stop)

    def _samples(self, segment: Segment) -> Iterator[Samples]:
        """Return the samples of the recording that `segment` is of, from its beginning."""
        blocks = self._open(segment)
        self._blocks.setdefault(segment.recording, []).append(blocks)
        return blocks

    def _open(self, segment: Segment) -> Blocks:
        source, sample_rate_hz = segment.source, self._config.features.sample_rate_hz
        if not source.is_segment:
            self._bytes_read += segment.size_bytes
            return read_blocks(source, sample_rate_hz, careful=segment.recording in self._careful)
        if self._file is None or not self._file.reaches(source):
            self.close()
            self._bytes_read += segment.size_bytes
            self._file = SegmentReader(source.whole)
        return self._file.read_blocks(source, sample_rate_hz)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file that segments are cut from."""
        if self._file is not None:
            self._file.close()


class _ContinuedRecording:
    """A recording that lies in several shards of a task, computed from beginning to end for all of them.

    `samples` reads it, `end` is the last frame that the task needs. Up to `max_held` frames, which a shard has room
    for, are computed at once and held. Of longer recordings a block of frames is held at a time; a front end that
    needs the recording's peak first then reads the recording twice, however many shards it fills.
    """

    def __init__(self, samples: Callable[[], Iterator[Samples]], frontend: Frontend, end: int, max_held: int) -> None:
        self._samples, self._frontend, self._end, self._max_held = samples, frontend, end, max_held
        self._failure: AudioError | None = None
        self._frames = 0
        self._blocks: Iterator[Frames] | None = None
        self._rest = np.empty((0, *frontend.dims.values()), np.float32)

    def take(self, start: int, stop: int) -> RecordingFeatures:
        """Return frames [start, stop) as `Frontend.extract` does; `start` is where the previous call stopped."""
        if self._failure:
            raise AudioError(str(self._failure), transient=self._failure.transient)
        try:
            if self._blocks is None:
                self._blocks = self._from(start)
            parts, taken = [self._rest], len(self._rest)
            while taken < stop - start and (block := next(self._blocks, None)) is not None:
                parts.append(block)
                taken += len(block)
        except AudioError as error:
            self._failure = error
            raise
        frames = np.concatenate(parts)
        self._rest = frames[stop - start :].copy()
        return RecordingFeatures(frames[: stop - start], self._frames)

    def _from(self, start: int) -> Iterator[Frames]:
        if self._end - start <= self._max_held:
            features = self._frontend.extract(self._samples(), start, self._end)
            self._frames = features.recording_frames
            return iter((features.values,))
        self._frames, blocks = self._frontend.stream(self._samples, start)
        return blocks
