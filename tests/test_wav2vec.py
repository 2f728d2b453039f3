"""wav2vec 2.0's loss on log-mel: spans, distractors, the loss against a float64 twin, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.objectives.masking import draw_others, span_mask
from atst_jax.objectives.registry import get_objective
from atst_jax.objectives.wav2vec import alike, contrastive_loss
from atst_jax.objectives.windows import take_windows
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check
from atst_jax.util.errors import UserError
from configs import byola
from tests.tiny import tiny_config


@pytest.mark.parametrize("count", [60, 25])
def test_spans_lie_inside_the_clip_and_hide_their_share(count):
  """A share of 0.065 begins them, without replacement."""
  draw = functools.partial(span_mask, count=count, vectors=60, probability=0.065, span=10)
  hidden = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000)))
  assert not hidden[:, count:].any() and hidden[:, :count].any(1).all()
  edges = np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(int), axis=1)
  for row in edges[:500]:
    assert (np.flatnonzero(row == -1) - np.flatnonzero(row == 1) >= 10).all()
  rng, shares = np.random.default_rng(0), []
  for _ in range(4000):
    alone = np.zeros(count, bool)
    number = max(1, int(0.065 * count + rng.random()))
    for start in rng.choice(count - 9, number, replace=False):
      alone[start : start + 10] = True
    shares.append(alone)
  expected = np.mean(shares, 0)
  deviation = np.sqrt(2 * expected * (1 - expected) / 4000)
  assert (np.abs(hidden[:, :count].mean(0) - expected) < 4.5 * deviation).all()


@pytest.mark.parametrize(
  "file, hop", [("conformer.py:small", 2), ("conformer.py:small_transformer", 4)]
)
def test_silence_around_a_short_clip_is_not_hidden(file, hop):
  """Where the sound lies is asked of `take_windows`."""
  objective = get_objective(recipe.resolve(tiny_config(file, wav2vec__probability="0.4"), None))
  frames = objective.config["views"]["crop_frames"]
  lengths = jnp.array([frames + 9, frames, 21, 18, 13, 3])
  clips = jnp.zeros((len(lengths), frames + 9, 1))
  windows = take_windows(clips, lengths, jnp.zeros((len(lengths), 1), int), frames)[:, 0, :, 0]
  heard = np.asarray(windows == 0).reshape(len(lengths), -1, hop).all(-1)
  drawn = jax.jit(jax.vmap(objective.spans, (0, None)))(
    jax.random.split(jax.random.key(0), (200, len(lengths))), lengths
  )
  hidden = np.asarray(drawn)
  assert (hidden.sum(-1) >= 2).all() and hidden.shape[-1] == frames // hop
  for clip, inside in enumerate(heard[:-1]):
    np.testing.assert_array_equal(hidden[:, clip].any(0), inside)
  assert heard[-1].sum() < 2 and (hidden[:, -1].sum(-1) == 2).all()  # too short for a distractor


def test_two_vectors_are_hidden_at_least():
  """Where spans are of one vector, too: the other one is its distractor."""
  draw = functools.partial(span_mask, count=20, vectors=30, probability=0.01, span=1)
  hidden = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 200)))
  assert (hidden.sum(1) == 2).all()


def test_distractors_are_the_other_hidden_vectors():
  """All alike, and never the vector itself."""
  hidden = np.random.default_rng(0).random(30) < 0.4
  others = np.asarray(draw_others(jax.random.key(0), jnp.asarray(hidden), number=3000))
  assert others.shape == (30, 3000) and hidden.sum() > 5
  for place in np.flatnonzero(hidden):
    shares = np.bincount(others[place], minlength=30) / 3000
    wanted = np.where(hidden & (np.arange(30) != place), 1 / (hidden.sum() - 1), 0)
    assert np.abs(shares - wanted).max() < 4.5 * np.sqrt(wanted.max() / 3000)
    assert not shares[wanted == 0].any()


def test_the_loss_is_that_of_a_float64_twin():
  rng = np.random.default_rng(0)
  said, features = rng.normal(size=(2, 3, 12, 5))
  hidden = rng.random((3, 12)) < 0.6
  hidden[:, :2] = True
  others = np.stack(
    [draw_others(jax.random.key(i), jnp.asarray(row), number=7) for i, row in enumerate(hidden)]
  )
  losses, right = [], []
  cosine = lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))
  for b, t in zip(*np.nonzero(hidden), strict=True):
    near = cosine(said[b, t], features[b, t])
    far = [cosine(said[b, t], features[b, s]) for s in others[b, t]]
    losses.append(-near / 0.1 + np.log(np.exp(np.array([near, *far]) / 0.1).sum()))
    right.append(near > max(far))
  arrays = (jnp.asarray(x, jnp.float32) for x in (said, features))
  loss, accuracy = contrastive_loss(*arrays, jnp.asarray(hidden), jnp.asarray(others), 0.1)
  np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
  np.testing.assert_allclose(accuracy, np.mean(right), rtol=1e-6)


def test_vectors_are_alike_where_all_numbers_are():
  """Without D comparisons of every pair, which were 47 GiB of a batch of the paper's size."""
  x = np.random.default_rng(0).integers(-1, 2, (4, 60, 3)).astype(np.float32)
  x[0, :9], x[1, 0] = 0.0, -0.0
  found = np.asarray(jax.jit(alike)(jnp.asarray(x)))
  np.testing.assert_array_equal(found, (x[:, :, None] == x[:, None]).all(-1))
  shape = jax.ShapeDtypeStruct((8, 500, 768), jnp.float32)
  memory = jax.jit(alike).lower(shape).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 8 * 500 * 500 * 768 / 10


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"encoder": byola.get_config().encoder}, "encoder.kind=cnn cannot; set --config.encoder.kind"),
    ({"views.crop_frames": 31}, "crop_frames=31 is not divisible by the 2 frames .* take 30"),
    ({"wav2vec.span": 16}, "wav2vec.span=16: a crop has 16 vectors, and needs 17"),
    ({"wav2vec.temperature": 0.0}, "wav2vec.temperature=0.0: must lie between"),
  ],
)
def test_what_does_not_fit_is_refused(changes, message):
  config = recipe.resolve(tiny_config("conformer.py:small"), None)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    check(config, None, devices=8, processes=1)
