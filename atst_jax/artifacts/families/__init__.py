"""What is peculiar to the released PyTorch files of each family of encoders.

In: a file's tensors by their names there. Out: the keyword arguments of `export.write`.
"""
