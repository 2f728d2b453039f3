"""What the papers say: views, augmentation, mixtures, losses, the EMA teacher, and the train step
that joins them.

In: arrays, keys and plain keyword arguments. Out: arrays. No config object, mesh or file enters
here. `train_step` shows both papers on one page.
"""
