"""Front ends: how samples become frames of features.

A front end is a frozen pydantic model: its fields are the settings `features` of a run, its methods compute. To add
one, write a module with such a class and add it to FRONTENDS.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from pipeline.features.framing import Frames, RecordingFeatures, Samples
from pipeline.features.mfcc import Mfcc
from pipeline.kinds import ByKind


class Frontend(Protocol):
    """What scan, extraction and prediction use of a front end.

    Both methods that compute receive the whole recording from its beginning, so a front end can use neighbouring
    frames or values of the whole recording without the caller's help. Equal samples give equal bits, whatever the
    lengths of the blocks, `start` and `stop` are, and whichever of the two methods is called.
    """

    @property
    def kind(self) -> str:
        """The name in FRONTENDS."""

    @property
    def sample_rate_hz(self) -> int:
        """The rate of the samples that it takes."""

    @property
    def hop_s(self) -> float:
        """Seconds from one frame to the next."""

    @property
    def dims(self) -> Mapping[str, int]:
        """The one dimension of a frame's features: {name: size}. The store numbers it from 0 in a variable `name`."""

    @property
    def variable_attributes(self) -> Mapping[str, Mapping[str, str]]:
        """The attributes (CF: long_name, units) in the store of `features` and of the variable over `dims`."""

    def frames(self, samples: int) -> int:
        """Return the number of frames of a recording of `samples` samples at `sample_rate_hz`."""

    def bytes_per_frame(self) -> int:
        """Return the most memory that `extract` takes for a frame in [start, stop) besides the returned values."""

    def extract(self, blocks: Iterable[Samples], start: int = 0, stop: int | None = None) -> RecordingFeatures:
        """Return frames [start, stop) of a recording given as (sample,) float32 blocks, which is read once.

        Fewer frames are returned if the recording ends before `stop`. Memory grows with the frames in [start, stop),
        not with the recording.
        """

    def stream(self, read: Callable[[], Iterable[Samples]], start: int = 0) -> tuple[int, Iterator[Frames]]:
        """Return the number of frames of a recording, and its frames from `start` on as (frame, feature) blocks.

        Each call of `read` reads the recording anew; a front end that needs its peak, level or mean first calls it
        twice. Memory does not grow with the recording.
        """


FRONTENDS: dict[str, type[Frontend]] = {
    "mfcc": Mfcc,
}
"""The front ends by `features.kind`."""

BY_KIND = ByKind("front end", FRONTENDS, default="mfcc")
