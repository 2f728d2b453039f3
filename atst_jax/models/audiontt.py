"""BYOL-A's encoders: AudioNTT2020 (v1) and AudioNTT2022 (v2)."""

import flax.linen as nn
import jax.numpy as jnp

from atst_jax.models.layers import BatchNorm, torch_bias_init, torch_kernel_init

CHANNELS = 64
BLOCKS = {"AudioNTT2022": 2, "AudioNTT2020": 3}  # convolutions, each of which halves the frames


# The gradient of `x.max()` goes where x equals the maximum. A compiler may compute x anew for that
# comparison, rounded otherwise (fused, or in bfloat16 with excess precision), and the gradient is
# lost. Here it goes to what was chosen.


def pool_frames(frames, length=None):
  """Maximum plus mean over the valid vectors of a clip: (B, N, D), (B,) or None -> (B, D) (BYOL-A).

  Of equal maxima the first has the gradient.
  """
  place = jnp.arange(frames.shape[1])[None, :, None]
  if length is None:
    chosen = frames.argmax(1, keepdims=True)
    mean = frames.mean(1)
  else:
    valid = place < length[:, None, None]
    chosen = jnp.where(valid, frames, -jnp.inf).argmax(1, keepdims=True)
    mean = jnp.where(valid, frames, 0).sum(1) / jnp.maximum(length, 1)[:, None]
  return jnp.where(place == chosen, frames, 0).sum(1) + mean


def _halved(x):
  """Maxima of 2 x 2: (B, T, F, C) -> (B, T // 2, F // 2, C). The gradient of a reduce-window takes
  twice as long on a CPU; of equal maxima this one's is shared, which behind a ReLU only zeros
  are."""
  B, T, F, C = x.shape
  x = x[:, : T // 2 * 2, : F // 2 * 2].reshape(B, T // 2, 2, F // 2, 2, C)
  x = jnp.maximum(x[:, :, 0], x[:, :, 1])
  return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


class AudioNTT(nn.Module):
  """Blocks of convolution, BatchNorm, ReLU and pooling, a perceptron for every frame, and pooling
  over time.

  "AudioNTT2022" (BYOL-A v2): two blocks; a frame's vector is the `width` of the concatenation of
  the 64·F/4 convolutional features and the perceptron's output. "AudioNTT2020" (v1): three blocks;
  the perceptron's output alone. Initialisation is PyTorch's default.
  """

  version: str
  width: int
  hidden: int
  dropout: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False):
    """Encodes standardised log-mel.

    Args:
      mel: (B, T, F); T and F are halved by every block, the odd frame or bin dropped.
      length: (B,) valid frames, at least 2^blocks, or None if all are. Where the input is 0 behind
        them, the result is that of the clip alone. When training, BatchNorm's statistics would see
        the padding: pass None.
      train: whether BatchNorm uses the batch's statistics and dropout is on.
      track: whether BatchNorm's running statistics are updated, if training.
      tokens: plays no part: frames are always returned.

    Returns:
      y (B, D) float32 and {"frames": (B, T // 2^blocks, D)} float32, which `pool_frames` pools to
      y.
    """
    del tokens
    blocks = BLOCKS[self.version]
    x = mel[..., None].astype(self.dtype)  # (B, T, F, 1)
    for i in range(blocks):
      fan_in = 9 * x.shape[-1]
      x = nn.Conv(
        CHANNELS,
        (3, 3),
        padding=1,
        dtype=self.dtype,
        kernel_init=torch_kernel_init,
        bias_init=torch_bias_init(fan_in),
        name=f"conv_{i}",
      )(x)
      x = nn.relu(BatchNorm(name=f"norm_{i}")(x, train=train, track=track)).astype(self.dtype)
      x = _halved(x)
      # the next convolution must find zeros behind the clip's end, as at an array's border
      if length is not None:
        length = length // 2
        x = jnp.where((jnp.arange(x.shape[1])[None] < length[:, None])[..., None, None], x, 0)
    features = x.reshape(*x.shape[:2], -1)  # (B, N, F' · C), mel-major

    def dense(x, features, name):
      return nn.relu(
        nn.Dense(
          features,
          dtype=self.dtype,
          kernel_init=torch_kernel_init,
          bias_init=torch_bias_init(x.shape[-1]),
          name=name,
        )(x)
      )

    stacked = self.version == "AudioNTT2022"
    h = nn.Dropout(self.dropout, deterministic=not train)(dense(features, self.hidden, "fc1"))
    frames = dense(h, self.width - features.shape[-1] if stacked else self.width, "fc2")
    if stacked:
      frames = jnp.concatenate([features, frames], -1)
    frames = frames.astype(jnp.float32)
    return pool_frames(frames, length), {"frames": frames}


def cnn_forward(*, frames, n_mels, version, width, hidden) -> float:
  """FLOPs of BYOL-A's encoder on one clip."""
  total, channels = 0, 1
  for _ in range(BLOCKS[version]):
    total += 2 * 9 * channels * CHANNELS * frames * n_mels
    frames, n_mels, channels = frames // 2, n_mels // 2, CHANNELS
  features = n_mels * CHANNELS
  return total + 2 * frames * hidden * (
    features + (width - features if version == "AudioNTT2022" else width)
  )
