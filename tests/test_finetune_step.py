"""The classifier, and one update of fine-tuning against slow twins."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atst_jax.artifacts.model import TAILS
from atst_jax.downstream.finetune import step as finetune_step
from atst_jax.downstream.finetune.classifier import make_classifier
from tests.evaluation import ENCODER, MIN_MAX


def classifier(tail="weighted", drop_path=0.0, encoder=ENCODER):
  return make_classifier(
    encoder,
    classes=3,
    drop_path=drop_path,
    chunk_frames=32,
    tail=tail,
    dtype=None,
    attention="xla",
    remat=False,
  )


def embedded(network, variables, x, length, *, train=False):
  """(B, 2 D) embeddings."""
  embed = lambda network, *args: network._embed(*args, train)
  return jax.jit(functools.partial(network.apply, method=embed))(variables, x, length)


@functools.cache
def fresh_state():
  """A state from the tiny encoder's own initialisation, with the network and the optimizer."""
  network, tx = classifier(), finetune_step.make_optimizer(momentum=0.9, clip_norm=0.05)
  encoder = jax.jit(network.encoder.init)(jax.random.key(77), jnp.zeros((1, 32, 64)))
  init = functools.partial(finetune_step.init_state, network=network, tx=tx, frames=32, n_mels=64)
  return jax.jit(init)(jax.random.key(0), encoder), network, tx


def batch_of(mels, frames):
  out = np.zeros((len(mels), frames, 64), np.float32)
  for row, mel in zip(out, mels, strict=True):
    row[: len(mel)] = mel
  return out, np.array([len(mel) for mel in mels], np.int32)


@pytest.mark.parametrize("tail", TAILS)
def test_a_clip_is_embedded_as_the_exported_encoder_embeds_it(model, tail):
  """Chunks, their lengths and weights, for clips below, at and above one, two and three chunks."""
  rng = np.random.default_rng(0)
  mels = [
    rng.normal(-40, 15, (n, 64)).astype(np.float32)
    for n in (5, 31, 32, 33, 47, 48, 49, 64, 65, 81, 90, 96)
  ]
  network = classifier(tail)
  x, length = finetune_step.normalized(*batch_of(mels, 96), padding="mask", **MIN_MAX)
  variables = {"params": {"encoder": model.variables["params"]}}
  y = embedded(network, variables, x, length)
  np.testing.assert_allclose(y, model.embed(mels, num_blocks=1, tail=tail), atol=2e-5)


def test_training_sees_all_tokens_and_pre_training_the_same_as_before(model):
  """With no stochastic depth the embedding in training is that of evaluation."""
  x, length = (
    jnp.asarray(np.random.default_rng(1).normal(size=(4, 40, 64)), jnp.float32),
    jnp.array([40, 33, 20, 7]),
  )
  network = classifier()
  variables = {"params": {"encoder": model.variables["params"]}}
  np.testing.assert_allclose(
    embedded(network, variables, x, length, train=True),
    embedded(network, variables, x, length),
    atol=1e-6,
  )


def test_head_normalises_without_scale_and_starts_small():
  network = classifier()
  x = jnp.asarray(np.random.default_rng(2).normal(size=(6, 32, 64)), jnp.float32)
  length = jnp.full(6, 32)
  variables = jax.jit(functools.partial(network.init, train=False))(jax.random.key(0), x, length)
  assert set(variables["params"]) == {"encoder", "head"} and set(variables["batch_stats"]) == {
    "head_norm"
  }
  kernel = variables["params"]["head"]["kernel"]
  assert kernel.shape == (16, 3) and 0.005 < float(kernel.std()) < 0.015
  logits, new = jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))(
    variables, x, length
  )
  y = np.asarray(embedded(network, variables, x, length))
  expected = (y - y.mean(0)[None]) / np.sqrt(y.var(0) + 1e-5)[None] @ kernel
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  stats = new["batch_stats"]["head_norm"]
  np.testing.assert_allclose(stats["mean"], 0.1 * y.mean(0), atol=1e-6)
  np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * y.var(0, ddof=1), atol=1e-5)


def test_mixup_mixes_clips_and_labels_with_the_same_weight():
  B, T = 12, 8
  x = jnp.broadcast_to(jnp.arange(B, dtype=jnp.float32)[:, None, None], (B, T, 3))
  targets = jnp.eye(B)
  options = {"length": jnp.full(B, T), "targets": targets, "alpha": 0.5, "group": 4}
  mix = jax.jit(
    functools.partial(finetune_step.mix_labelled, **options), static_argnames="probability"
  )
  mixed, labels = mix(jax.random.key(0), x, probability=1.0)
  np.testing.assert_allclose(labels.sum(-1), 1, atol=1e-6)
  np.testing.assert_allclose(
    mixed, jnp.broadcast_to((labels @ jnp.arange(B))[:, None, None], (B, T, 3)), atol=1e-5
  )
  for i, row in enumerate(np.asarray(labels)):
    partners = set(np.flatnonzero(row)) - {i}
    assert len(partners) <= 1 and all(p // 4 == i // 4 for p in partners)
  same, kept = mix(jax.random.key(0), x, probability=0.0)
  np.testing.assert_array_equal(same, x)
  np.testing.assert_array_equal(kept, targets)
  draw = jax.vmap(lambda key: jnp.diagonal(mix(key, x, probability=1.0)[1]))
  weights = np.asarray(draw(jax.random.split(jax.random.key(1), 400))).ravel()
  # of Beta(1/2, 1/2), the arcsine law
  quantiles = np.quantile(weights, (0.1, 0.25, 0.5, 0.75, 0.9))
  np.testing.assert_allclose(
    quantiles, np.sin(np.pi / 2 * np.array([0.1, 0.25, 0.5, 0.75, 0.9])) ** 2, atol=0.04
  )


def test_mixup_of_unequal_clips_leaves_the_rest_alone():
  """A shorter partner lies somewhere inside; of a longer one a window of the clip's length is
  taken."""
  x = jnp.stack(
    [jnp.full((10, 2), 1.0), jnp.where(jnp.arange(10)[:, None] < 4, 5.0, 0.0) * jnp.ones((1, 2))]
  )
  mix = jax.jit(functools.partial(finetune_step.mix_labelled, alpha=0.5, probability=1.0, group=2))
  mixed, labels = mix(jax.random.key(3), x, jnp.array([10, 4]), jnp.eye(2))
  inside = np.flatnonzero(np.abs(np.asarray(mixed[0, :, 0]) - 1) > 1e-6)
  assert len(inside) == 4 and np.all(np.diff(inside) == 1)
  np.testing.assert_allclose(mixed[0, inside], 5 - 4 * labels[0, 0], atol=1e-5)
  np.testing.assert_allclose(mixed[1, :4], 1 + 4 * labels[1, 1], atol=1e-5)
  np.testing.assert_array_equal(mixed[1, 4:], 0)


def test_losses():
  rng = np.random.default_rng(0)
  logits, targets = rng.normal(size=(5, 4)), rng.random((5, 4))
  p = 1 / (1 + np.exp(-logits))
  binary = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean()
  assert float(finetune_step.mean_loss(jnp.asarray(logits), targets, binary=True)) == pytest.approx(
    binary, rel=1e-5
  )
  one = np.eye(4)[[0, 2, 1, 3, 3]]
  softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = -np.log((softmax * one).sum(-1)).mean()
  assert float(finetune_step.mean_loss(jnp.asarray(logits), one, binary=False)) == pytest.approx(
    expected, rel=1e-5
  )


def test_an_update_is_sgd_with_momentum_of_the_clipped_gradient():
  """Two steps against the same written out, with a rate for each layer."""
  state, network, tx = fresh_state()
  scales = finetune_step.layer_scales(state.params, depth=2, decay=0.5)
  step = jax.jit(
    finetune_step.make_train_step(
      network=network,
      tx=tx,
      scales=scales,
      normalization=MIN_MAX,
      mixup={"probability": 0.0},
      crop=None,
      padding="mask",
      binary=False,
      resize="auto",
    )
  )
  rng = np.random.default_rng(0)
  batch = {
    "mel": rng.normal(-40, 15, (8, 32, 64)).astype(np.float16),
    "length": np.full(8, 32, np.int32),
    "target": np.eye(3, dtype=np.uint8)[rng.integers(3, size=8)],
  }
  x, length = finetune_step.normalized(batch["mel"], batch["length"], padding="mask", **MIN_MAX)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def slow(params, stats):
    variables = {"params": params, "batch_stats": stats}
    logits, new = network.apply(variables, x, length, train=True, mutable=["batch_stats"])
    return finetune_step.mean_loss(logits, batch["target"], binary=False), new["batch_stats"]

  params, stats, velocity = state.params, state.batch_stats, None
  for number, rate in enumerate((0.3, 0.2), 1):
    (value, stats), grads = slow(params, stats)
    norm = float(optax.tree.norm(grads))
    assert norm > 0.05  # the clipping does something
    grads = jax.tree.map(lambda g, norm=norm: g * 0.05 / norm, grads)
    velocity = (
      grads if velocity is None else jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
    )
    params = jax.tree.map(lambda p, v, s, rate=rate: p - rate * s * v, params, velocity, scales)
    state, metrics = step(state, batch, np.float32(rate), np.uint32(0))
    assert (
      float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5) and int(state.step) == number
    )
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), state.params, params)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6), state.batch_stats, stats)


def test_layer_scales(model):
  params = {"encoder": model.variables["params"], "head": {"kernel": jnp.zeros(3)}}
  scales = finetune_step.layer_scales(params, depth=2, decay=0.5)
  by_name = {
    "/".join(k.key for k in path): s for path, s in jax.tree_util.tree_leaves_with_path(scales)
  }
  assert by_name["head/kernel"] == 1 and by_name["encoder/norm/scale"] == 0.5
  assert (
    by_name["encoder/block_01/fc1/kernel"] == 0.5 and by_name["encoder/block_00/fc1/kernel"] == 0.25
  )
  assert (
    by_name["encoder/patch_embed/kernel"]
    == by_name["encoder/cls_token"]
    == by_name["encoder/pos_embed"]
    == 0.25
  )
  assert set(jax.tree.leaves(finetune_step.layer_scales(params, depth=2, decay=1.0))) == {1.0}


def test_the_best_parameters_stay_when_training_goes_on():
  state = jax.tree.map(jnp.copy, fresh_state()[0])
  keep = jax.jit(finetune_step.keep_best, donate_argnums=0)
  move = jax.jit(
    lambda s: s._replace(params=jax.tree.map(lambda p: p + 1, s.params)), donate_argnums=0
  )
  before = jax.tree.map(np.asarray, state.params)
  state = move(keep(state, np.float32(0.5), np.int32(3)))
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state.best.params), before)
  assert float(state.best.score) == 0.5 and int(state.best.epoch) == 3
