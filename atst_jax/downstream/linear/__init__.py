"""Linear evaluation: a linear classifier on frozen embeddings, by the protocol of either paper.

In: an encoder and a labelled set. Out: results.json, results.md.
"""
