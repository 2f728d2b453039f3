"""Fine-tuning: the encoder and a linear head, trained together.

In: an encoder and a labelled set. Out: results.json, results.md, checkpoints.
"""
