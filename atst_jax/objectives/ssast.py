"""SSAST (Gong et al. 2022): which patch was hidden here, and what was in it.

x        = patches of a clip; two draws hide M of them each, for the two losses
h        = encoder(x with the hidden patches replaced by a learned vector), at the hidden patches
L_d      = -mean over i of log softmax over j of x_i · c(h_j), at i          Eq. 1, as released
L_g      = mean of (g(h_i) - x_i)²                                          Eq. 2
L        = L_d + 10 · L_g

x is not normalised and the products have no temperature (released code). Eq. 1 as printed takes the
softmax over the targets i. c and g are heads of two layers.
"""

import functools
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atst_jax.method.accumulation import in_parts
from atst_jax.models.encoders import ENCODERS, make_encoder
from atst_jax.models.layers import torch_dense
from atst_jax.models.ssast import PatchTransformer, unfold
from atst_jax.objectives.masking import as_bool, cluster_mask, uniform_mask
from atst_jax.objectives.objective import Loss, Objective
from atst_jax.objectives.windows import clip_keys, draw_starts, normalized, peaks, take_windows
from atst_jax.util.errors import UserError

TASKS = ("joint", "discriminative", "generative")
MASKINGS = ("cluster", "uniform")
SOFTMAXES = ("predictions", "targets")


class Settings(NamedTuple):
  """The section `ssast`."""

  task: str  # of TASKS
  masking: str  # of MASKINGS
  masked: int  # patches of a clip
  softmax: str  # of SOFTMAXES: what the discriminative loss chooses among
  generative_weight: float  # of the generative loss in "joint"


class Head(nn.Module):
  """Linear, ReLU, Linear: (..., D) -> (..., out) float32. PyTorch's initialisation."""

  out: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    """(..., D) -> (..., out) float32."""
    h = torch_dense(x.astype(self.dtype), x.shape[-1], dtype=self.dtype, name="hidden")
    return torch_dense(nn.relu(h), self.out, dtype=self.dtype, name="out").astype(jnp.float32)


class Network(nn.Module):
  """Encoder and a head for each loss."""

  encoder: PatchTransformer
  discriminative: Head | None
  generative: Head | None
  accumulation: int

  def __call__(self, mel, masks=None):
    """What the heads say of hidden patches.

    Args:
      mel: (B, T, F).
      masks: (B, L, M) indices, one draw for each of L losses; None: the first patch alone, which
        makes the parameters.

    Returns:
      L arrays (B, M, patch), the discriminative one first.
    """
    heads = [head for head in (self.discriminative, self.generative) if head is not None]
    if masks is None:
      masks = jnp.zeros((mel.shape[0], len(heads), 1), jnp.int32)
    B, L, M = masks.shape
    rows = lambda x: jnp.repeat(x, L, 0)  # a clip's draws lie beside each other, on one device
    parts = 1 if self.is_initializing() else self.accumulation
    h = in_parts(_hidden_tokens, self.encoder, parts, rows(mel), masks.reshape(B * L, M))
    h = h.reshape(B, L, M, -1)
    return [head(h[:, i]) for i, head in enumerate(heads)]


def _hidden_tokens(encoder, mel, indices):
  """(B, T, F), (B, M) -> (B, M, D): an encoder's tokens of patches that it does not see."""
  patches = (mel.shape[1] // encoder.patch_frames) * (mel.shape[2] // encoder.patch_mels)
  _, before = encoder(mel, None, train=True, hidden=as_bool(indices, patches))
  return jnp.take_along_axis(before["tokens"], indices[..., None], 1)


def discriminative_loss(targets, predictions, softmax: str):
  """Eq. 1.

  Args:
    targets: (B, M, P), the hidden patches.
    predictions: (B, M, P).
    softmax: "predictions", the released code: for each target over predictions; "targets", the
      paper: for each prediction over targets.

  Returns:
    The loss (), and the share of predictions that are likeliest for their own target among all
    (), after either softmax.
  """
  products = jnp.einsum("bip,bjp->bij", targets, predictions, precision="highest")
  chances = jax.nn.log_softmax(products, 2 if softmax == "predictions" else 1)
  found = chances.argmax(1) == jnp.arange(products.shape[1])[None]
  return -jnp.diagonal(chances, axis1=1, axis2=2).mean(), found.mean()


class Ssast(Objective):
  """Masked patches, told apart and drawn again."""

  name = "ssast"
  settings = Settings
  start_from = "configs/ssast.py"
  positive = ("ssast.masked",)
  choices: ClassVar = {"ssast.task": TASKS, "ssast.masking": MASKINGS, "ssast.softmax": SOFTMAXES}
  ranges: ClassVar = {"ssast.generative_weight": (0, 1e6)}

  @property
  def outputs(self) -> int:
    """The numbers of a patch."""
    encoder = self.config["encoder"]
    return encoder["patch_mels"] * encoder["patch_frames"]

  @property
  def tasks(self) -> tuple[str, ...]:
    """Which losses there are."""
    return TASKS[1:] if self.options.task == "joint" else (self.options.task,)

  def grid(self, n_mels: int) -> tuple[int, int]:
    """Rows of bins and patches over time of a crop."""
    encoder = self.config["encoder"]
    rows = n_mels // encoder["patch_mels"]
    return rows, self.config["views"]["crop_frames"] // encoder["patch_frames"]

  def check(self, *, devices: int, clip_lengths: tuple[int, int], n_mels: int) -> None:
    """Raises UserError for an encoder without patches, patches that do not divide a crop, and more
    masked ones than it has."""
    encoder, crop, masked = self.config["encoder"], self.config["views"], self.options.masked
    if ENCODERS[encoder["kind"]] is not PatchTransformer:
      raise UserError(
        f"--config.objective=ssast hides patches, which --config.encoder.kind={encoder['kind']} "
        "does not have; set --config.encoder.kind=ssast (configs/ssast.py)"
      )
    for key, size, whole in (
      ("patch_frames", crop["crop_frames"], "frames of views.crop_frames"),
      ("patch_mels", n_mels, "mel bins of data.frontend"),
    ):
      if size % encoder[key]:
        raise UserError(
          f"--config.encoder.{key}={encoder[key]} does not divide the {size} {whole}; take a "
          "divisor"
        )
    if masked == 1 and "discriminative" in self.tasks:
      raise UserError(
        "--config.ssast.masked=1: the discriminative loss tells hidden patches of a clip apart, so "
        "it needs 2 or more"
      )
    unread = {
      "generative_weight": (self.options.task != "joint", 10.0),
      "softmax": (self.options.task == "generative", "predictions"),
    }
    for key, (is_unread, default) in unread.items():
      if is_unread and getattr(self.options, key) != default:
        raise UserError(
          f"--config.ssast.{key}={getattr(self.options, key)} does nothing with "
          f"--config.ssast.task={self.options.task}; leave it out"
        )
    rows, times = self.grid(n_mels)
    if self.options.masking == "cluster" and rows == 1:
      raise UserError(
        "--config.ssast.masking=cluster needs more than one row of patches; set "
        f"--config.ssast.masking=uniform, or a smaller encoder.patch_mels than {n_mels}"
      )
    # One patch is seen. Of clusters: patch 0 is never hidden, and one more than `masked` must be
    # hit.
    most = rows * times - (2 if self.options.masking == "cluster" else 1)
    if masked > most:
      raise UserError(
        f"--config.ssast.masked={masked}: a crop has {rows * times} patches ({rows} of mel bins x "
        f"{times} over time), of which at most {most} can be masked"
      )

  def make_network(self, encoder, *, dtype, accumulation: int) -> Network:
    """The encoder, with a head for each loss that there is."""
    discriminative, generative = (
      Head(self.outputs, dtype) if task in self.tasks else None for task in TASKS[1:]
    )
    return Network(encoder, discriminative, generative, accumulation)

  def draw(self, key, n_mels: int):
    """(M,) indices of patches to hide."""
    (rows, times), masked = self.grid(n_mels), self.options.masked
    if self.options.masking == "uniform":
      return uniform_mask(key, patches=rows * times, masked=masked)
    return cluster_mask(key, patches=rows * times, stride=times, masked=masked)

  def loss(self, student, batch, key) -> Loss:
    """A crop of every clip, and a draw of patches for each loss."""
    mel, length, frames = batch["mel"], batch["length"], self.config["views"]["crop_frames"]
    keys = clip_keys(key, mel.shape[0], 1 + len(self.tasks))
    windows = take_windows(mel, length, draw_starts(keys[:, :1], length, frames), frames)
    seen = normalized(windows, peaks(mel, length), self.config["views"]["normalization"])[:, 0]
    draw = functools.partial(self.draw, n_mels=mel.shape[2])
    return self.masked_loss(student, seen, jax.vmap(jax.vmap(draw))(keys[:, 1:]))

  def masked_loss(self, student, mel, masks) -> Loss:
    """The loss of normalised crops (B, T, F) with the patches `masks` (B, L, M) hidden, one draw
    for each of `tasks`."""
    encoder, options = self.config["encoder"], self.options
    patches = unfold(mel, encoder["patch_mels"], encoder["patch_frames"])
    patches = patches.reshape(mel.shape[0], -1, self.outputs)
    said = dict(zip(self.tasks, student(mel, masks), strict=True))
    targets = {
      task: jnp.take_along_axis(patches, masks[:, i, :, None], 1)
      for i, task in enumerate(self.tasks)
    }
    metrics = {}
    if "discriminative" in said:
      metrics["loss_discriminative"], metrics["accuracy"] = discriminative_loss(
        targets["discriminative"], said["discriminative"], options.softmax
      )
    if "generative" in said:
      error = said["generative"] - targets["generative"]
      metrics["loss_generative"] = jnp.square(error).mean()
    value = metrics.get("loss_discriminative", 0.0)
    if "generative" in said:
      weight = options.generative_weight if options.task == "joint" else 1.0
      value = value + weight * metrics["loss_generative"]
    return Loss(value, metrics, said[self.tasks[0]])

  def flops(self, n_mels: int) -> float:
    """A pass for each loss; the encoder, a head over the hidden patches, and their products."""
    encoder, masked = self.config["encoder"], self.options.masked
    D, patch = encoder["width"], self.outputs
    frames = self.config["views"]["crop_frames"]
    encoded = make_encoder(encoder).flops(frames=frames, n_mels=n_mels)
    head = 2 * masked * D * (D + patch)
    products = 2 * masked**2 * patch if "discriminative" in self.tasks else 0
    return 3 * (len(self.tasks) * (encoded + head) + products)
