"""The encoders by the name that a config gives them.

Each maps normalised log-mel (B, T, F) and valid frames (B,) or None to y (B, D) float32, what the projector sees, and a
dict of what lies before it: "blocks" of a transformer, "frames" of a convolutional network.
"""

from atst_jax.cnn import BLOCKS, AudioNTT
from atst_jax.transformer import Transformer

FREE_FIELDS = ("dtype", "attention", "remat")  # how an encoder is computed; no part of a config's `encoder` section
ENCODERS = {"transformer": Transformer, "cnn": AudioNTT}


def make_encoder(encoder: dict, **fields):
  """The linen module of a config's `encoder` section: its `kind` and its fields; of FREE_FIELDS those that it has."""
  encoder = dict(encoder)
  module = ENCODERS[encoder.pop("kind")]
  return module(**encoder, **{key: fields[key] for key in fields if key in module.__dataclass_fields__})


def frames_per_vector(encoder: dict) -> int:
  """Input frames for each of the encoder's vectors over time."""
  return encoder["patch_frames"] if encoder["kind"] == "transformer" else 2 ** BLOCKS[encoder["version"]]
