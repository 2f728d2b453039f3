"""The encoders by the name that a config gives them.

Each maps normalised log-mel (B, T, F) and valid frames (B,) or None to y (B, D) float32, what the
projector sees, and a dict of what lies before it: "blocks" of a transformer, "frames" of a
convolutional network.
"""

import dataclasses

from atst_jax.models.audiontt import BLOCKS, CHANNELS, AudioNTT, cnn_forward
from atst_jax.models.transformer import Transformer, transformer_forward

# how an encoder is computed; no part of a config's `encoder` section
FREE_FIELDS = ("dtype", "attention", "remat")
MOST = {"depth": 1 << 10}  # of an encoder from a file; of other whole numbers 2^20
ENCODERS = {"transformer": Transformer, "cnn": AudioNTT}
FRAMES_PER_VECTOR = {
  "transformer": lambda encoder: encoder["patch_frames"],
  "cnn": lambda encoder: 2 ** BLOCKS[encoder["version"]],
}


def make_encoder(encoder: dict, **fields):
  """The linen module of a config's `encoder` section: its `kind` and its fields; of FREE_FIELDS
  those that it has."""
  encoder = dict(encoder)
  module = ENCODERS[encoder.pop("kind")]
  known = {field.name for field in dataclasses.fields(module)}
  return module(**encoder, **{key: fields[key] for key in fields if key in known})


def check_encoder(encoder: dict, n_mels: int) -> None:
  """Raises ValueError, KeyError or TypeError for what `make_encoder` cannot build: it may come from
  a file."""
  module = ENCODERS[encoder["kind"]]
  fields = {
    f.name: f.type
    for f in dataclasses.fields(module)
    if f.name not in (*FREE_FIELDS, "parent", "name")
  }
  if set(encoder) != {"kind", *fields}:
    raise ValueError(
      f"encoder {encoder['kind']} needs {', '.join(fields)}; it has {', '.join(map(str, encoder))}"
    )
  for name, kind in fields.items():
    value = encoder[name]
    if kind is int and not (type(value) is int and 1 <= value <= MOST.get(name, 1 << 20)):
      raise ValueError(f"encoder.{name} is {value!r}")
    # rates of what is dropped
    if kind is float and not (type(value) in (int, float) and 0 <= value < 1):
      raise ValueError(f"encoder.{name} is {value!r}")
  if encoder["kind"] == "transformer" and encoder["width"] % encoder["heads"]:
    raise ValueError(
      f"encoder.width {encoder['width']} is not divisible by its {encoder['heads']} heads"
    )
  if encoder["kind"] == "cnn":
    features = CHANNELS * (n_mels >> BLOCKS[encoder["version"]])
    if not features or (encoder["version"] == "AudioNTT2022" and encoder["width"] <= features):
      raise ValueError(f"encoder.width {encoder['width']} holds no {features} features")


def frames_per_vector(encoder: dict) -> int:
  """Input frames for each of the encoder's vectors over time."""
  return FRAMES_PER_VECTOR[encoder["kind"]](encoder)


def encoder_forward(encoder: dict, *, frames: int, n_mels: int) -> float:
  """FLOPs of a config's encoder on one clip of so many frames."""
  if encoder["kind"] == "transformer":
    sizes = {k: encoder[k] for k in ("width", "depth", "patch_frames")}
    return transformer_forward(frames=frames, n_mels=n_mels, **sizes)
  sizes = {k: encoder[k] for k in ("version", "width", "hidden")}
  return cnn_forward(frames=frames, n_mels=n_mels, **sizes)
