"""Augmentations of one normalised log-mel clip, on the device: Mixup, random resize crop, random
linear fader.

Letters: T frames, F mel bins. Boxes and positions may be traced; shapes are static.
"""

import jax
import jax.numpy as jnp

MIX_EPS = 1.1920929e-07  # float32 epsilon, added inside the logarithm by BYOL-A's and ATST's Mixup
CUBIC = -0.75  # PyTorch's bicubic coefficient


def mixup(x, partner, weight):
  """log((1 - weight)·exp(x) + weight·exp(partner)) on normalised log-mel (BYOL-A; ATST keeps it as
  it is)."""
  return jnp.log((1 - weight) * jnp.exp(x) + weight * jnp.exp(partner) + MIX_EPS)


def place(key, partner, partner_length, length, *, last=True):
  """Aligns a padded (T, F) partner to a clip of another length: a random window of the longer one
  (released code).

  Args:
    last: whether the window may lie at the longer one's very end; the released code draws an offset
      below the last.

  Returns the moved partner and a (T,) mask of the frames where both are valid.
  """
  slack = partner_length - length
  offset = jax.random.randint(key, (), 0, jnp.maximum(jnp.abs(slack) + last, 1))
  start = jnp.where(slack < 0, offset, 0)  # where the shorter partner begins inside the clip
  partner = jnp.roll(partner, jnp.where(slack < 0, offset, -offset), axis=0)
  frame = jnp.arange(partner.shape[0])
  return partner, (frame >= start) & (frame < start + jnp.minimum(partner_length, length))


def cubic_weights(t):
  """Four taps at -1, 0, 1, 2 for a position t in [0, 1): (...) -> (..., 4)."""
  near = lambda x: ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
  far = lambda x: ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC
  return jnp.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], -1)


def interpolation_taps(n_out, *, start, size, out_size, offset):
  """(index, weight), both (n_out, 4): how to resize `size` samples of a zero canvas to `out_size`,
  bicubic with aligned corners.

  The input lies at `offset` on the canvas and the crop at `start`; taps are clamped to the crop's
  border as in PyTorch. An index outside of the input means 0, and so does every row from `out_size`
  on. start, size, out_size and offset may be traced. Positions are rounded to float32 as PyTorch
  does (about 2e-5 of the values); where sizes are equal the crop is copied exactly.
  """
  # A 1 that the compiler cannot know. XLA would turn a division by a constant into a product with
  # its inverse, and views would be 1e-5 off PyTorch's.
  one = jnp.minimum(jnp.asarray(size, jnp.float32), 1)
  scale = jnp.asarray(size - 1, jnp.float32) / (jnp.maximum(out_size - 1, 1) * one)
  position = scale * jnp.arange(n_out, dtype=jnp.float32)
  floor = jnp.floor(position)
  first = floor.astype(jnp.int32)
  index = jnp.clip(first[:, None] + jnp.arange(-1, 3)[None], 0, size - 1) + start - offset
  return index, jnp.where(jnp.arange(n_out)[:, None] < out_size, cubic_weights(position - floor), 0)


def resize_by_matrix(x, index, weight):
  """Interpolates the first axis: (n_in, …), taps (n_out, 4) -> (n_out, …), as a product, which
  is fast on matrix units."""
  matrix = sum(
    weight[:, k, None] * (index[:, k, None] == jnp.arange(x.shape[0])[None]) for k in range(4)
  )
  return jnp.matmul(matrix, x, precision="highest")


def resize_by_gather(x, index, weight):
  """The same, reading four rows for each."""
  weight = jnp.where((index >= 0) & (index < x.shape[0]), weight, 0)
  rows = x.at[index].get(mode="clip")  # (n_out, 4, …)
  return sum(weight[:, k, None] * rows[:, k] for k in range(4))


# or "auto": the faster one on the platform
RESIZES = {"gather": resize_by_gather, "matrix": resize_by_matrix}


def draw_box(key, length, n_mels, *, freq_scale, time_scale, canvas_time):
  """Draws (mel offset, time offset, mel size, time size) of a crop on the (n_mels,
  int(canvas_time·length)) canvas."""
  canvas = jnp.floor(canvas_time * length).astype(jnp.int32)
  mel_key, time_key, mel_offset_key, time_offset_key = jax.random.split(key, 4)
  draw = lambda key, scale, n: jnp.floor(
    jax.random.uniform(key, (), minval=scale[0], maxval=scale[1]) * n
  )
  height = jnp.clip(draw(mel_key, freq_scale, n_mels).astype(jnp.int32), 1, n_mels)
  width = jnp.clip(draw(time_key, time_scale, length).astype(jnp.int32), 1, canvas)
  return (
    jax.random.randint(mel_offset_key, (), 0, n_mels - height + 1),
    jax.random.randint(time_offset_key, (), 0, canvas - width + 1),
    height,
    width,
  )


def resize_crop(x, box, length, *, canvas_time, resize="auto"):
  """(T, F), a box of `draw_box` -> (T, F): the crop, bicubically resized to the clip's own length
  and all mel bins.

  `resize`: "gather", "matrix" or "auto", which gathers where the program is compiled for a CPU.
    They agree to rounding.
  """
  frames, n_mels = x.shape
  top, left, height, width = box
  canvas = jnp.floor(canvas_time * length).astype(jnp.int32)
  time = interpolation_taps(
    frames, start=left, size=width, out_size=length, offset=(canvas - length) // 2
  )
  mel = interpolation_taps(n_mels, start=top, size=height, out_size=n_mels, offset=0)
  x = resize_by_matrix(x.T, *mel).T
  if resize == "auto":
    return jax.lax.platform_dependent(x, *time, cpu=resize_by_gather, default=resize_by_matrix)
  return RESIZES[resize](x, *time)


def fade(x, head, tail, length):
  """BYOL-A v2: adds a line over time, `head` at the first, `tail` at the last of `length` frames;
  (T, F) -> (T, F)."""
  frame = jnp.arange(x.shape[0])[:, None]
  line = head + (tail - head) * frame / jnp.maximum(length - 1, 1)
  return jnp.where(frame < length, x + line, x)
