"""Retrieval of a changed scene by a recording and a sentence (the second paper's Section IV-C).

In: an encoder, a text model and a set of pairs. Out: results.json, results.md.
"""
