"""Features: decoding a recording and computing its frames, block by block.

- `audio_source`: where the samples of a recording are
- `audio`: decoding, downmixing and resampling
- `ogg_pages`: the streams of an Ogg file, by a walk over its pages
- `mp3_frames`: the frames and the length header of an MP3 file
- `riff`: the header of a WAV file
- `file_kind`: what a file is that is not read as audio
- `frontend`: the protocol and the table of front ends, which turn samples into frames of features
- `framing`: cutting a recording into overlapping frames
- `mfcc`: the front end of MFCCs equal to librosa's
- `mfcc_kernel`: computing them
- `fft`: the Fourier transform of eight frames at once
- `simd`: vectors for Numba
"""
