"""The front end `mfcc`: mel-frequency cepstral coefficients equal to librosa's."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.features.framing import Frames, Framing, RecordingFeatures, Samples


class Mfcc(Framing):
    """MFCC settings, with librosa's names and the unit in the key; see `Frontend` for the methods.

    The values equal `librosa.feature.mfcc(y=y, sr=…, n_mfcc=…, n_fft=…, hop_length=…).T` within 1e-3: power spectrum
    of periodic Hann windows, Slaney mel bands (librosa.filters.mel), 10·log10 with a floor of 1e-10 and a floor of
    `top_db` below the recording's own peak (librosa.power_to_db), orthonormal DCT-II (scipy.fft.dct).
    """

    kind: Literal["mfcc"] = "mfcc"
    n_mels: Annotated[int, Field(ge=1, le=512)] = 128
    n_mfcc: Annotated[int, Field(ge=1, le=512)] = 40
    fmin_hz: Annotated[float, Field(ge=0)] = 0.0
    fmax_hz: float | None = None
    top_db: Annotated[float, Field(gt=0)] | None = 80.0

    @model_validator(mode="after")
    def _check_bands(self) -> Self:
        if self.n_mfcc > self.n_mels:
            raise ValueError(f"n_mfcc {self.n_mfcc} must not be larger than n_mels {self.n_mels}")
        if self.fmax_hz is not None and not self.fmin_hz < self.fmax_hz <= self.sample_rate_hz / 2:
            raise ValueError(f"fmax_hz {self.fmax_hz} must lie between fmin_hz and half of sample_rate_hz")
        if not self.fmin_hz < self.sample_rate_hz / 2:
            raise ValueError(f"fmin_hz {self.fmin_hz} must lie below half of sample_rate_hz")
        return self

    @property
    def dims(self) -> Mapping[str, int]:
        """The coefficients."""
        return {"mfcc": self.n_mfcc}

    @property
    def variable_attributes(self) -> Mapping[str, Mapping[str, str]]:
        """The names of the features and of their dimension."""
        return {
            "features": {"long_name": "mel-frequency cepstral coefficients"},
            "mfcc": {"long_name": "coefficient number"},
        }

    def bytes_per_frame(self) -> int:
        """Return twice the size of a frame of the log-mel spectrogram, which `extract` holds; half is reserve."""
        return 2 * 4 * self.n_mels

    def extract(self, blocks: Iterable[Samples], start: int = 0, stop: int | None = None) -> RecordingFeatures:
        """Return the MFCCs of frames [start, stop) as (frame, mfcc) float32.

        All samples are read, because the peak may lie anywhere. The log-mel spectrogram of the frames is held.
        """
        from pipeline.features import mfcc_kernel  # noqa: PLC0415 Numba takes half a second to import

        return mfcc_kernel.extract(blocks, self, start, stop)

    def stream(self, read: Callable[[], Iterable[Samples]], start: int = 0) -> tuple[int, Iterator[Frames]]:
        """Return the number of frames, and the MFCCs from frame `start` on as (frame, mfcc) float32 blocks.

        The recording is read twice: for its peak, and for the frames.
        """
        from pipeline.features import mfcc_kernel  # noqa: PLC0415 as above

        peak_db, frames = mfcc_kernel.peak(read(), self)
        return frames, mfcc_kernel.stream(read(), self, peak_db, start)
