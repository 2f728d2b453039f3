"""Random resize crop of a spectrogram against a slow twin in float64; Mixup's partner."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.method import augment


def _cubic(t):
  w = lambda x: (
    1.25 * x**3 - 2.25 * x**2 + 1
    if x <= 1
    else -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
    if x < 2
    else 0.0
  )
  return [w(abs(t - k)) for k in (-1, 0, 1, 2)]


def _slow_resize_crop(x, box, length, canvas_time):
  """Loops in float64: paste on the canvas, cut the box, resize each axis with taps clamped to the
  box."""
  top, left, height, width = box
  canvas = np.zeros((int(canvas_time * length), x.shape[1]))
  start = (len(canvas) - length) // 2
  canvas[start : start + length] = x[:length]
  piece = canvas[left : left + width, top : top + height]

  def resize(a, n_out):
    out = np.zeros((n_out, a.shape[1]))
    for o in range(n_out):
      s = o * (len(a) - 1) / (n_out - 1) if n_out > 1 else 0.0
      f = int(np.floor(s))
      for k, w in zip((-1, 0, 1, 2), _cubic(s - f), strict=True):
        out[o] += w * a[min(max(f + k, 0), len(a) - 1)]
    return out

  out = np.zeros(x.shape)
  out[:length] = resize(resize(piece.T, x.shape[1]).T, length)
  return out


@pytest.mark.parametrize("length", [40, 23, 2, 1])
def test_resize_crop_equals_slow_twin(length):
  rng = np.random.default_rng(length)
  x = rng.normal(size=(40, 64)).astype(np.float32) * (np.arange(40) < length)[:, None]
  run = jax.jit(lambda x, box, n: augment.resize_crop(x, box, n, canvas_time=1.5))
  for _ in range(8):
    box = [
      int(v)
      for v in augment.draw_box(
        jax.random.key(rng.integers(1 << 30)),
        length,
        64,
        freq_scale=(0.6, 1.5),
        time_scale=(0.6, 1.5),
        canvas_time=1.5,
      )
    ]
    np.testing.assert_allclose(
      run(x, box, length), _slow_resize_crop(x, box, length, 1.5), atol=1e-4
    )


def test_positions_are_divided_as_pytorch_does():
  """(size - 1) / (out_size - 1) in float32, though `out_size` is known at compilation. Seen red
  where XLA multiplied by the inverse: views were 1.5e-5 off."""
  sizes = np.arange(2, 97, dtype=np.int32)
  taps = lambda size: augment.interpolation_taps(64, start=0, size=size, out_size=64, offset=0)
  index, weight = jax.jit(jax.vmap(taps))(sizes)
  scale = (sizes - 1).astype(np.float32) / np.float32(63)
  position = scale[:, None] * np.arange(64, dtype=np.float32)
  floor = np.floor(position)
  np.testing.assert_array_equal(index[..., 1], np.minimum(floor, sizes[:, None] - 1))
  expected = [[_cubic(t) for t in row] for row in (position - floor).astype(np.float64)]
  np.testing.assert_allclose(weight, expected, atol=2e-6)


def test_identity_crop_is_exact():
  x = jnp.asarray(np.random.default_rng(0).normal(-30, 20, (100, 64)), jnp.float32)
  np.testing.assert_array_equal(augment.resize_crop(x, (0, 25, 64, 100), 100, canvas_time=1.5), x)


def test_boxes_stay_on_the_canvas_and_cover_their_ranges():
  keys = jax.random.split(jax.random.key(0), 4000)
  draw = functools.partial(
    augment.draw_box, freq_scale=(0.6, 1.5), time_scale=(0.6, 1.5), canvas_time=1.5
  )
  top, left, height, width = map(np.asarray, jax.vmap(lambda k: draw(k, 601, 64))(keys))
  assert (top >= 0).all()
  assert (top + height <= 64).all()
  assert (left >= 0).all()
  assert (left + width <= 901).all()
  assert height.min() == 38 and height.max() == 64 and abs((height == 64).mean() - 0.556) < 0.03
  assert (
    width.min() < 370 and width.max() > 890 and (left + width == 901).any() and (left == 0).any()
  )


@pytest.mark.parametrize("partner_length, length", [(30, 12), (12, 30), (20, 20)])
def test_partners_of_other_length_are_placed_inside(partner_length, length):
  partner = np.zeros((40, 1), np.float32)
  partner[:partner_length, 0] = 1 + np.arange(partner_length)
  starts = set()
  for seed in range(60):
    moved, both = augment.place(jax.random.key(seed), partner, partner_length, length)
    inside = np.asarray(moved)[np.asarray(both), 0]
    assert len(inside) == min(partner_length, length)
    assert (np.diff(inside) == 1).all()
    assert inside.min() >= 1
    assert np.flatnonzero(both).max() < length
    starts.add((int(np.flatnonzero(both)[0]), int(inside[0])))
  assert len(starts) == min(abs(partner_length - length) + 1, len(starts))
  assert len(starts) > 10 * (partner_length != length)


@pytest.mark.parametrize("frames", [(10, 4), (4, 10)])
def test_offsets_of_mixups_window(frames):
  """Every offset of the shorter clip in the longer; in the released code without the last."""
  partner_frames, length = frames
  x = jnp.arange(1.0, 13.0)[:, None]
  for last in (True, False):
    place = functools.partial(
      augment.place, partner=x, partner_length=partner_frames, length=length, last=last
    )
    moved, both = map(np.asarray, jax.vmap(place)(jax.random.split(jax.random.key(0), 500)))
    first = np.argmax(both, 1)
    np.testing.assert_array_equal(both.sum(1), 4)
    found = first if length > partner_frames else moved[:, 0, 0] - 1
    assert set(found) == set(range(7 if last else 6))
