"""What to take away from a run: exported encoders, vectors, programs, PyTorch files.

In: a workdir's checkpoint, or released weights. Out: a folder that `model.load_model` opens without
the training code. The ONNX graph is written by hand: converters from JAX bring no symbolic time
axis that onnxruntime accepts.
"""
