"""One core, one thread: what a frame of MFCCs costs, and what it costs to decode and resample."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks import corpus
from tests.benchmarks.measure import ONE_THREAD, Contender, alternate, timed
from tests.benchmarks.report import Row, Table, comparison
from tests.benchmarks.settings import Settings

TITLE = "Kernel"
MINUTE_S = 60
REPEATS = 10
DECODINGS = 3
MFCC_BARS = {"librosa.feature.mfcc": 3.0}

Samples = NDArray[np.float32]


def run(settings: Settings) -> tuple[Table, ...]:
    """Measure."""
    root = corpus.make(settings.work, settings.hours)
    rounds = settings.rounds
    features = alternate(
        [
            Contender(name, start, {"path": corpus.long_recording(root, "flac")}, ONE_THREAD, one_core=True)
            for name, start in {
                "ours": ours,
                "librosa.feature.mfcc": librosa_mfcc,
                "kaldi-native-fbank": kaldi,
                "python_speech_features": python_speech_features,
            }.items()
        ],
        rounds,
    )
    features_table = Table(
        "MFCC",
        "40 MFCCs from 128 mel bands, with a window of 400 samples every 160 samples, of one minute of 16 kHz speech "
        f"in memory ({corpus.speaks(root)}). Each contender runs in a process with one thread, pinned to one core. A "
        f"round is the mean of {REPEATS} passes. kaldi-native-fbank uses librosa's mel filters and Hann window, "
        "without dither and without a floor below the peak; python_speech_features uses its own filters.",
        comparison("µs/frame", features, MFCC_BARS, smaller_is_better=True),
    )
    rows: tuple[Row, ...] = ()
    for codec in corpus.CODECS:
        path = corpus.long_recording(root, codec)
        decoding = alternate(
            [
                Contender(f"{codec}: ours", read_blocks, {"path": path}, ONE_THREAD, one_core=True),
                Contender(f"{codec}: librosa.load", librosa_load, {"path": path}, ONE_THREAD, one_core=True),
            ],
            rounds,
        )
        rows += comparison("ms/min", decoding, {}, smaller_is_better=True)
    caption = (
        "One long recording, from a file in a warm cache to float32 samples at 16 kHz; in milliseconds per minute of "
        "audio. FLAC and WAV are at 16 kHz, MP3 and Opus at 48 kHz. One core, one thread. Both contenders return the "
        "same samples."
    )
    return features_table, Table("Decoding and resampling", caption, rows)


def _minute(path: Path) -> Samples:
    from pipeline.features.audio import read
    from pipeline.features.audio_source import AudioSource

    return np.resize(read(AudioSource(str(path)), 16_000), MINUTE_S * 16_000)


def _per_frame(mfcc: Callable[[], NDArray[np.floating]]) -> Callable[[], float]:
    """Return the function of a round: µs a frame. The first call warms."""
    frames = len(mfcc())
    return lambda: timed(lambda: [mfcc() for _ in range(REPEATS)]) * 1e6 / REPEATS / frames


@contextmanager
def ours(path: Path) -> Iterator[Callable[[], float]]:
    """The kernel of `pipeline.features`, given blocks as when a file is read."""
    from pipeline.features.mfcc import Mfcc
    from pipeline.features.sound_stream import BLOCK_S

    samples, config = _minute(path), Mfcc()
    blocks = np.split(samples, range(int(BLOCK_S * 16_000), len(samples), int(BLOCK_S * 16_000)))
    yield _per_frame(lambda: config.extract(blocks).values)


@contextmanager
def librosa_mfcc(path: Path) -> Iterator[Callable[[], float]]:
    import librosa

    samples = _minute(path)
    yield _per_frame(lambda: librosa.feature.mfcc(y=samples, sr=16_000, n_mfcc=40, n_fft=400, hop_length=160).T)


@contextmanager
def kaldi(path: Path) -> Iterator[Callable[[], float]]:
    import kaldi_native_fbank

    options = kaldi_native_fbank.MfccOptions()
    options.num_ceps, options.mel_opts.num_bins = 40, 128
    options.mel_opts.is_librosa, options.mel_opts.low_freq = True, 0  # its own filters cannot be so many
    options.frame_opts.round_to_power_of_two, options.frame_opts.window_type = False, "hann"
    options.frame_opts.dither, options.frame_opts.preemph_coeff = 0, 0
    options.frame_opts.remove_dc_offset = options.frame_opts.snip_edges = options.use_energy = False
    options.cepstral_lifter = 0
    samples = _minute(path)

    def mfcc() -> NDArray[np.floating]:
        extractor = kaldi_native_fbank.OnlineMfcc(options)
        extractor.accept_waveform(16_000, samples)
        extractor.input_finished()
        return np.stack([extractor.get_frame(i) for i in range(extractor.num_frames_ready)])

    yield _per_frame(mfcc)


@contextmanager
def python_speech_features(path: Path) -> Iterator[Callable[[], float]]:
    from python_speech_features import mfcc

    samples = _minute(path)
    yield _per_frame(
        lambda: mfcc(
            samples, 16_000, 0.025, 0.010, numcep=40, nfilt=128, nfft=400, preemph=0, ceplifter=0, appendEnergy=False
        )
    )


def _per_minute(read: Callable[[], int]) -> Callable[[], float]:
    """Return the function of a round: ms a minute of audio. `read` returns how many samples it read."""
    minutes = read() / 16_000 / 60
    return lambda: timed(lambda: [read() for _ in range(DECODINGS)]) * 1e3 / DECODINGS / minutes


@contextmanager
def read_blocks(path: Path) -> Iterator[Callable[[], float]]:
    from pipeline.features import audio
    from pipeline.features.audio_source import AudioSource

    source = AudioSource(str(path))
    yield _per_minute(lambda: sum(len(block) for block in audio.read_blocks(source, 16_000)))


@contextmanager
def librosa_load(path: Path) -> Iterator[Callable[[], float]]:
    import librosa

    yield _per_minute(lambda: len(librosa.load(path, sr=16_000)[0]))
