"""Collections: many files to one file of vectors, and what is near in it.

In: an exported encoder and recordings. Out: `vectors.read`'s table, and its nearest rows.
"""
