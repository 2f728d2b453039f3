"""What a classifier says of new sounds: files, segments, windows of long recordings.

In: an exported classifier, and sounds. Out: labels with their probabilities and thresholds.
"""
