"""COLA (Saeed et al. 2021): which of these windows is of the same clip?

a, p     = head(encoder(two windows of a clip)); the other clips' p are the negatives
S        = A · (W Pᵀ)                       "bilinear"; head = tanh(LayerNorm(linear))
         = cos(A, P) / temperature          "cosine"; head = linear
L        = - mean over rows of log softmax(S)[i, i]

Where the released code has the waveform, shards have log-mel (docs/paper_and_code.md): the noise is
`noise.add_white_noise`, and it is the front-end `cola` that divides clips by their L2 norm.
"""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atst_jax.audio.frontend import get_frontend
from atst_jax.method.losses import l2_normalize
from atst_jax.models.encoders import make_encoder
from atst_jax.models.layers import Encoder
from atst_jax.objectives.noise import add_white_noise
from atst_jax.objectives.objective import Loss, Objective
from atst_jax.objectives.similarity import Embedder, check_windows
from atst_jax.objectives.windows import clip_keys, draw_starts, normalized, peaks, take_windows
from atst_jax.util.errors import UserError

SIMILARITIES = ("bilinear", "cosine")


class Settings(NamedTuple):
  """The section `cola`."""

  similarity: str  # of SIMILARITIES
  temperature: float | None  # of "cosine"
  out: int  # numbers of a head
  noise: float  # of the positives, in units of the clip's L2 norm


class Network(Embedder):
  """Encoder, head and, if bilinear, the similarity's W."""

  bilinear: bool = True

  def setup(self):
    """Also LayerNorm and W, with Keras's constants."""
    super().setup()
    if self.bilinear:
      self.norm = nn.LayerNorm(epsilon=1e-3, use_fast_variance=False)
      self.weight = self.param("weight", nn.initializers.normal(0.05), (self.out, self.out))

  def __call__(self, mel):
    """(B, …, T, F) normalised -> (B, …, P)."""
    z = self.embed(mel)
    return jnp.tanh(self.norm(z)) if self.bilinear else z

  def similarities(self, anchors, positives, temperature):
    """(B, P), (B, P) -> S (B, B): every anchor against every positive."""
    product = lambda a, b: jnp.matmul(a, b.T, precision="highest")
    if self.bilinear:
      return product(anchors, product(positives, self.weight))
    return product(l2_normalize(anchors), l2_normalize(positives)) / temperature


def contrastive_loss(similarities):
  """S (B, B) -> the loss (), and the share of anchors that are most similar to their own positive
  ()."""
  right = jnp.diagonal(jax.nn.log_softmax(similarities, 1))
  found = similarities.argmax(1) == jnp.arange(similarities.shape[0])
  return -right.mean(), found.astype(jnp.float32).mean()


class Cola(Objective):
  """Two windows of a clip told from those of the other clips of the global batch."""

  name = "cola"
  settings: ClassVar[Any] = Settings
  start_from = "configs/cola.py"
  positive = ("cola.out",)
  choices: ClassVar[dict[str, tuple[str, ...]]] = {"cola.similarity": SIMILARITIES}
  ranges: ClassVar[dict[str, tuple[float, float]]] = {
    "cola.temperature": (1e-3, 1e3),
    "cola.noise": (0, 1),
  }

  @property
  def outputs(self) -> int:
    """The head's."""
    return self.options.out

  def check(self, *, devices: int, clip_lengths: tuple[int, int], n_mels: int) -> None:
    """Raises UserError for a batch without negatives, for windows that are the same, or a
    temperature that is missing or not used."""
    check_windows(self.config, longest_clip=clip_lengths[1])
    frontend = self.config["data"]["frontend"]
    if self.options.noise and get_frontend(frontend).spectrum == "kaldi":
      raise UserError(
        f"--config.cola.noise={self.options.noise} is of the samples, which --config.data.frontend="
        f"{frontend} filters first; set --config.cola.noise=0, or take another front-end"
      )
    cosine, temperature = self.options.similarity == "cosine", self.options.temperature
    if cosine != (temperature is not None):
      wanted = "=0.2" if cosine else "=none"
      raise UserError(
        f"--config.cola.temperature={temperature}: it belongs to --config.cola.similarity=cosine, "
        f"and similarity is {self.options.similarity}; set --config.cola.temperature{wanted}"
      )

  def make_network(self, encoder: Encoder, *, dtype, accumulation: int) -> Network:
    """Encoder, head and W."""
    bilinear = self.options.similarity == "bilinear"
    return Network(encoder, self.options.out, dtype, accumulation, bilinear)

  def draw(self, batch: dict, key):
    """Windows (B, 2, T, F) of a batch as the encoder sees them: anchor, and noisy positive."""
    mel, length, views = batch["mel"], batch["length"], self.config["views"]
    keys = clip_keys(key, len(length), 3)
    frames = views["crop_frames"]
    windows = take_windows(mel, length, draw_starts(keys[:, :2], length, frames), frames)
    if self.options.noise:
      frontend = get_frontend(self.config["data"]["frontend"])
      noisy = add_white_noise(
        keys[:, 2], windows[:, 1], mel, length, level=self.options.noise, frontend=frontend
      )
      windows = jnp.stack([windows[:, 0], noisy], 1)
    return normalized(windows, peaks(mel, length), views["normalization"])

  def loss(self, student, batch: dict, key) -> Loss:
    """Cross-entropy of every anchor's own positive among those of the global batch."""
    z = student(self.draw(batch, key))
    similarities = student(z[:, 0], z[:, 1], self.options.temperature, method=Network.similarities)
    value, accuracy = contrastive_loss(similarities)
    return Loss(value, {"accuracy": accuracy}, z.reshape(-1, self.outputs))

  def flops(self, n_mels: int) -> float:
    """Two windows of a clip, and its similarities."""
    out, width = self.options.out, self.config["encoder"]["width"]
    encoder = make_encoder(self.config["encoder"])
    encoded = encoder.flops(frames=self.config["views"]["crop_frames"], n_mels=n_mels)
    pairs = 2 * self.config["batch_size"] * out
    weight = 2 * out**2 if self.options.similarity == "bilinear" else 0
    return 3 * (2 * (encoded + 2 * width * out) + weight + pairs)
