"""Two views of every clip of a batch, on the device: crop, clamp, normalise, Mixup, random resize
crop, fader.

Letters: B clips, K = 2 views, G clips of a group, T frames, F mel bins. All draws come from a key
folded with the clip's (or group's) index in the global batch, so they are the same on any mesh.
"""

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.method.augment import draw_box, fade, mixup, place, resize_crop
from atst_jax.method.groups import SILENT, in_groups, valid_frames
from atst_jax.method.normalization import normalize, normalize_batch

FLOOR_DB = -100.0  # silence in the shards
PADDINGS = ("mask", "silence", "silence_around")


def crop(keys, mel, length, *, crop_frames, frames_range):
  """(T, F) with `length` valid frames -> (crop_frames, F), its frames of sound, its start, the
  frames that it should have. Shorter clips start at 0.

  The crop's length is uniform over `frames_range`, at most crop_frames; its start is uniform over
  [0, length - that length], both ends included (ATST 2.2.1; the crop is taken from the
  mel-spectrogram as in the paper).
  """
  shortest, longest = frames_range
  frames = longest
  if shortest < longest:
    frames = jax.random.randint(keys[1], (), shortest, longest + 1)
  start = jax.random.randint(keys[0], (), 0, jnp.maximum(length - frames, 0) + 1)
  # a slice that would overrun is moved back otherwise
  mel = jnp.pad(mel, ((0, crop_frames - shortest), (0, 0)))
  segment = jax.lax.dynamic_slice_in_dim(mel, start, crop_frames)
  return segment, jnp.minimum(length, frames), start, jnp.asarray(frames, jnp.int32)


def frame_ranges(crop_frames, first_frames, second_frames):
  """[(shortest, longest) of view 1, of view 2]; a view without a range of its own always has
  `crop_frames`."""
  return [tuple(frames or (crop_frames, crop_frames)) for frames in (first_frames, second_frames)]


def is_ragged(shortest_clip, *, padding, crop_frames, first_frames, second_frames) -> bool:
  """Whether any view may be shorter than `crop_frames`, so that lengths have to be tracked.

  Args:
    shortest_clip: frames of the data set's shortest clip.
  """
  ranges = frame_ranges(crop_frames, first_frames, second_frames)
  shortest = min(low for low, _ in ranges)
  if padding == "mask":  # otherwise short clips are filled up
    shortest = min(shortest, shortest_clip)
  return shortest < crop_frames


def partner_shifts(key, num_groups, group, *, apart):
  """(B / G, 2) cyclic shifts inside each group, one for each view, different for both views if G
  allows.

  The released code draws each partner from a bank of earlier clips, one bank for each view. A
  random shift inside the group is such an independent other clip, without state or communication. A
  partner that both views shared would be a cue that ties them, so groups of 2 are for tests. A
  partner that is the clip's neighbour, or whose neighbour the clip is, would already hold what the
  subtraction takes away: with `apart`, groups of 5 and more leave both out.
  """
  lowest = 2 if apart and group >= 5 else 1
  choices = group - 2 * lowest + 1  # shifts lowest … group - lowest

  def draw(key):
    first_key, second_key = jax.random.split(key)
    first = jax.random.randint(first_key, (), 0, choices)
    second = jax.random.randint(second_key, (), 0, max(choices - 1, 1))
    second = jnp.where(second >= first, second + 1, second) if choices > 1 else first
    return lowest + jnp.stack([first, second])

  return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(jnp.arange(num_groups))


def take_partners(x, shifts, group):
  """(B, ...), (B / G,) shifts -> (B, ...): clip i of a group becomes clip (i + shift) mod G of
  it."""
  grouped = in_groups(x, group)
  index = (jnp.arange(group)[None] + shifts[:, None]) % group
  index = index.reshape(index.shape + (1,) * (grouped.ndim - 2))
  return jnp.take_along_axis(grouped, index, axis=1).reshape(x.shape)


def make_views(
  key,
  mel,
  length,
  *,
  segments,
  crop_frames,
  first_frames,
  second_frames,
  padding,
  normalization,
  mixup_ratio,
  group,
  apart,
  freq_scale,
  time_scale,
  canvas_time,
  fader_gain,
  post_norm,
  ragged,
  mixup_last_offset=True,
  resize="auto",
):
  """Two augmented views of every clip (ATST 2.2.1; BYOL-A).

  Args:
    key: the step's key.
    mel: (B, T, F) dB, any float type, padded after `length`.
    length: (B,) valid frames.
    segments: "two": every view is its own random crop; "single": both views share one.
    crop_frames: frames of the longest view; the others are padded to it.
    first_frames, second_frames: (shortest, longest) of each view, drawn for every clip; None for
      crop_frames.
    padding: of clips that are shorter than their view. "mask" tracks the valid frames; "silence"
      fills them up with silence at their end and counts it as sound, as the released codes do;
      "silence_around" at both ends, as BYOL-A v1's does.
    normalization: keyword arguments of `normalize` but for the peak, which is the crop's (released
      code).
    mixup_ratio: the partner's weight is uniform in [0, mixup_ratio).
    group: clips that may be mixed with each other; divides the batch of a device.
    apart: whether Mixup's partners must not be neighbours, which the subtraction mixes
      (`partner_shifts`).
    freq_scale, time_scale: ranges of the box's size relative to the view's.
    canvas_time: width of the zero canvas relative to the view's.
    fader_gain: both ends of the linear fader are uniform in ±fader_gain; 0 leaves it out.
    post_norm: whether all views are normalised together in the end (`normalize_batch`).
    ragged: whether any view may be shorter than crop_frames; if not, lengths are not tracked.
    mixup_last_offset: `last` of `place`, where clips differ in length.
    resize: how the random resize crop is computed (`augment.resize_crop`).

  Returns:
    views (B, 2, crop_frames, F) float32, their valid frames (B, 2) (None unless ragged), and what
    was drawn.
  """
  if segments not in ("two", "single") or padding not in PADDINGS:
    raise ValueError(
      f"views.segments {segments!r} must be 'two' or 'single', views.padding {padding!r} one of "
      f"{', '.join(PADDINGS)}"
    )
  clips, _, n_mels = mel.shape
  # (B, K, 6)
  keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), (2, 6)))(jnp.arange(clips))
  # start, length
  crop_keys = keys[:, np.array((0, 1) if segments == "two" else (0, 0))][:, :, np.array((0, 5))]
  ranges = frame_ranges(crop_frames, first_frames, second_frames)

  def segment(keys, mel, length, frames_range):
    piece, sound, start, frames = crop(
      keys, mel, length, crop_frames=crop_frames, frames_range=frames_range
    )
    piece, heard = piece.astype(jnp.float32), valid_frames(sound, crop_frames)[:, None]
    peak = jnp.max(jnp.where(heard, piece, SILENT))
    if padding == "mask":
      frames = sound
    else:
      piece = jnp.where(heard, piece, FLOOR_DB)
    if padding == "silence_around":
      piece = jnp.roll(piece, (frames - sound) // 2, axis=0)
    valid = valid_frames(frames, crop_frames)[:, None]
    return jnp.where(valid, normalize(piece, peak=peak, **normalization), 0), frames, start

  cropped = [
    jax.vmap(lambda keys, mel, length, r=r: segment(keys, mel, length, r))(
      crop_keys[:, k], mel, length
    )
    for k, r in enumerate(ranges)
  ]
  # (B, K, T, F), (B, K), (B, K)
  x, frames, start = (jnp.stack(both, 1) for both in zip(*cropped, strict=True))
  shifts = partner_shifts(jax.random.fold_in(key, clips), clips // group, group, apart=apart)
  partner = jnp.stack([take_partners(x[:, k], shifts[:, k], group) for k in (0, 1)], 1)
  partner_frames = jnp.stack([take_partners(frames[:, k], shifts[:, k], group) for k in (0, 1)], 1)
  # (B, K)
  weight = jax.vmap(jax.vmap(lambda k: mixup_ratio * jax.random.uniform(k)))(keys[:, :, 1])

  def augment(x, partner, frames, partner_frames, weight, mix_key, box_key, fade_key):
    size = frames if ragged else crop_frames
    if ragged:
      partner, both = place(mix_key, partner, partner_frames, frames, last=mixup_last_offset)
      mixed = jnp.where(both[:, None], mixup(x, partner, weight), x)
    else:
      mixed = mixup(x, partner, weight)
    box = draw_box(
      box_key, size, n_mels, freq_scale=freq_scale, time_scale=time_scale, canvas_time=canvas_time
    )
    view = resize_crop(mixed, box, size, canvas_time=canvas_time, resize=resize)
    ends = jnp.zeros(2, jnp.float32)
    if fader_gain:
      ends = jax.random.uniform(fade_key, (2,), minval=-fader_gain, maxval=fader_gain)
      view = fade(view, ends[0], ends[1], size)
    return view, box, ends

  each = jax.vmap(jax.vmap(augment))
  view_keys = (keys[:, :, i] for i in (2, 3, 4))
  views, box, ends = each(x, partner, frames, partner_frames, weight, *view_keys)
  length, post_std = (frames if ragged else None), jnp.ones(())
  if post_norm:
    views, post_std = normalize_batch(views, length)
  drawn = {
    "start": start,
    "shift": shifts,
    "weight": weight,
    "box": jnp.stack(box, -1),
    "fade": ends,
    "segment": x,
    "post_std": post_std,
  }
  return views, length, drawn
