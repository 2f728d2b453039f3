"""What the adapters of the benchmark suites (`hear`, `evar`, `xares`) share.

In: PyTorch tensors of a suite. Out: arrays of an encoder, and back.
"""
