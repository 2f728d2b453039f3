"""Which clip comes when: prepared data sets, the order of their clips, and batches of them.

In: shards of TFRecords and their dataset.json. Out: {"mel": (B, T, F), "length": (B,)} of step s,
the same everywhere. The framing of TFRecords (`tfrecord`) is our own: readers that need no
TensorFlow start on any host.
"""
