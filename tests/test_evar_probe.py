"""EVAR's linear probe against a slow twin in numpy (Adam, scaling, early stopping), and an
evaluation by its protocol."""

import os

import jax
import numpy as np
import pytest

from atst_jax.artifacts.classifiers import scoring
from atst_jax.artifacts.classifiers.scoring import head_of
from atst_jax.artifacts.model import load_model
from atst_jax.data.dataset import Dataset
from atst_jax.downstream import features
from atst_jax.downstream.linear import atst_probe, evar_probe, job
from atst_jax.downstream.tables import table
from tests.evaluation import evaluate, make_clips, refused, resolved, write_clips, write_encoder

N, D, C = 70, 6, 3
TRAIN, VALID = np.arange(45), np.arange(45, 70)


@pytest.fixture(scope="module")
def data():
  """Noisy features of unlike scales, one of them constant, one-hot targets and many-hot targets."""
  rng = np.random.default_rng(0)
  y = rng.integers(C, size=N)
  x = rng.normal(size=(N, D)) + 0.9 * rng.normal(size=(C, D))[y]
  x = (x * [1, 10, 0.1, 3, 1, 0] + [0, -50, 5, 0, 1, 7]).astype(np.float32)
  return x, np.eye(C)[y], (rng.random((N, C)) < 0.4).astype(float)


def fit(
  x,
  targets,
  *,
  known=TRAIN,
  rates=((0.02,),),
  seeds=(3,),
  epochs=12,
  batch_size=20,
  patience=20,
  monitor="accuracy",
  multi_label=False,
):
  return evar_probe.fit(
    x,
    targets,
    TRAIN,
    VALID,
    known=known,
    rates=rates,
    seeds=seeds,
    epochs=epochs,
    batch_size=batch_size,
    patience=patience,
    monitor=monitor,
    multi_label=multi_label,
  )


def slow_fit(x, targets, *, known, rate, seed, epochs, batch_size, patience, monitor, multi_label):
  """The protocol in float64 loops, with the documented keys. Returns (weights, bias, validation's
  course)."""
  x = x.astype(np.float64)
  std = x[known].std(0)
  x = (x - x[known].mean(0)) / np.where(std < 1e-6, 1, std)
  key = jax.random.key(seed)
  draw = lambda stream, shape: np.asarray(
    jax.random.uniform(jax.random.fold_in(key, stream), shape, minval=-1), float
  )
  params = [draw(2**32 - 1, (D, C)) / D**0.5, draw(2**32 - 2, (C,)) / D**0.5]
  first, second, count = [0.0, 0.0], [0.0, 0.0], 0

  def loss_and_error(rows):
    logits = x[rows] @ params[0] + params[1]
    if multi_label:
      p = 1 / (1 + np.exp(-logits))
      return (
        -(targets[rows] * np.log(p) + (1 - targets[rows]) * np.log(1 - p)).mean(),
        (p - targets[rows]),
        logits,
      )
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return -(targets[rows] * np.log(p)).sum(1).mean() / C, p - targets[rows], logits

  best, score, since, course = None, -np.inf, 0, []
  for epoch in range(epochs):
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), TRAIN))
    for start in range(0, len(order), batch_size):
      rows = order[start : start + batch_size]
      error = loss_and_error(rows)[1] / len(rows) / C
      count += 1
      for i, grad in enumerate((x[rows].T @ error, error.sum(0))):
        grad = grad + 1e-8 * params[i]
        first[i] = 0.9 * first[i] + 0.1 * grad
        second[i] = 0.999 * second[i] + 0.001 * grad**2
        step = first[i] / (1 - 0.9**count) / (np.sqrt(second[i] / (1 - 0.999**count)) + 1e-8)
        params[i] = params[i] - rate * step
    loss, _, logits = loss_and_error(VALID)
    course.append(
      -loss if monitor == "loss" else (logits.argmax(1) == targets[VALID].argmax(1)).mean()
    )
    if course[-1] >= score:
      best, score, since = [p.copy() for p in params], course[-1], 0
    else:
      since += 1
      if since > patience:
        break
  return *best, course


@pytest.mark.parametrize(
  ("multi_label", "monitor"), [(False, "accuracy"), (False, "loss"), (True, "loss")]
)
@pytest.mark.parametrize("batch_size", [20, 200])
def test_equals_a_slow_numpy_twin(data, multi_label, monitor, batch_size):
  x, targets = data[0], data[2 if multi_label else 1]
  settings = {
    "epochs": 12,
    "batch_size": batch_size,
    "patience": 20,
    "monitor": monitor,
    "multi_label": multi_label,
    "known": np.arange(N),
  }
  found = fit(x, targets, rates=[[0.02]], seeds=[3], **settings)
  weights, bias, _ = slow_fit(x, targets, rate=0.02, seed=3, **settings)
  np.testing.assert_allclose(found.weights[0, 0], weights, atol=2e-5)
  np.testing.assert_allclose(found.bias[0, 0], bias, atol=2e-5)
  logits = (x - x.mean(0)) / np.where(x.std(0) < 1e-6, 1, x.std(0)) @ weights + bias
  np.testing.assert_allclose(
    atst_probe.scores(found, x, VALID, seed=0, rate=0), logits[VALID], atol=1e-3
  )


@pytest.mark.parametrize("monitor", ["accuracy", "loss"])
def test_stops_at_the_best_epoch_and_not_later(data, monitor):
  """A high rate overfits: after `patience` worse epochs even a later better one is not seen."""
  settings = {
    "epochs": 80,
    "batch_size": 20,
    "patience": 2,
    "monitor": monitor,
    "multi_label": False,
    "known": TRAIN,
  }
  found = fit(data[0], data[1], rates=[[0.3]], seeds=[0], **settings)
  weights, _, course = slow_fit(data[0], data[1], rate=0.3, seed=0, **settings)
  assert len(course) < 80 and course[-1] < max(course)
  np.testing.assert_allclose(found.weights[0, 0], weights, atol=1e-3)


def test_rates_and_seeds_at_once_equal_single_runs(data):
  """A rate that has stopped stays as it is while others go on."""
  rates, seeds = [0.001, 0.3], [0, 5]
  settings = {"epochs": 60, "patience": 2}
  both = fit(data[0], data[1], rates=[rates, rates], seeds=seeds, **settings)
  for s, seed in enumerate(seeds):
    for r, rate in enumerate(rates):
      one = fit(data[0], data[1], rates=[[rate]], seeds=[seed], **settings)
      np.testing.assert_allclose(both.weights[s, r], one.weights[0, 0], atol=1e-4)
  assert np.abs(both.weights[0, 0] - both.weights[1, 0]).max() > 1e-2


def test_clips_not_known_do_not_matter(data):
  spoilt = np.concatenate([data[0], np.full((3, D), 1e6, np.float32)])
  targets = np.concatenate([data[1], np.eye(C)])
  jax.tree.map(np.testing.assert_array_equal, fit(*data[:2]), fit(spoilt, targets))


def test_a_dry_run_reads_no_clips_for_their_statistics(tmp_path, monkeypatch):
  cnn = write_encoder(tmp_path / "cnn", kind="cnn")
  data = write_clips(tmp_path / "data", make_clips(36))
  monkeypatch.setattr(features, "log_statistics", None)
  config = resolved(cnn, data, "evar", unit_seconds="0.4")
  assert job.describe(config, str(tmp_path / "run"))
  with pytest.raises(TypeError):
    _ = job.resolve(resolved(cnn, data, "evar", unit_seconds="0.4")).model


def test_evar_protocol(tmp_path):
  """Clips cut or filled to the unit, standardised by the evaluated set, early stopping, confidence
  intervals."""
  cnn = write_encoder(tmp_path / "cnn", kind="cnn")
  data = write_clips(tmp_path / "data", make_clips(36, loud=8.0))
  overrides = {"seeds": "3", "probe__epochs": "30", "probe__learning_rates": "0.001,0.01"}
  overrides |= {"export": str(tmp_path / "probe")}
  results = evaluate(cnn, data, tmp_path / "run", variant="evar", unit_seconds="0.4", **overrides)
  config = results["config"]
  assert (config["crop"], config["statistics"], config["probe"]["refit"]) == ("unit", "data", False)
  row = results["rows"][-1]
  assert row["mean"] > 0.9 and row["ci95"] == pytest.approx(
    4.302653 * row["std"] / 3**0.5, rel=1e-5
  )
  assert results["data"]["divisions"] == [{"train": 22, "valid": 2, "test": 12}] * 3
  assert "± 95 % confidence interval over 3 seeds; protocol evar" in table(results)
  mels = [
    features.cut_or_fill(clip.mel.astype(np.float32), 41, silence=-100.0, rng=None)
    for clip in make_clips(36, loud=8.0)
  ]
  nepers = np.log(10 ** (np.concatenate(mels) / 10) + 2.0**-23)
  found = {"log_mean": nepers.mean(dtype=np.float64), "log_std": nepers.std(dtype=np.float64)}
  assert found["log_mean"] < Dataset.load(data).statistics["log_mean"] - 0.1  # by silence
  expected = load_model(cnn).standardized(found).embed(mels)
  found = [
    np.load(tmp_path / "run" / "features" / name)
    for name in os.listdir(tmp_path / "run" / "features")
  ]
  assert any(x.shape == expected.shape and np.allclose(x, expected, atol=1e-4) for x in found)
  model = load_model(str(tmp_path / "probe"))
  weights, head = model.variables["head"], head_of(model)
  logits = scoring.score(model, [clip.mel.astype(np.float32) for clip in make_clips(36, loud=8.0)])
  np.testing.assert_allclose(logits, expected @ weights["kernel"] + weights["bias"], atol=1e-4)
  assert head.probabilities(logits).sum(-1) == pytest.approx(1, abs=1e-6)
  assert head.fill_frames == head.max_frames == 41 and head.crop == "start"
  refused("'tones' is not in the table of tasks", cnn, data, tmp_path / "other", variant="evar")
  more = {
    "variant": "evar",
    "unit_seconds": "0.4",
    "export": str(tmp_path / "x"),
    "export_clips": "all",
  }
  refused("evar stops by validation clips", cnn, data, tmp_path / "other", **more)
