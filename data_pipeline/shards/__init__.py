"""Shards of log-mel clips: planning, writing by a local pool or Beam, checking, merging.

In: a listing of sources. Out: TFRecord shards and dataset.json, the same bytes wherever they are
written.
"""
