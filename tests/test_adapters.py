"""The adapters of retrieval: what they learn from sound and text, and their loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.downstream.metrics import hits_at
from atst_jax.downstream.retrieval import adapters

BACKGROUNDS, EVENTS, TESTED = 12, 6, 72  # TESTED: one pair for each background and event
SIZES = {"hidden": 32, "width": 32, "temperature": 0.07}
TRAIN = {"epochs": 30, "batch_size": 64, "learning_rate": 3e-3, "label_weight": 1.0}

loss = jax.jit(adapters.loss, static_argnames=("network", "system", "label_weight"))


@pytest.fixture(scope="module")
def task():
  """A sound is its background plus its event; the text names the answer's event, the query's tells
  nothing of it."""
  rng = np.random.default_rng(0)
  behind, events, words = (rng.normal(size=(n, 24)) for n in (BACKGROUNDS, EVENTS, EVENTS))
  grid = np.stack(
    np.meshgrid(np.arange(BACKGROUNDS), np.arange(EVENTS), indexing="ij"), -1
  ).reshape(-1, 2)
  place = np.concatenate([np.repeat(grid, 8, 0), grid, grid])  # training, validation, test
  P = len(place)
  noise = lambda: 0.3 * rng.normal(size=(P, 24))
  query = behind[place[:, 0]] + events[rng.integers(EVENTS, size=P)] + noise()
  answer = behind[place[:, 0]] + events[place[:, 1]] + noise()
  labels = np.concatenate([np.zeros((P, EVENTS)), np.eye(EVENTS)[place[:, 1]]])
  data = adapters.Data(
    *map(
      jnp.asarray,
      (
        np.concatenate([query, answer]).astype(np.float32),
        words.astype(np.float32),
        labels.astype(np.float32),
        np.arange(P),
        P + np.arange(P),
        place[:, 1],
      ),
    )
  )
  return data, *np.split(np.arange(P), [P - 2 * TESTED, P - TESTED])


@pytest.mark.parametrize(
  ("system", "lowest", "highest"),
  [
    ("audio + text", 0.85, 1.0),
    ("audio", 0.05, 0.3),  # the background is known, one event in six
    ("text", 0.03, 0.2),  # the event is known, one background in twelve
  ],
)
def test_only_sound_and_text_together_find_the_answer(task, system, lowest, highest):
  data, train, valid, test = task
  fitted = adapters.fit(data, train, valid, system=system, seeds=[0, 1], **TRAIN, **SIZES)
  for seed in range(2):
    cosines = adapters.similarity(fitted, data, test, data.target[test], seed=seed, system=system)
    (found,) = hits_at(cosines, np.arange(TESTED), (1,)).mean(-1)
    assert lowest <= found <= highest, (system, found)
  assert (fitted.curve.min(-1) == fitted.valid_loss).all()
  assert (fitted.curve.argmin(-1) + 1 == fitted.epoch).all()


def test_loss_is_that_of_a_slow_twin(task):
  data, train, _, _ = task
  rows, present = jnp.asarray(np.r_[train[:5], 0, 0]), jnp.asarray([1.0] * 5 + [0, 0])
  network = adapters.make(data, **SIZES)
  params = adapters.init(network, jax.random.key(3), data)
  params["log_scale"] = jnp.log(20.0)
  options = {"network": network, "system": "audio + text", "label_weight": 0.7}
  got = loss(params, data, rows, present, **options)
  unit = lambda x: x / np.linalg.norm(x)

  def slow(params, row):
    """Each network in float64, from its parameters."""
    from scipy.special import erf

    def dense(layer, x):
      return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)

    def adapt(adapter, x):
      x = np.asarray(x, np.float64)
      hidden = dense(adapter["first"], x)
      y = dense(adapter["second"], hidden * 0.5 * (1 + erf(hidden / np.sqrt(2))))
      y = y + dense(adapter["shortcut"], x)
      return (y - y.mean()) / np.sqrt(y.var() + 1e-6)

    i = int(row)
    asked = adapt(params["audio"], data.audio[data.query[i]])
    asked = asked + adapt(params["text"], data.texts[data.text[i]])
    return asked, adapt(params["audio"], data.audio[data.target[i]])

  q, t = zip(*(slow(params, row) for row in rows[:5]), strict=True)
  logits = np.array([[20.0 * unit(a) @ unit(b) for b in t] for a in q])
  expected = np.mean(
    [
      0.5 * (np.log(np.exp(logits[i]).sum()) + np.log(np.exp(logits[:, i]).sum())) - logits[i, i]
      for i in range(5)
    ]
  )
  y = np.asarray(data.labels[data.target[rows[:5]]])
  for latent in (q, t):
    z = np.array(latent) @ np.asarray(params["classifier"]["kernel"], np.float64)
    p = 1 / (1 + np.exp(-z))
    expected += 0.5 * 0.7 * -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
  assert float(got) == pytest.approx(expected, rel=1e-4)


def test_pairs_with_one_answer_are_not_negatives_of_each_other(task):
  data, train, _, _ = task
  rows, present = jnp.asarray(train[:4]), jnp.ones(4)
  network = adapters.make(data, **SIZES)
  params = adapters.init(network, jax.random.key(3), data)
  options = {"network": network, "system": "audio", "label_weight": 0.0}
  same = data._replace(target=jnp.full_like(data.target, data.target[train[0]]))
  assert float(loss(params, same, rows, present, **options)) == pytest.approx(0, abs=1e-5)
  assert float(loss(params, data, rows, present, **options)) > 0.1


def test_training_that_diverges_is_said(task):
  data, train, valid, _ = task
  with pytest.raises(
    FloatingPointError, match=r"after epoch 1 \(text\); lower --config.train.learning_rate"
  ):
    adapters.fit(
      data._replace(texts=data.texts * jnp.nan),
      train,
      valid,
      system="text",
      seeds=[0, 1],
      **TRAIN,
      **SIZES,
    )


# Text.
