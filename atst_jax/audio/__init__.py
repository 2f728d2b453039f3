"""From a file to a log-mel spectrogram.

In: audio files of any rate, or waveforms. Out: mono waveforms at the front-end's rate, log-mel in
dB (T, F). `frontend` is the only mel filter bank of the repository.
"""
