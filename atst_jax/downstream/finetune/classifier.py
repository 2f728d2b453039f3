"""An encoder with a linear classifier on its embedding, trained as a whole in fine-tuning."""

import flax.linen as nn
import jax.numpy as jnp

from atst_jax.downstream.linear.atst_probe import INIT_STD
from atst_jax.models.blocks import pool_blocks
from atst_jax.models.encoders import ENCODERS, make_encoder
from atst_jax.models.layers import BatchNorm


def chunk_rule(length, *, frames, chunk_frames, hop, tail):
  """The lengths and weights of a clip's chunks, by the rule of `Model.embed`, for padded clips.

  Args:
    length: (B,) valid frames of the clips.
    frames: T of the padded clips.
    chunk_frames: of a chunk.
    hop: frames for each of the encoder's vectors.
    tail: "released", "drop", "keep" or "weighted" (`Model.embed`).

  Returns:
    (B, C) each: valid frames; frames of the patches that the mean counts; and weight, 0 for a chunk
    that is left out.
  """
  start = jnp.arange(-(-frames // chunk_frames)) * chunk_frames
  left = jnp.maximum(length[:, None] - start[None], 0)
  valid = jnp.minimum(left, chunk_frames)
  least = chunk_frames // 2 if tail in ("released", "drop") else hop - 1
  counts = (start == 0)[None] | (valid > least)
  return (
    valid,
    left if tail == "released" else valid,
    jnp.where(counts, valid if tail == "weighted" else 1, 0),
  )


class Classifier(nn.Module):
  """Embedding, batch normalisation without scale and bias, and a linear layer of weights N(0,
  0.01).

  A transformer's embedding is [CLS, mean] of its last block after the final norm (ATST 3.2). Clips
  longer than `chunk_frames` are cut into chunks, whose embeddings are averaged, in training as in
  evaluation (released code): positions beyond the pre-training's crop were never trained. Other
  kinds of encoder take the whole clip.
  """

  encoder: nn.Module
  classes: int
  patch_frames: int  # frames for each vector of a transformer; 0: another kind
  chunk_frames: int
  tail: str

  def _embed(self, x, length, train):
    """(B, T, F), (B,) -> (B, 2 D) or (B, D)."""
    if not self.patch_frames:
      return self.encoder(x, None, train=train)[0]
    B, T, F = x.shape
    size = min(T, self.chunk_frames)
    valid, mean_over, weight = chunk_rule(
      length, frames=T, chunk_frames=size, hop=self.patch_frames, tail=self.tail
    )
    C = weight.shape[1]
    x = jnp.pad(x, ((0, 0), (0, C * size - T), (0, 0))).reshape(B * C, size, F)
    _, before = self.encoder(x, valid.reshape(-1), train=train, tokens=True)
    y = pool_blocks(
      before["blocks"],
      valid.reshape(-1),
      patch_frames=self.patch_frames,
      num_blocks=1,
      mean_over=mean_over.reshape(-1),
    )
    weight = weight / weight.sum(-1, keepdims=True)
    return jnp.einsum("bcd,bc->bd", y.reshape(B, C, -1), weight, precision="highest")

  @nn.compact
  def __call__(self, x, length, *, train):
    """Normalised log-mel (B, T, F), 0 behind the valid frames (B,) -> logits (B, C) float32.

    When training, batch normalisation takes the statistics of the global batch.
    """
    y = BatchNorm(affine=False, name="head_norm")(self._embed(x, length, train), train=train)
    return nn.Dense(self.classes, kernel_init=nn.initializers.normal(INIT_STD), name="head")(y)


def make_classifier(
  encoder: dict, *, classes, drop_path, chunk_frames, tail, dtype, attention, remat, kernels="xla"
) -> Classifier:
  """The classifier for an export's `encoder` section, with `drop_path` as a transformer's
  stochastic depth."""
  transformer = ENCODERS[encoder["kind"]].has_blocks
  encoder = {**encoder, "drop_path": drop_path} if transformer else encoder
  module = make_encoder(encoder, dtype=dtype, attention=attention, kernels=kernels, remat=remat)
  return Classifier(module, classes, module.hop if transformer else 0, chunk_frames, tail)
