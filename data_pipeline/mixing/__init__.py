"""Sounds put together: scenes of known background, pairs of changed scenes, at stated loudness.

In: recordings and a seed. Out: waveforms with what they hold, and sentences about their difference.
"""
