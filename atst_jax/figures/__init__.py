"""Pictures of a run and an encoder: curves, views, maps of embeddings, attention, one page about a
run.

In: records, arrays, exported encoders. Out: PNG files and HTML pages that load nothing.
"""
