"""Mixed sounds: scenes of known background, and pairs of changed scenes, at stated loudness.

In: recordings and a seed. Out: waveforms, what they are made of, and sentences about differences.
"""
