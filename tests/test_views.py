"""Views against slow twins, and what must hold of them whatever is drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.method import groups, normalization
from atst_jax.method import views as V

VIEWS = {
  "segments": "two",
  "crop_frames": 40,
  "first_frames": None,
  "second_frames": None,
  "padding": "mask",
  "normalization": {"kind": "min_max", "top_db": 80.0, "low": -80.0, "high": 50.0},
  "mixup_ratio": 0.4,
  "group": 4,
  "apart": False,
  "freq_scale": (0.6, 1.5),
  "time_scale": (0.6, 1.5),
  "canvas_time": 1.5,
  "fader_gain": 0.0,
  "post_norm": False,
}
STANDARD = (("kind", "standard"), ("mean", -7.0), ("std", 4.5))
BYOLA = {"normalization": STANDARD, "padding": "silence", "segments": "single"}
PLAIN = {"mixup_ratio": 0.0, "freq_scale": (1.0, 1.0), "time_scale": (1.5, 1.5), "canvas_time": 1.0}


@functools.cache
def _make_views(ragged, **changes):
  arguments = {**VIEWS, **changes}
  arguments["normalization"] = dict(arguments["normalization"])  # hashable where it is changed
  return jax.jit(functools.partial(V.make_views, ragged=ragged, **arguments))


def _mel(clips=8, frames=100, seed=0):
  return np.random.default_rng(seed).normal(-30, 20, (clips, frames, 64)).astype(np.float16)


MEL, FULL = _mel(), np.full(8, 100, np.int32)


def test_segments_of_ten_seconds_overlap_by_two():
  """Two crops of 601 frames in 1001: starts cover [0, 400] with both ends, so at least 201 frames
  are shared."""
  keys = jax.random.split(jax.random.key(1), 3000)
  crop = jax.vmap(
    lambda k: V.crop(
      jax.random.split(k),
      jnp.zeros((1001, 1)),
      jnp.int32(1001),
      crop_frames=601,
      frames_range=(601, 601),
    )[2]
  )
  start = np.asarray(crop(keys))
  assert start.min() == 0 and start.max() == 400


def test_single_segment_shares_the_crop_and_two_do_not():
  *_, drawn = _make_views(False, **BYOLA)(jax.random.key(0), MEL, FULL)
  assert (drawn["start"][:, 0] == drawn["start"][:, 1]).all()
  assert not np.allclose(drawn["box"][:, 0], drawn["box"][:, 1])  # augmented independently
  *_, drawn = _make_views(False)(jax.random.key(0), MEL, FULL)
  assert (drawn["start"][:, 0] != drawn["start"][:, 1]).any()


def test_partners_differ_between_views_and_from_the_clip():
  shifts = np.asarray(V.partner_shifts(jax.random.key(0), 3000, 4, apart=False))
  assert shifts.min() == 1 and shifts.max() == 3
  assert (shifts[:, 0] != shifts[:, 1]).all()
  counts = np.histogram2d(shifts[:, 0], shifts[:, 1], bins=3)[0]
  assert counts[~np.eye(3, dtype=bool)].min() > 400  # all six pairs alike
  assert (np.asarray(V.partner_shifts(jax.random.key(0), 9, 2, apart=False)) == 1).all()


def test_partners_come_from_the_group():
  x = np.arange(12.0)[:, None]
  shifts = np.array([1, 2, 3])
  np.testing.assert_array_equal(
    V.take_partners(x, shifts, 4)[:, 0], [1, 2, 3, 0, 6, 7, 4, 5, 11, 8, 9, 10]
  )
  np.testing.assert_array_equal(
    groups.shift_in_group(x, 4)[:, 0], [1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8]
  )


def test_without_augmentation_a_view_is_the_normalised_crop():
  pair, _, drawn = _make_views(False, **PLAIN)(jax.random.key(3), MEL, FULL)
  for clip in range(8):
    for k in range(2):
      piece = MEL[clip, drawn["start"][clip, k] :][:40].astype(np.float32)
      expected = 2 * (np.maximum(piece, piece.max() - 80) + 80) / 130 - 1
      np.testing.assert_allclose(pair[clip, k], expected, atol=1e-5)


def test_views_depend_on_the_key_and_the_clip_only():
  first, _, _ = _make_views(False)(jax.random.key(0), MEL, FULL)
  again, _, _ = _make_views(False)(jax.random.key(0), MEL, FULL)
  other, _, _ = _make_views(False)(jax.random.key(1), MEL, FULL)
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).mean() > 0.1 and np.abs(first[:, 0] - first[:, 1]).mean() > 0.1


def test_padding_never_enters_a_view():
  """Whatever stands behind a clip's length: the views are the same, and zero behind it."""
  length = np.array([100, 17, 40, 5, 31, 100, 2, 39], np.int32)
  mel = _mel()
  noise = np.where(np.arange(100)[None, :, None] < length[:, None, None], mel, np.float16(40))
  views, frames, _ = _make_views(True)(jax.random.key(0), mel, length)
  again, _, _ = _make_views(True)(jax.random.key(0), noise, length)
  np.testing.assert_array_equal(views, again)
  np.testing.assert_array_equal(frames, np.minimum(length, 40)[:, None].repeat(2, 1))
  views, frames = np.asarray(views), np.asarray(frames)
  assert not np.where(np.arange(40)[:, None] >= frames[:, :, None, None], views, 0).any()


def test_ragged_views_of_full_clips_are_those_of_the_static_path():
  static, none, _ = _make_views(False)(jax.random.key(0), MEL, FULL)
  ragged, frames, _ = _make_views(True)(jax.random.key(0), MEL, FULL)
  assert none is None and (frames == 40).all()
  np.testing.assert_allclose(static, ragged, atol=1e-5)


def test_byola_standardises_the_logarithm_of_power():
  """ln(power + float32 epsilon), also where power is far below it."""
  _, none, drawn = _make_views(False, **BYOLA)(jax.random.key(3), MEL, FULL)
  assert none is None
  start = int(drawn["start"][2, 0])
  power = 10 ** (MEL[2, start : start + 40].astype(np.float64) / 10)
  expected = (np.log(power + 2.0**-23) + 7) / 4.5
  np.testing.assert_allclose(drawn["segment"][2, 0], expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["standard", "min_max"])
def test_silence_fills_short_clips(kind):
  """As if the clip had been followed by zeros: the floor of the shards, clamped and normalised like
  sound."""
  changes = BYOLA if kind == "standard" else {"padding": "silence"}
  mel = _mel()
  mel[:, 25:] = 77.0  # whatever stands there
  filled = mel.copy()
  filled[:, 25:] = -100.0
  short, full = np.full(8, 25, np.int32), np.full(8, 40, np.int32)
  run = _make_views(False, **changes)
  pair, none, _ = run(jax.random.key(0), mel, short)
  expected, _, _ = run(jax.random.key(0), filled, full)
  assert none is None
  np.testing.assert_allclose(pair, expected, atol=1e-5)


DRAWN = {"first_frames": (10, 40), "second_frames": (10, 40)}


def test_lengths_are_drawn_for_every_clip_and_view():
  """10 to 40 frames of 100; padding 0; starts reach both ends."""
  n, noise = 2048, _mel(64)[:, :, :1]
  mel = np.tile(noise, (n // 64, 1, 1))
  views, frames, drawn = _make_views(True, **DRAWN)(jax.random.key(0), mel, np.full(n, 100))
  frames, start = np.asarray(frames), np.asarray(drawn["start"])
  assert frames.min() == 10 and frames.max() == 40 and len(np.unique(frames[:, 0])) == 31
  assert (frames[:, 0] != frames[:, 1]).mean() > 0.9
  assert start.min() == 0 and start.max() > 80 and (start + frames == 100).any()
  assert (start + frames <= 100).all()
  outside = np.arange(40)[None, None] >= frames[..., None]
  assert not np.where(outside[..., None], views, 0).any()
  for clip in range(0, n, 256):  # the segment is what lies there, at the clip's end too
    piece = mel[clip, start[clip, 0] :][: frames[clip, 0]].astype(np.float32)
    expected = normalization.normalize(piece, peak=piece.max(), **VIEWS["normalization"])
    np.testing.assert_allclose(drawn["segment"][clip, 0, : frames[clip, 0]], expected, atol=1e-5)


def test_views_of_two_lengths_of_clips_that_are_filled_up():
  """A view is as long as its range says, however short its clip; what is filled up counts, what
  lies behind a shorter view does not (the released script's 9 s and 6 s)."""
  ranges = {"first_frames": (40, 40), "second_frames": (20, 20)}
  assert V.is_ragged(100, padding="silence", crop_frames=40, **ranges)
  whole = {"first_frames": None, "second_frames": None}
  assert not V.is_ragged(5, padding="silence", crop_frames=40, **whole)
  assert V.is_ragged(5, padding="mask", crop_frames=40, **whole)
  mel, length = _mel(), np.full(8, 15, np.int32)
  run = _make_views(True, padding="silence", **PLAIN, **ranges)
  views, frames, _ = run(jax.random.key(0), mel, length)
  np.testing.assert_array_equal(frames, [[40, 20]] * 8)
  assert not np.asarray(views[:, 1, 20:]).any()
  sound = mel[0, :15].astype(np.float32)
  filled = np.full((40, 64), -100, np.float32)
  filled[:15] = sound
  expected = normalization.normalize(filled, peak=sound.max(), **VIEWS["normalization"])
  np.testing.assert_allclose(views[0, 0], expected, atol=1e-5)
  np.testing.assert_allclose(views[0, 1, :20], expected[:20], atol=1e-5)


def test_v1_fills_short_clips_up_at_both_ends():
  """BYOL-A v1 pads a waveform by half of what is missing before it, v2 behind it."""
  mel, length = _mel(), np.full(8, 25, np.int32)
  around, _, _ = _make_views(False, padding="silence_around", **PLAIN)(
    jax.random.key(0), mel, length
  )
  behind, _, _ = _make_views(False, padding="silence", **PLAIN)(jax.random.key(0), mel, length)
  np.testing.assert_array_equal(around, np.roll(behind, 7, axis=2))
  assert not np.allclose(around[..., 0, 0], around[..., 7, 0])


def test_fader_adds_one_line_to_every_view():
  plain, _, _ = _make_views(False, **PLAIN)(jax.random.key(3), MEL, FULL)
  faded, _, _ = _make_views(False, **PLAIN, fader_gain=1.0)(jax.random.key(3), MEL, FULL)
  line = np.asarray(faded - plain)
  assert np.ptp(line, axis=3).max() < 1e-5  # the same for all bins
  line = line[..., 0]
  np.testing.assert_allclose(np.diff(line, n=2, axis=-1), 0, atol=1e-5)
  ends = line[..., [0, -1]].reshape(-1)
  assert np.abs(ends).max() <= 1 and len(np.unique(ends.round(4))) == 32


def test_post_normalisation_is_of_all_views_together():
  run = _make_views(True, post_norm=True)
  views, _, drawn = run(jax.random.key(0), MEL, FULL)
  plain, _, _ = _make_views(False)(jax.random.key(0), MEL, FULL)
  plain = np.asarray(plain, np.float64)
  np.testing.assert_allclose(drawn["post_std"], plain.std(ddof=1), rtol=1e-5)
  np.testing.assert_allclose(views, (plain - plain.mean()) / plain.std(ddof=1), atol=1e-4)
  length = np.array([100, 30] * 4, np.int32)
  ragged, frames, _ = run(jax.random.key(0), MEL, length)
  valid = np.arange(40) < np.asarray(frames)[..., None]
  values = np.asarray(ragged, np.float64)[valid]
  assert abs(values.mean()) < 1e-4
  assert abs(values.std(ddof=1) - 1) < 1e-4
  assert not np.asarray(ragged)[~valid].any()


def test_partners_keep_apart_from_the_subtractions_neighbour():
  """Neither the next clip nor the one before, still different for both views; small groups have no
  room for that."""
  shifts = np.asarray(V.partner_shifts(jax.random.key(0), 3000, 6, apart=True))
  assert {tuple(s) for s in shifts} == {(a, b) for a in (2, 3, 4) for b in (2, 3, 4) if a != b}
  shifts = np.asarray(V.partner_shifts(jax.random.key(0), 3000, 4, apart=True))
  assert set(shifts.ravel()) == {1, 2, 3}


def test_draws_of_a_view_are_independent():
  """Start, weight, box and fader of a clip, of both views: no pair is correlated. Seen red with the
  fader's key folded from the box's: its head was then a function of the box's width."""
  n = 2048
  mel, length = np.zeros((n, 100, 1), np.float16), np.full(n, 100)
  run = _make_views(True, **DRAWN, fader_gain=1.0)
  views, frames, drawn = run(jax.random.key(0), mel, length)
  unfaded, _, plain = _make_views(True, **DRAWN)(jax.random.key(0), mel, length)
  np.testing.assert_array_equal(drawn["box"], plain["box"])
  line = np.asarray(views - unfaded)[..., 0]
  head = line[..., 0]
  last = np.take_along_axis(line, np.asarray(frames)[..., None] - 1, 2)[..., 0]
  width = drawn["box"][..., 3] / frames
  left = drawn["box"][..., 1] / np.maximum(
    np.floor(1.5 * np.asarray(frames)) - drawn["box"][..., 3], 1
  )
  start = drawn["start"] / (100 - frames)
  columns = np.stack(
    [
      x[:, k]
      for x in map(np.asarray, (head, last, width, left, start, drawn["weight"], frames))
      for k in (0, 1)
    ],
    1,
  )
  correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
  assert np.abs(correlation).max() < 0.1, correlation.round(2)
