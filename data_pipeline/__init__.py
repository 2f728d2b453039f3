"""From recordings to shards: `python -m data_pipeline.prepare --help`.

In: folders, manifests, TFDS or sounds to mix. Out: a folder of TFRecord shards with dataset.json.
Rooms: `sources` (what is there), `shards` (writing them), `mixing` (sounds put together), and the
commands.
"""
