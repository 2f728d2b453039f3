"""The linear probe against a slow twin in numpy, and its invariants."""

import jax
import numpy as np
import pytest

from atst_jax.downstream import features
from atst_jax.downstream.linear import atst_probe, evar_probe, probing, selection
from atst_jax.downstream.linear.probing import Training
from atst_jax.downstream.metrics import accuracy, mean_average_precision
from atst_jax.downstream.splits import Split
from atst_jax.util.errors import UserError

N, D, C = 60, 5, 3


@pytest.fixture
def data():
  """Features of unlike scales, one-hot targets and many-hot targets."""
  rng = np.random.default_rng(0)
  x = (rng.normal(size=(N, D)) * [1, 10, 0.1, 3, 1] + [0, -50, 5, 0, 1]).astype(np.float32)
  labels = (rng.random((N, C)) < 0.4).astype(np.float32)
  return x, np.eye(C, dtype=np.float32)[rng.integers(C, size=N)], labels


def fit(
  x, targets, index, *, rates=((0.1,),), seeds=(0,), epochs=4, batch_size=16, multi_label=False
):
  return atst_probe.fit(
    x,
    targets,
    index,
    rates=rates,
    seeds=seeds,
    epochs=epochs,
    batch_size=batch_size,
    multi_label=multi_label,
  )


def choose(x, targets, split, score, *, rates, seeds, refit, **options):
  """`selection.evaluate` with ATST's probe."""
  train = lambda index, valid, rates: atst_probe.fit(
    x, targets, index, rates=rates, seeds=seeds, **options
  )
  return selection.evaluate(train, x, targets, split, score, rates=rates, seeds=seeds, refit=refit)


def slow_fit(x, targets, index, *, rate, seed, epochs, batch_size, multi_label, seen=None):
  """The protocol in float64 loops; weights and order from the documented keys. Returns weights,
  bias, mean, std; `seen` is given those of every epoch."""
  x, targets = x.astype(np.float64), targets.astype(np.float64)
  key = jax.random.key(seed)
  w = 0.01 * np.asarray(jax.random.normal(jax.random.fold_in(key, 2**32 - 1), (D, C)), np.float64)
  b, vw, vb = np.zeros(C), np.zeros((D, C)), np.zeros(C)
  mean, var = np.zeros(D), np.ones(D)
  for epoch in range(epochs):
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), np.asarray(index)))
    step_size = rate * batch_size / 256 * (1 + np.cos(np.pi * epoch / epochs)) / 2
    for start in range(0, len(order), batch_size):
      rows = order[start : start + batch_size]
      batch = x[rows]
      mean = 0.9 * mean + 0.1 * batch.mean(0)
      var = 0.9 * var + 0.1 * batch.var(0, ddof=1)
      batch = (batch - batch.mean(0)) / np.sqrt(batch.var(0) + 1e-5)
      logits = batch @ w + b
      if multi_label:
        error = (1 / (1 + np.exp(-logits)) - targets[rows]) / logits.size
      else:
        error = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = (error - targets[rows]) / len(rows)
      vw, vb = 0.9 * vw + batch.T @ error, 0.9 * vb + error.sum(0)
      w, b = w - step_size * vw, b - step_size * vb
    if seen is not None:
      seen.append((w, b, mean, np.sqrt(var + 1e-5)))
  return w, b, mean, np.sqrt(var + 1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
# the last of 3 x 16 holds 13; 45 is one batch
@pytest.mark.parametrize("batch_size", [16, 15, 45, 1024])
def test_equals_a_slow_numpy_twin(data, batch_size, multi_label):
  x, targets = data[0], data[2 if multi_label else 1]
  index = np.arange(N)[N // 4 :]
  rate = 3.0 if multi_label else 0.5
  settings = {"epochs": 6, "batch_size": batch_size, "multi_label": multi_label}
  found = fit(x, targets, index, rates=[[rate]], seeds=[3], **settings)
  expected = slow_fit(x, targets, index, rate=rate, seed=3, **settings)
  for name, a, b in zip(
    found._fields,
    (found.weights[0, 0], found.bias[0, 0], found.mean[0], found.std[0]),
    expected,
    strict=True,
  ):
    scale = max(1, np.abs(b).max())
    np.testing.assert_allclose(np.asarray(a) / scale, b / scale, atol=1e-5, rtol=0, err_msg=name)
  assert np.abs(expected[0]).max() > 0.05  # it learned something
  logits = (x[:9] - expected[2]) / expected[3] @ expected[0] + expected[1]
  np.testing.assert_allclose(
    atst_probe.scores(found, x, np.arange(9), seed=0, rate=0), logits, atol=1e-4
  )


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_epoch_that_is_best_on_the_validation_clips(data, multi_label):
  """Of each rate, by accuracy or mAP, the first of equal ones. Seen red with the last epoch."""
  x, targets = data[0], data[2 if multi_label else 1]
  index, watched, rates = np.arange(N)[20:], np.arange(20), (0.1, 5.0)
  settings = {"epochs": 9, "batch_size": 16, "multi_label": multi_label}
  found = atst_probe.fit(x, targets, index, rates=[rates], seeds=[3], watched=watched, **settings)
  chosen = []
  for r, rate in enumerate(rates):
    seen = []
    slow_fit(x, targets, index, rate=rate, seed=3, seen=seen, **settings)
    logits = [(x[watched] - mean) / std @ w + b for w, b, mean, std in seen]
    if multi_label:
      scores = [mean_average_precision(y, targets[watched])[0] for y in logits]
    else:
      scores = [accuracy(y, targets[watched].argmax(-1)) for y in logits]
    chosen.append(int(np.argmax(scores)))
    ours = atst_probe.scores(found, x, watched, seed=0, rate=r)
    np.testing.assert_allclose(ours, logits[chosen[-1]], atol=1e-3 * np.abs(logits).max())
  assert min(chosen) < 8, chosen  # not the last


def test_rates_and_seeds_at_once_equal_single_runs(data):
  x, targets, _ = data
  index, rates, seeds = np.arange(40), [0.01, 0.1, 1.0], [0, 5]
  both = fit(x, targets, index, rates=[rates, rates[::-1]], seeds=seeds)
  for s, seed in enumerate(seeds):
    for r, rate in enumerate([rates, rates[::-1]][s]):
      one = fit(x, targets, index, rates=[[rate]], seeds=[seed])
      np.testing.assert_allclose(both.weights[s, r], one.weights[0, 0], atol=1e-6)
      np.testing.assert_allclose(both.bias[s, r], one.bias[0, 0], atol=1e-6)
      np.testing.assert_array_equal(both.mean[s], one.mean[0])
  assert np.abs(both.weights[0, 0] - both.weights[1, 2]).max() > 1e-3  # the seed matters


def test_clips_outside_the_index_do_not_matter(data):
  x, targets, _ = data
  index = np.arange(37)  # 3 batches, the last with 11 empty places
  spoilt = x.copy()
  spoilt[37:] = 1e6
  jax.tree.map(np.testing.assert_array_equal, fit(x, targets, index), fit(spoilt, targets, index))


def test_fault_30_padding_does_not_count_its_clip_twice(data):
  """Empty places point at row 0; without the mask it would enter every last batch."""
  x, targets, _ = data
  index = np.arange(1, 38)
  spoilt = x.copy()
  spoilt[0] = 1e3
  jax.tree.map(np.testing.assert_array_equal, fit(x, targets, index), fit(spoilt, targets, index))


def test_solves_a_separable_problem():
  rng = np.random.default_rng(1)
  y = rng.integers(4, size=400)
  x = (rng.normal(size=(400, 10)) + 4 * rng.normal(size=(4, 10))[y]).astype(np.float32)
  targets = np.eye(4)[y]
  split = Split(np.arange(200), np.arange(200, 300), np.arange(300, 400))
  score = lambda logits, targets: accuracy(logits, targets.argmax(-1))
  (result,) = choose(
    x,
    targets,
    split,
    score,
    rates=(1e-3, 0.1, 1.0),
    seeds=[0],
    epochs=30,
    batch_size=64,
    refit=True,
    multi_label=False,
  )
  assert score(result.test_logits, targets[split.test]) >= 0.98


def test_vectors_far_below_the_epsilon_of_batch_norm_are_said(monkeypatch):
  """Of the size that EfficientNet gives with random parameters: the same vectors, almost unseen."""
  said, rng = [], np.random.default_rng(1)
  monkeypatch.setattr(probing.log, "warning", lambda text, *values: said.append(text % values))
  y = rng.integers(4, size=400)
  x = (rng.normal(size=(400, 10)) + 4 * rng.normal(size=(4, 10))[y]).astype(np.float32)
  nothing = np.full(400, -1), np.full(400, "train"), [""] * 400
  labels = features.Labels([str(i) for i in range(400)], np.eye(4)[y], False, *nothing)
  split = Split(np.arange(200), np.arange(200, 300), np.arange(300, 400))
  training = Training("atst", (1e-3, 0.1, 1.0), 30, 64, True, 1, "loss", False)
  score, found = lambda logits, targets: accuracy(logits, targets.argmax(-1)), []
  for arrays in ([x], [1e-7 * x]):
    probing.tell_of_small("random", arrays, training)
    (run,) = probing.probe(arrays, labels, [split], [0], training, score)
    found.append(score(run.result.test_logits, labels.targets[split.test]))
  assert found[0] >= 0.98 and found[1] < 0.7
  assert [text.partition(":")[0] for text in said if "a variance of" in text] == ["random"]


def spy(data, valid_scores, *, refit=False):
  """`evaluate` with a score that returns the given numbers in turn: what is chosen is then
  known."""
  x, targets, _ = data
  split = Split(np.arange(30), np.arange(30, 45), np.arange(45, 60))
  seen, numbers = [], iter(valid_scores)

  def score(logits, part):
    seen.append(part)
    return next(numbers)

  (result,) = choose(
    x,
    targets,
    split,
    score,
    rates=(0.01, 0.1, 1.0),
    seeds=[4],
    epochs=3,
    batch_size=16,
    refit=refit,
    multi_label=False,
  )
  for part in seen:
    np.testing.assert_array_equal(part, targets[30:45])  # validation clips only
  return result


def test_the_rate_is_chosen_on_validation_and_of_equals_the_smallest(data):
  assert spy(data, [0.5, 0.7, 0.7])[:3] == (0.1, False, (0.5, 0.7, 0.7))
  assert spy(data, [0.5, 0.6, 0.7])[:2] == (1.0, True)
  assert spy(data, [0.8, 0.6, 0.9 - 0.2])[:2] == (0.01, True)
  # no better than the middle: the grid is long enough
  assert spy(data, [0.8, 0.8, 0.8])[:2] == (0.01, False)


@pytest.mark.parametrize("refit", [False, True])
def test_refit_trains_on_training_and_validation_clips(data, refit):
  x, targets, _ = data
  result = spy(data, [0.1, 0.9, 0.2], refit=refit)
  expected = fit(x, targets, np.arange(45 if refit else 30), rates=[[0.1]], seeds=[4], epochs=3)
  logits = atst_probe.scores(expected, x, np.arange(45, 60), seed=0, rate=0)
  np.testing.assert_allclose(result.test_logits, logits, atol=1e-6)


def test_rates_that_diverge_are_never_chosen_and_all_of_them_is_an_error(data):
  x, targets, _ = data
  split = Split(np.arange(30), np.arange(30, 45), np.arange(45, 60))
  score = lambda logits, targets: accuracy(logits, targets.argmax(-1))
  options = {"seeds": [0], "epochs": 3, "batch_size": 1024, "refit": True, "multi_label": False}
  (result,) = choose(x, targets, split, score, rates=(0.1, 1e38), **options)
  assert result.rate == 0.1 and result.valid_scores[1] == -np.inf
  with pytest.raises(UserError, match="diverges at every learning rate"):
    choose(x, targets, split, score, rates=(1e38,), **options)


GIB = 2**30
AS20K = (20_886 + 18_886, 18_432, 527)  # clips, ATST Base's features of all blocks, classes


@pytest.mark.parametrize(("protocol", "rates"), [("atst", 13), ("evar", 5)])
def test_features_of_as_20k_stay_within_memory(protocol, rates):
  """Three seeds and every rate of the ladder at once: the program's arguments, result and
  temporaries, compiled at full size; 2.7 GiB are the features themselves."""
  N, D, C = AS20K
  shape = jax.ShapeDtypeStruct
  columns = [] if protocol == "atst" else [shape((D,), "float32")] * 2
  rows = [shape((18_798,), "int32"), shape((2_088,), "int32")][: 1 if protocol == "atst" else 2]
  arguments = (
    shape((N, D), "float32"),
    *columns,
    shape((N, C), "float32"),
    *rows,
    shape((3, rates), "float32"),
    shape((3,), "uint32"),
  )
  options = {"patience": 20, "monitor": "loss"} if protocol == "evar" else {}
  lowered = (atst_probe if protocol == "atst" else evar_probe)._fit.lower(
    *arguments, epochs=100, batch_size=1024, multi_label=True, **options
  )
  memory = lowered.compile().memory_analysis()
  used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
  assert 2.7 * GIB < used < 6 * GIB
