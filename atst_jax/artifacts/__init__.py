"""What to take away from a run: exported encoders, vectors, programs, PyTorch files.

In: a workdir's checkpoint, or released weights. Out: a folder that `model.load_model` opens without
the training code, and a file of vectors.

Two things are written by hand although libraries exist. The ONNX graph: jax2onnx asks for an
orbax-checkpoint older than this project's. The .npz of vectors: numpy.savez would hold all of them
in memory at once.
"""
