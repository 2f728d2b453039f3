"""The head of an exported classifier: how a vector becomes a probability for every label.

config.json has a section `head`; the weights hold `head/kernel` (D, C) and `head/bias` (C,). Logits
are vector @ kernel + bias: whatever normalised the vectors in training is folded into both.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from atst_jax.util.cli import nearest
from atst_jax.util.errors import UserError

# Logits (..., C) to probabilities. "clip" is of the exact probe, whose scores are regressions on
# 0 and 1.
ACTIVATIONS: dict[str, Callable] = {
  "softmax": lambda x: scipy.special.softmax(x, axis=-1),
  "sigmoid": scipy.special.expit,
  "clip": lambda x: np.clip(x, 0, 1),
}
TRACED: dict[str, Callable] = {  # the same, to be compiled
  "softmax": jax.nn.softmax,
  "sigmoid": jax.nn.sigmoid,
  "clip": lambda x: jnp.clip(x, 0, 1),
}
CROPS = ("center", "start")
MOST_LABELS = 1 << 20
MOST_FRAMES = 1 << 20  # of a clip


@dataclasses.dataclass(frozen=True)
class Head:
  """What the section says, beside the weights.

  Attributes:
    labels: names, C of them.
    multi_label: whether a sound may have several.
    activation: of ACTIVATIONS.
    thresholds: probability from which on a label is given, one for each; None where a sound has one
      label: the likeliest is given.
    blocks: of a transformer's last blocks, whose vectors it reads.
    max_frames: of longer sounds it hears so many frames,
    crop: from the "center" or the "start".
    fill_frames: shorter sounds are filled up to so many frames; None: they are not.
    fill_db: with what, dB.
    about: where it comes from: any JSON.
  """

  labels: tuple[str, ...]
  multi_label: bool
  activation: str
  thresholds: tuple[float, ...] | None
  blocks: int
  max_frames: int
  crop: str
  fill_frames: int | None
  fill_db: float | None
  about: dict

  def to_json(self) -> dict:
    """The section of config.json."""
    return {key: list(x) if isinstance(x, tuple) else x for key, x in vars(self).items()}

  def threshold(self, place: int) -> float | None:
    """That of the label at a place."""
    return None if self.thresholds is None else self.thresholds[place]

  def probabilities(self, logits: np.ndarray) -> np.ndarray:
    """(..., C) -> (..., C), 0 to 1."""
    return np.asarray(ACTIVATIONS[self.activation](logits), np.float32)

  def shapes(self, width: int) -> dict:
    """The shapes of the weights for vectors of so many numbers."""
    classes = len(self.labels)
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32)
    return {"kernel": shape(width, classes), "bias": shape(classes)}


def read_head(section: dict | None, *, hop: int, depth: int) -> Head | None:
  """The head of a config.json, which may come from anywhere; None for an encoder without one.

  Args:
    hop: frames that the encoder needs at least.
    depth: its blocks.

  Raises ValueError, KeyError or TypeError for what no export says.
  """
  if section is None:
    return None
  fields: dict[str, Any] = {field.name: section[field.name] for field in dataclasses.fields(Head)}
  labels, thresholds = fields["labels"], fields["thresholds"]
  whole = lambda x, low, high: type(x) is int and low <= x <= high
  number = lambda x: type(x) in (int, float) and math.isfinite(x)
  fill = fields["fill_frames"]
  right = {
    "labels": isinstance(labels, list)
    and 1 <= len(labels) <= MOST_LABELS
    and all(isinstance(name, str) and name for name in labels)
    and len(set(labels)) == len(labels),
    "thresholds": (thresholds is None and fields["multi_label"] is False)
    or (
      isinstance(thresholds, list)
      and len(thresholds) == len(labels)
      and all(map(number, thresholds))
    ),
    "multi_label": isinstance(fields["multi_label"], bool),
    "activation": fields["activation"] in ACTIVATIONS,
    "blocks": whole(fields["blocks"], 1, depth),
    "max_frames": whole(fields["max_frames"], hop, MOST_FRAMES),
    "crop": fields["crop"] in CROPS,
    "fill_frames": fill is None or whole(fill, hop, fields["max_frames"]),
    "fill_db": (fill is None) == (fields["fill_db"] is None)
    and (fill is None or number(fields["fill_db"])),
    "about": isinstance(fields["about"], dict),
  }
  if wrong := [key for key, is_right in right.items() if not is_right]:
    raise ValueError(f"head.{wrong[0]} is {str(fields[wrong[0]])[:80]}")
  # earlier exports of one label for each sound had thresholds, which nothing used
  thresholds = tuple(thresholds) if fields["multi_label"] else None
  return Head(**fields | {"labels": tuple(labels), "thresholds": thresholds})


def folded(kernel, bias, mean, std) -> dict[str, np.ndarray]:
  """The weights of a layer that takes (vector - mean) / std, for the vector itself.

  Args:
    kernel, bias: (D, C) and (C,).
    mean, std: (D,) each.
  """
  kernel = np.asarray(kernel, np.float64) / np.asarray(std, np.float64)[:, None]
  bias = np.asarray(bias, np.float64) - np.asarray(mean, np.float64) @ kernel
  return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def head_outputs(section: dict | None, variables: dict, pool: Callable) -> dict:
  """What an exported program gives of a chunk beside its vectors: "logits" and "probabilities"
  (B, C); nothing of an encoder alone. Of several chunks the weighted mean of the logits counts.

  Args:
    section: of config.json.
    variables: with the head's weights.
    pool: gives the vectors (B, D) of so many of the last blocks.
  """
  if section is None:
    return {}
  weights, vectors = variables["head"], pool(section["blocks"])
  logits = jnp.dot(vectors, weights["kernel"], precision="highest") + weights["bias"][None]
  return {"logits": logits, "probabilities": TRACED[section["activation"]](logits)}


def chosen_labels(head: Head, wanted: str | None) -> np.ndarray:
  """The places of some labels, "A,B", or "A;B" where names hold commas, in ascending order; of all
  by default. Raises UserError for what the head does not know."""
  if wanted is None:
    return np.arange(len(head.labels))
  separator = ";" if ";" in wanted else ","
  names = [name.strip() for name in wanted.split(separator)]
  names = [wanted] if wanted in head.labels else names
  for name in names:
    if name not in head.labels:
      raise UserError(
        f"--labels={wanted}: the model does not know {name!r}, but {len(head.labels)} labels such "
        f"as {', '.join(head.labels[:3])}{nearest(name, head.labels)}"
      )
  return np.array(sorted({head.labels.index(name) for name in names}))
