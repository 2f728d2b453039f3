"""wav2vec 2.0's contrastive loss on log-mel, without a quantiser (Srivastava et al. 2022).

z        = feature encoder (linear) of the frames of a crop; spans of it are hidden
c        = linear(encoder(z with the hidden vectors replaced by a learned one))
L        = -log of exp(cos(c_t, z_t) / 0.1) over its sum with that of K others z_s

averaged over the hidden t of the batch. The others are drawn from the hidden vectors of the same
clip. Gradients go through z, too, as in wav2vec 2.0.
"""

import functools
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.method.accumulation import in_parts
from atst_jax.method.losses import l2_normalize
from atst_jax.models.encoders import ENCODERS, make_encoder
from atst_jax.models.layers import Encoder
from atst_jax.objectives.masking import draw_others, span_mask
from atst_jax.objectives.objective import Loss, Objective
from atst_jax.objectives.windows import clip_keys, draw_starts, normalized, peaks, take_windows
from atst_jax.util.errors import UserError


class Settings(NamedTuple):
  """The section `wav2vec`."""

  probability: float  # share of the vectors that begin a span
  span: int  # vectors of a span
  distractors: int  # K
  temperature: float  # that a cosine is divided by


class Network(nn.Module):
  """Encoder, and the linear layer of what it says of hidden vectors."""

  encoder: Encoder
  project: nn.Module
  accumulation: int

  def __call__(self, mel, hidden=None):
    """(B, T, F), (B, N) bool or None -> c and z, (B, N, D) each."""
    parts = 1 if self.is_initializing() else self.accumulation
    both = in_parts(_frames_and_features, self.encoder, parts, mel, hidden)
    frames, features = jnp.split(both, 2, -1)
    return self.project(frames).astype(jnp.float32), features


def _frames_and_features(encoder, mel, hidden):
  """(B, N, 2 D): what an encoder makes of its features, and these."""
  _, before = encoder(mel, None, train=True, hidden=hidden)
  return jnp.concatenate([before["frames"], before["features"]], -1)


def alike(x):
  """(B, N, D) -> (B, N, N) bool: which vectors of a clip are equal.

  Two hashes of each vector are compared in place of D numbers of every pair. They are sums over D
  of mixed bits (MurmurHash3's last steps, other seeds for every number): exact in any order, and
  different vectors share both once in 2^64.
  """
  x = jax.lax.stop_gradient(x).astype(jnp.float32)
  x = jnp.where(x == 0, 0.0, x)  # -0, too
  seeds = np.random.default_rng(0).integers(0, 2**32, (2, 1, 1, x.shape[-1]), np.uint32)

  def same(seed):
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) ^ seed
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
      bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    sums = bits.sum(-1, dtype=jnp.uint32)
    return sums[:, :, None] == sums[:, None]

  return same(seeds[0]) & same(seeds[1])


def contrastive_loss(said, features, hidden, others, temperature: float):
  """The loss of a batch.

  Args:
    said: (B, N, D), c.
    features: (B, N, D), z.
    hidden: (B, N) bool.
    others: (B, N, K) indices of the distractors of each vector.

  Returns:
    The loss (), and the share of the hidden vectors that are nearer to c than all others ().
  """
  cosines = jnp.einsum(
    "bnd,bmd->bnm", l2_normalize(said), l2_normalize(features), precision="highest"
  )
  right = jnp.diagonal(cosines, axis1=1, axis2=2)[..., None]
  # What equals the right one, as in digital silence, is no distractor: so wav2vec 2.0's code.
  wrong = jnp.take_along_axis(jnp.where(alike(features), -jnp.inf, cosines), others, 2)
  chances = jax.nn.log_softmax(jnp.concatenate([right, wrong], -1) / temperature)[..., 0]
  found = (right > wrong).all(-1)
  count = jnp.maximum(hidden.sum(), 1)
  mean = lambda x: jnp.where(hidden, x, 0).sum() / count
  return -mean(chances), mean(found)


class Wav2vec(Objective):
  """Hidden spans, told from others of the clip."""

  name = "wav2vec"
  settings = Settings
  start_from = "configs/conformer.py"
  positive = ("wav2vec.span", "wav2vec.distractors")
  ranges: ClassVar = {"wav2vec.probability": (1e-6, 1), "wav2vec.temperature": (1e-3, 1e3)}

  @property
  def outputs(self) -> int:
    """D."""
    return self.config["encoder"]["width"]

  @property
  def vectors(self) -> int:
    """N, of a crop."""
    return self.config["views"]["crop_frames"] // make_encoder(self.config["encoder"]).hop

  def check(self, *, devices: int, clip_lengths: tuple[int, int], n_mels: int) -> None:
    """Raises UserError for an encoder that can hide no vectors over time, and for spans that fit no
    crop."""
    encoder, crop = self.config["encoder"], self.config["views"]["crop_frames"]
    if not ENCODERS[encoder["kind"]].maskable:
      raise UserError(
        f"--config.objective=wav2vec hides vectors, which --config.encoder.kind={encoder['kind']} "
        "cannot; set --config.encoder.kind=conformer (configs/conformer.py)"
      )
    if encoder.get("patch_mels", n_mels) != n_mels:
      raise UserError(
        f"--config.encoder.patch_mels={encoder['patch_mels']}: objective wav2vec hides spans of "
        f"time; set --config.encoder.patch_mels={n_mels}, all mel bins"
      )
    hop = make_encoder(encoder).hop
    if crop % hop:
      raise UserError(
        f"--config.views.crop_frames={crop} is not divisible by the {hop} frames of a vector of "
        f"this encoder; take {crop // hop * hop}"
      )
    least = max(2, self.options.span + 1)  # one vector is seen
    if self.vectors < least:
      raise UserError(
        f"--config.wav2vec.span={self.options.span}: a crop has {self.vectors} vectors, and needs "
        f"{least}; raise views.crop_frames"
      )

  def make_network(self, encoder, *, dtype, accumulation: int) -> Network:
    """The encoder with a linear layer of its width."""
    return Network(encoder, nn.Dense(self.outputs, dtype=dtype), accumulation)

  def spans(self, keys, length):
    """(B,) keys, (B,) valid frames of clips -> (B, N) bool, the vectors to hide: of a clip shorter
    than the crop those of its sound alone, or two at least."""
    frames = self.config["views"]["crop_frames"]
    hop = frames // self.vectors
    sound = jnp.minimum(length, frames)
    before = (frames - sound) // 2  # silence, as `take_windows` puts it
    first = -(-before // hop)
    draw = functools.partial(
      span_mask, vectors=self.vectors, probability=self.options.probability, span=self.options.span
    )
    hidden = jax.vmap(draw)(keys, jnp.maximum((before + sound) // hop - first, 2))
    return jax.vmap(jnp.roll)(hidden, first)

  def loss(self, student, batch, key) -> Loss:
    """A crop of every clip, its spans and their distractors."""
    mel, length, frames = batch["mel"], batch["length"], self.config["views"]["crop_frames"]
    keys, options = clip_keys(key, mel.shape[0], 3), self.options
    windows = take_windows(mel, length, draw_starts(keys[:, :1], length, frames), frames)
    seen = normalized(windows, peaks(mel, length), self.config["views"]["normalization"])[:, 0]
    hidden = self.spans(keys[:, 1], length)
    others = jax.vmap(functools.partial(draw_others, number=options.distractors))(
      keys[:, 2], hidden
    )
    said, features = student(seen, hidden)
    value, accuracy = contrastive_loss(said, features, hidden, others, options.temperature)
    metrics = {"accuracy": accuracy, "hidden": hidden.mean()}
    return Loss(value, metrics, said.reshape(-1, self.outputs))

  def flops(self, n_mels: int) -> float:
    """The encoder, its linear layer and all cosines of a clip."""
    D, N = self.outputs, self.vectors
    encoded = make_encoder(self.config["encoder"]).flops(
      frames=self.config["views"]["crop_frames"], n_mels=n_mels
    )
    return 3 * (encoded + 2 * N * D**2 + 2 * N**2 * D)
