"""What an encoder is worth: the papers' evaluations and the suites of others.

In: an exported encoder and a prepared labelled set. Out: results.json and a table, one row for each
kind of features. Rooms: `linear`, `finetune`, `retrieval`, and `papers` with what was published.
"""
