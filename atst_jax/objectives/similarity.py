"""What COLA and TRILL share: two windows of every clip, and a head on the encoder's vectors."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from atst_jax.method.accumulation import in_parts
from atst_jax.models.layers import Encoder
from atst_jax.util.errors import UserError


class Embedder(nn.Module):
  """Encoder, then a linear layer to `out` numbers; 0: the encoder's own."""

  encoder: Encoder
  out: int
  dtype: jnp.dtype
  accumulation: int

  def setup(self):
    """The linear layer, with Keras's initialisation."""
    if self.out:
      init = nn.initializers.glorot_uniform()
      self.head = nn.Dense(self.out, dtype=self.dtype, kernel_init=init)

  def embed(self, mel):
    """(B, …, T, F) normalised -> (B, …, P) float32. All windows of a clip pass the encoder in one
    part, where BatchNorm sees them together."""
    parts = 1 if self.is_initializing() else self.accumulation
    y = in_parts(_encode, self.encoder, parts, mel)
    return self.head(y).astype(jnp.float32) if self.out else y

  def __call__(self, mel):
    """(B, …, T, F) normalised -> (B, …, P) float32."""
    return self.embed(mel)


def _encode(encoder, mel):
  y, _ = encoder(mel.reshape(-1, *mel.shape[-2:]), None, train=True)
  return y.reshape(*mel.shape[:-2], -1)


def check_windows(config: Mapping, longest_clip: int) -> None:
  """Raises UserError for a batch without a negative, and for windows as long as the longest
  clip."""
  objective, batch_size = config["objective"], config["batch_size"]
  crop = config["views"]["crop_frames"]
  if batch_size < 2:
    raise UserError(
      f"--config.batch_size={batch_size}: objective {objective} tells the clips of a batch apart, "
      "so it needs 2 or more"
    )
  if crop >= longest_clip:
    raise UserError(
      f"--config.views.crop_frames={crop}: the longest clip has {longest_clip} frames, so both "
      "windows of every clip would be the same; take a smaller crop"
    )
