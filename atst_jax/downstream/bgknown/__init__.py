"""BgKnown: classifies the foreground by a mixture's vector minus that of its background.

In: an encoder and the sets of `data_pipeline.bgknown`. Out: results.json, results.md.
"""
