"""Features: decoding a recording and computing its frames, block by block.

- `audio`: decoding, downmixing and resampling
- `mfcc`: MFCCs equal to librosa's
- `fft`: the Fourier transform of several frames at once
- `simd`: vector instructions for Numba
"""
