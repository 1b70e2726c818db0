"""Features: decoding a recording and computing its frames, block by block.

- `audio_source`: where the samples of a recording are
- `audio`: headers, and recordings as blocks: downmixed and resampled
- `header`: headers of common MP3 and Opus files, without libsndfile
- `audio_file`: opening files, and proving their lengths
- `sound_stream`: decoding an open file to blocks of samples
- `audio_parts`: where the audio is in files that libsndfile does not read as they are
- `spliced_file`: spans of a file read as one file
- `decoder_messages`: keeps libmpg123 from writing on the terminal
- `ogg_pages`: the streams of an Ogg file, by a walk over its pages
- `opus_pitfalls`: where libsndfile would return samples that it never decoded
- `mp3_frames`: the frames and the length header of an MP3 file
- `riff`: the header of a WAV file
- `file_kind`: what a file is that is not read as audio
- `silence`: finding recordings without sound
- `frontend`: the protocol and the table of front ends, which turn samples into frames of features
- `framing`: cutting a recording into overlapping frames
- `mfcc`: the front end of MFCCs equal to librosa's
- `mfcc_kernel`: computing them
- `fft`: the Fourier transform of eight frames at once
- `simd`: vectors for Numba
- `jit`: Numba's compiler, with a folder for compiled code that can be written
"""
