"""Views of a batch of log-mel clips, on the device: crop, clamp, normalise, Mixup, random resize crop; mixtures.

Letters: B clips, K = 2 views, G clips of a group, T frames, F mel bins. All draws come from a key folded with the
clip's (or group's) index in the global batch, so they are the same on any mesh. Clips of a batch meet only inside
fixed groups of G consecutive clips; a group lies on one device, so nothing here communicates.
"""

import jax
import jax.numpy as jnp

MIX_EPS = 1.1920929e-07  # float32 epsilon, added inside the logarithm by BYOL-A's and ATST's Mixup
CUBIC = -0.75  # PyTorch's bicubic coefficient
NEPERS_PER_DB = 0.23025851  # ln(10) / 10, of power
CLAMP_MASK = -1e9  # level of padding when a maximum or a mixture is taken


def normalization_scale(low, high):
  """Nepers of power per unit of `normalize`'s output: the k of the energy-domain mixture (15.005 for released ATST)."""
  return NEPERS_PER_DB * (high - low) / 2


def valid_frames(length, frames):
  """(...) lengths -> (..., frames) booleans."""
  return jax.lax.broadcasted_iota(jnp.int32, (*length.shape, frames), length.ndim) < length[..., None]


def normalize(mel, *, peak, top_db, low, high):
  """dB clamped to `top_db` below `peak`, then mapped so that low..high dB becomes -1..1; any shapes that broadcast.

  The formula of the released code (torchaudio AmplitudeToDB, MinMax): no clipping to [-1, 1].
  """
  return 2 * (jnp.maximum(mel, peak - top_db) - low) / (high - low) - 1


def crop(key, mel, length, *, crop_frames):
  """(T, F) with `length` valid frames -> (crop_frames, F), its valid frames, its start. Shorter clips start at 0.

  The start is uniform over [0, length - crop_frames], both ends included (ATST 2.2.1; the crop is taken from the
  mel-spectrogram as in the paper).
  """
  start = jax.random.randint(key, (), 0, jnp.maximum(length - crop_frames, 0) + 1)
  segment = jax.lax.dynamic_slice_in_dim(mel, start, crop_frames)
  return segment, jnp.minimum(length, crop_frames), start


def mixup(x, partner, weight):
  """log((1 - weight)·exp(x) + weight·exp(partner)) on normalised log-mel (BYOL-A; ATST keeps it as it is)."""
  return jnp.log((1 - weight) * jnp.exp(x) + weight * jnp.exp(partner) + MIX_EPS)


def place(key, partner, partner_length, length):
  """Aligns a padded (T, F) partner to a clip of another length: a random window of the longer one (released code).

  Returns the moved partner and a (T,) mask of the frames where both are valid.
  """
  slack = partner_length - length
  offset = jax.random.randint(key, (), 0, jnp.abs(slack) + 1)
  start = jnp.where(slack < 0, offset, 0)  # where the shorter partner begins inside the clip
  partner = jnp.roll(partner, jnp.where(slack < 0, offset, -offset), axis=0)
  frame = jnp.arange(partner.shape[0])
  return partner, (frame >= start) & (frame < start + jnp.minimum(partner_length, length))


def cubic_weights(t):
  """Four taps at -1, 0, 1, 2 for a position t in [0, 1): (...) -> (..., 4)."""
  near = lambda x: ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
  far = lambda x: ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC
  return jnp.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], -1)


def interpolation_matrix(n_in, n_out, *, start, size, out_size, offset):
  """(n_out, n_in) matrix that resizes `size` samples of a zero canvas to `out_size`, bicubic with aligned corners.

  The input lies at `offset` on the canvas and the crop at `start`; taps are clamped to the crop's border as in PyTorch.
  Rows from `out_size` on are zero. start, size, out_size and offset may be traced. Positions are rounded to float32 as
  PyTorch does (about 2e-5 of the values); where sizes are equal the crop is copied exactly.
  """
  scale = jnp.asarray(size - 1, jnp.float32) / jnp.maximum(out_size - 1, 1)
  position = scale * jnp.arange(n_out, dtype=jnp.float32)
  floor = jnp.floor(position)
  weights = cubic_weights(position - floor)
  first = floor.astype(jnp.int32)
  taps = jnp.clip(first[:, None] + jnp.arange(-1, 3)[None], 0, size - 1) + start - offset
  matrix = sum(weights[:, k, None] * (taps[:, k, None] == jnp.arange(n_in)[None]) for k in range(4))
  return jnp.where(jnp.arange(n_out)[:, None] < out_size, matrix, 0)


def draw_box(key, length, n_mels, *, freq_scale, time_scale, canvas_time):
  """Draws (mel offset, time offset, mel size, time size) of a crop on the (n_mels, int(canvas_time·length)) canvas."""
  canvas = jnp.floor(canvas_time * length).astype(jnp.int32)
  mel_key, time_key, mel_offset_key, time_offset_key = jax.random.split(key, 4)
  draw = lambda key, scale, n: jnp.floor(jax.random.uniform(key, (), minval=scale[0], maxval=scale[1]) * n)
  height = jnp.clip(draw(mel_key, freq_scale, n_mels).astype(jnp.int32), 1, n_mels)
  width = jnp.clip(draw(time_key, time_scale, length).astype(jnp.int32), 1, canvas)
  return (
    jax.random.randint(mel_offset_key, (), 0, n_mels - height + 1),
    jax.random.randint(time_offset_key, (), 0, canvas - width + 1),
    height,
    width,
  )


def resize_crop(x, box, length, *, canvas_time):
  """(T, F), a box of `draw_box` -> (T, F): the crop, bicubically resized to the clip's own length and all mel bins."""
  frames, n_mels = x.shape
  top, left, height, width = box
  canvas = jnp.floor(canvas_time * length).astype(jnp.int32)
  time = interpolation_matrix(frames, frames, start=left, size=width, out_size=length, offset=(canvas - length) // 2)
  mel = interpolation_matrix(n_mels, n_mels, start=top, size=height, out_size=n_mels, offset=0)
  return jnp.matmul(time, jnp.matmul(x, mel.T, precision="highest"), precision="highest")


def in_groups(x, group):
  """(B, ...) -> (B / G, G, ...)."""
  return x.reshape(x.shape[0] // group, group, *x.shape[1:])


def shift_in_group(x, group):
  """s(x): the next clip of the same group, cyclically: (B, ...) -> (B, ...). With G = B it is the paper's shift."""
  return jnp.roll(in_groups(x, group), -1, axis=1).reshape(x.shape)


def partner_shifts(key, num_groups, group):
  """(B / G, 2) cyclic shifts in [1, G - 1], one for each view of every group, never the same for both views.

  The released code draws each partner from a bank of earlier clips, one bank for each view. A random shift inside the
  group is such an independent other clip, without state or communication. A partner that both views shared would be a
  cue that ties them.
  """

  def draw(key):
    first_key, second_key = jax.random.split(key)
    first = jax.random.randint(first_key, (), 1, group)
    second = jax.random.randint(second_key, (), 1, max(group - 1, 2))
    return jnp.stack([first, jnp.where(second >= first, second + 1, second) if group > 2 else first])

  return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(jnp.arange(num_groups))


def take_partners(x, shifts, group):
  """(B, ...), (B / G,) shifts -> (B, ...): clip i of a group becomes clip (i + shift) mod G of it."""
  grouped = in_groups(x, group)
  index = (jnp.arange(group)[None] + shifts[:, None]) % group
  index = index.reshape(index.shape + (1,) * (grouped.ndim - 2))
  return jnp.take_along_axis(grouped, index, axis=1).reshape(x.shape)


def make_views(key, mel, length, *, segments, crop_frames, top_db, low, high, mixup_ratio, group, freq_scale,
               time_scale, canvas_time, ragged):  # fmt: skip
  """Two augmented views of every clip (ATST 2.2.1).

  Args:
    key: the step's key.
    mel: (B, T, F) dB, any float type, padded after `length`.
    length: (B,) valid frames.
    segments: "two": every view is its own random crop; "single": both views share one.
    crop_frames: frames of a view.
    top_db: clamp below each crop's maximum, dB.
    low, high: dB that become -1 and 1.
    mixup_ratio: the partner's weight is uniform in [0, mixup_ratio).
    group: clips that may be mixed with each other; divides the batch of a device.
    freq_scale, time_scale: ranges of the crop's size relative to the clip's.
    canvas_time: width of the zero canvas relative to the clip's.
    ragged: whether any clip may be shorter than the crop; if not, lengths are not tracked.

  Returns:
    views (B, 2, crop_frames, F) float32, their valid frames (B, 2) (None unless ragged), and what was drawn.
  """
  clips, _, n_mels = mel.shape
  keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), (2, 4)))(jnp.arange(clips))  # (B, K, 4)
  if segments not in ("two", "single"):
    raise ValueError(f"views.segments is {segments!r}; choose 'two' or 'single'")
  crop_keys = keys[:, :, 0] if segments == "two" else keys[:, :1, 0].repeat(2, 1)

  def segment(key, mel, length):
    piece, frames, start = crop(key, mel, length, crop_frames=crop_frames)
    piece, valid = piece.astype(jnp.float32), valid_frames(frames, crop_frames)[:, None]
    peak = jnp.max(jnp.where(valid, piece, CLAMP_MASK))  # of the crop, as in the released code
    piece = normalize(piece, peak=peak, top_db=top_db, low=low, high=high)
    return jnp.where(valid, piece, 0), frames, start

  per_view = lambda f: jax.vmap(jax.vmap(f, (0, None, None)))
  x, frames, start = per_view(segment)(crop_keys, mel, length)  # (B, K, T, F), (B, K), (B, K)
  shifts = partner_shifts(jax.random.fold_in(key, clips), clips // group, group)
  partner = jnp.stack([take_partners(x[:, k], shifts[:, k], group) for k in (0, 1)], 1)
  weight = jax.vmap(jax.vmap(lambda k: mixup_ratio * jax.random.uniform(k)))(keys[:, :, 1])  # (B, K)

  def augment(x, partner, frames, partner_frames, weight, mix_key, box_key):
    size = frames if ragged else crop_frames
    if ragged:
      partner, both = place(mix_key, partner, partner_frames, frames)
      mixed = jnp.where(both[:, None], mixup(x, partner, weight), x)
    else:
      mixed = mixup(x, partner, weight)
    box = draw_box(box_key, size, n_mels, freq_scale=freq_scale, time_scale=time_scale, canvas_time=canvas_time)
    return resize_crop(mixed, box, size, canvas_time=canvas_time), box

  partner_frames = jnp.stack([take_partners(frames[:, k], shifts[:, k], group) for k in (0, 1)], 1)
  views, box = jax.vmap(jax.vmap(augment))(x, partner, frames, partner_frames, weight, keys[:, :, 2], keys[:, :, 3])
  drawn = {"start": start, "shift": shifts, "weight": weight, "box": jnp.stack(box, -1), "segment": x}
  return views, frames if ragged else None, drawn


def mix_neighbours(views, length, gamma, *, group, scale):
  """w = log(γ·e^{s(v)} + (1 - γ)·e^v): the difference-aware paper's Eq. 2; γ weighs the neighbour.

  Args:
    views: (B, K, T, F) normalised log-mel.
    length: (B, K) valid frames or None. A mixture is as long as its longer part; padding counts as silence.
    gamma: (B, K) in (0, 1).
    group: clips of a group.
    scale: 1 mixes the normalised values (the letter of Eq. 2); nepers of power per unit mix energies.

  Returns:
    mixtures (B, K, T, F) and their valid frames (B, K) or None.
  """
  gamma = gamma[..., None, None]
  neighbour = shift_in_group(views, group)
  if length is not None:
    neighbour_length = shift_in_group(length, group)
    valid = lambda length: valid_frames(length, views.shape[2])[..., None]
    views = jnp.where(valid(length), views, CLAMP_MASK)
    neighbour = jnp.where(valid(neighbour_length), neighbour, CLAMP_MASK)
    length = jnp.maximum(length, neighbour_length)
  mixed = jnp.logaddexp(scale * neighbour + jnp.log(gamma), scale * views + jnp.log1p(-gamma)) / scale
  return (mixed if length is None else jnp.where(valid(length), mixed, 0)), length
