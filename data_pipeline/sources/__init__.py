"""What recordings there are: folders, manifests, the layouts of published data sets, TFDS.

In: a path as people have it. Out: a listing of sources with labels, splits and groups, nothing
decoded.
"""
