"""What every package needs and none is about: flags, errors, configs, files and stores, logs,
pages.

In: text, paths, values. Out: checked values, files that are written whole or not at all, messages
for people. TFRecord framing, K-weighting and the like live where they are used; here is nothing of
the method.
"""
