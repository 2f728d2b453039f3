"""Programs: an exported encoder as one file that another runtime runs without this project.

In: a `model.Model`. Out: the bytes of `encoder.jax` or `encoder.onnx`, and the function that loads
one to compare it with the model.
"""
