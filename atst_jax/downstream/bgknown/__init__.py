"""BgKnown: whether a mixture's vector less that of its background tells the foreground.

In: an encoder and the sets of `data_pipeline.bgknown`. Out: results.json, results.md.
"""
