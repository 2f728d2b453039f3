"""TRILL (Shor et al. 2020): windows of a clip are nearer to each other than to other clips.

d(a, b)  = squared Euclidean distance of L2-normalised embeddings
L        = mean over pairs (a, p) of a clip of max(0, margin + d(a, p) - d(a, n))
n        = the nearest window of another clip that is farther than p, else the farthest of all

The negatives are those of the global batch. Both windows of a clip are anchors in turn. The
training code is not public: the semi-hard choice is TensorFlow Addons', the margin ours.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from atst_jax.method.losses import l2_normalize
from atst_jax.models.encoders import make_encoder
from atst_jax.models.layers import Encoder
from atst_jax.objectives.objective import Loss, Objective
from atst_jax.objectives.similarity import Embedder, check_windows
from atst_jax.objectives.windows import clip_keys, draw_starts, normalized, peaks, take_windows
from atst_jax.util.errors import UserError


class Settings(NamedTuple):
  """The section `trill`."""

  margin: float
  distance_frames: int  # at most, between the starts of a clip's two windows
  out: int | None  # numbers that are compared; None: the encoder's own


def draw_pair(key, length, *, frames: int, distance: int):
  """First frames (2,) of two windows of a clip, at most `distance` apart.

  The first is uniform over the clip, the second over what lies near enough. Of clips that are
  shorter than `frames` both are 0.
  """
  first_key, second_key = jax.random.split(key)
  first = draw_starts(first_key[None, None], length[None], frames)[0, 0]
  last = jnp.maximum(length - frames, 0)
  low, high = jnp.maximum(first - distance, 0), jnp.minimum(first + distance, last)
  return jnp.stack([first, jax.random.randint(second_key, (), low, high + 1)])


def semi_hard_loss(pairs, margin: float):
  """(B, 2, P) embeddings of two windows of every clip -> the loss (), and the share of the 2 · B
  triplets that are wrong by less than the margin or more ()."""
  B = pairs.shape[0]
  z = l2_normalize(pairs).reshape(2 * B, -1)
  distances = jnp.maximum(2 - 2 * jnp.matmul(z, z.T, precision="highest"), 0)
  row, clip = jnp.arange(2 * B), jnp.arange(2 * B) // 2
  positive = distances[row, row ^ 1]
  other = clip[:, None] != clip[None]
  farther = other & (distances > positive[:, None])
  nearest = jnp.min(jnp.where(farther, distances, jnp.inf), 1)
  farthest = jnp.max(jnp.where(other, distances, -jnp.inf), 1)
  negative = jnp.where(farther.any(1), nearest, farthest)
  loss = jnp.maximum(margin + positive - negative, 0)
  return loss.mean(), (loss > 0).astype(jnp.float32).mean()


class Trill(Objective):
  """Semi-hard triplets within the global batch."""

  name = "trill"
  settings: ClassVar[Any] = Settings
  start_from = "configs/trill.py"
  positive = ("trill.out",)
  ranges: ClassVar[dict[str, tuple[float, float]]] = {
    "trill.margin": (0, 4),
    "trill.distance_frames": (0, 1e6),
  }

  @property
  def outputs(self) -> int:
    """Those that are compared."""
    return self.options.out or self.config["encoder"]["width"]

  def check(self, *, devices: int, clip_lengths: tuple[int, int], n_mels: int) -> None:
    """Raises UserError for a batch without negatives, and for windows that are the same."""
    check_windows(self.config, longest_clip=clip_lengths[1])
    if self.options.distance_frames == 0:
      raise UserError(
        "--config.trill.distance_frames=0: both windows of a clip would be the same; raise it"
      )

  def make_network(self, encoder: Encoder, *, dtype, accumulation: int) -> Embedder:
    """Encoder, and a linear layer if `out` is set."""
    return Embedder(encoder, self.options.out or 0, dtype, accumulation)

  def draw(self, batch: dict, key):
    """Windows (B, 2, T, F) of a batch as the encoder sees them."""
    mel, length, views = batch["mel"], batch["length"], self.config["views"]
    frames, distance = views["crop_frames"], self.options.distance_frames
    pair = lambda key, length: draw_pair(key, length, frames=frames, distance=distance)
    starts = jax.vmap(pair)(clip_keys(key, len(length), 1)[:, 0], length)
    windows = take_windows(mel, length, starts, frames)
    return normalized(windows, peaks(mel, length), views["normalization"])

  def loss(self, student, batch: dict, key) -> Loss:
    """`semi_hard_loss` of the batch's windows; `violated` is the share of triplets that count."""
    z = student(self.draw(batch, key))
    value, violated = semi_hard_loss(z, self.options.margin)
    return Loss(value, {"violated": violated}, z.reshape(-1, self.outputs))

  def flops(self, n_mels: int) -> float:
    """Two windows of a clip, and their distances."""
    width, out = self.config["encoder"]["width"], self.options.out
    encoder = make_encoder(self.config["encoder"])
    encoded = encoder.flops(frames=self.config["views"]["crop_frames"], n_mels=n_mels)
    distances = 2 * 2 * self.config["batch_size"] * self.outputs
    return 3 * 2 * (encoded + (2 * width * out if out else 0) + distances)
