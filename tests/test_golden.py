"""The released code's numbers (../shared/golden, whose README gives tolerances) against ours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atst_jax.artifacts.model import Model
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.method import augment, mixtures, normalization
from atst_jax.method import train_step as method
from atst_jax.method.ema import ema
from atst_jax.method.optimizer import decay_mask, make_optimizer
from atst_jax.method.subtraction import Subtraction
from atst_jax.models.encoders import make_encoder
from atst_jax.models.transformer import Transformer
from tests.torch_layout import network_names, variables_in

ENCODER = {
  "width": 48,
  "depth": 3,
  "heads": 3,
  "drop_path": 0.0,
  "patch_frames": 4,
  "max_frames": 1001,
}
NAMES = network_names(Transformer(**ENCODER))


@pytest.mark.parametrize("box", range(6))
def test_random_resize_crop(golden, box):
  """Seen red with the mel and time offsets exchanged, and with the cubic coefficient -0.5; with
  positions by a product with the inverse, too: 9.6e-6."""
  arrays = golden("augment")
  mel = jnp.asarray(arrays["mel"])
  out = jax.jit(functools.partial(augment.resize_crop, canvas_time=1.5))(
    mel, tuple(arrays[f"rrc_box_{box}"]), len(mel)
  )
  np.testing.assert_allclose(out, arrays[f"rrc_{box}"], atol=2e-6)


@pytest.mark.parametrize("draw", range(4))
def test_mixup(golden, draw):
  arrays = golden("augment")
  out = augment.mixup(
    jnp.asarray(arrays["mel"]), jnp.asarray(arrays["partner"]), arrays[f"mix_alpha_{draw}"]
  )
  np.testing.assert_allclose(out, arrays[f"mix_{draw}"], atol=1e-5)


def test_difference_mixture(golden):
  """Seen red with γ on the clip itself instead of its neighbour."""
  arrays = golden("difference_step")
  pair, gamma = jnp.asarray(arrays["views"]).swapaxes(0, 1), jnp.asarray(arrays["gamma"]).T
  literal, _ = mixtures.mix_neighbours(pair, None, gamma, group=len(pair), scale=1.0)
  np.testing.assert_allclose(literal.swapaxes(0, 1), arrays["mixed"], atol=1e-5)
  energy, _ = mixtures.mix_neighbours(
    pair, None, gamma, group=len(pair), scale=float(arrays["energy_k"])
  )
  np.testing.assert_allclose(energy[:, 0], arrays["mixed_energy_view0"], atol=1e-5)


def test_linear_fader_and_post_normalization(golden):
  arrays = golden("augment")
  mel = jnp.asarray(arrays["mel"])
  np.testing.assert_allclose(
    augment.fade(mel, *arrays["fade_head_tail"], len(mel)), arrays["fade"], atol=1e-5
  )
  batch = jnp.asarray(arrays["norm_in"])  # both views of three clips, one after the other
  out, _ = normalization.normalize_batch(batch.reshape(2, 3, *mel.shape).swapaxes(0, 1), None)
  np.testing.assert_allclose(out.swapaxes(0, 1).reshape(batch.shape), arrays["norm_out"], atol=1e-5)


def test_encoder_forward(golden):
  """Ragged lengths: CLS and every block's tokens. Seen red with a time-major patch."""
  arrays = golden("atst_step")
  params, _ = variables_in(arrays, "before.student.", NAMES)
  length = jnp.asarray(arrays["length"])
  y, out = jax.jit(Transformer(**ENCODER).apply)(
    {"params": params["encoder"]}, jnp.asarray(arrays["views"][0, 0]), length
  )
  np.testing.assert_allclose(y, arrays["eval_cls"], atol=1e-5)
  for clip, tokens in enumerate(length // 4 + 1):  # tokens of padding are arbitrary
    np.testing.assert_allclose(
      out["blocks"][:, clip, :tokens], arrays["eval_blocks"][:, clip, :tokens], atol=1e-5
    )


@pytest.mark.parametrize(
  "num_blocks, key", [(3, "long_embed_all_blocks"), (1, "long_embed_last_block")]
)
def test_embedding_of_long_clips(golden, num_blocks, key):
  """Chunks of 601 frames by the released rule, through the embedder; the golden clips are
  normalised already."""
  arrays = golden("atst_step")
  params, _ = variables_in(arrays, "before.student.", NAMES)
  model = Model(
    {
      "encoder": {"kind": "transformer", **ENCODER},
      "frontend": FRONTENDS["audiossl"].to_json(),
      "normalization": {"kind": "min_max", "top_db": 1e9, "low": -1.0, "high": 1.0},
      "chunk_frames": 601,
      "tail": "released",
      "max_seconds": None,
    },
    {"params": params["encoder"]},
    None,
  )
  clips = [
    mel[:length] for mel, length in zip(arrays["long_mel"], arrays["long_length"], strict=True)
  ]
  np.testing.assert_allclose(model.embed(clips, num_blocks=num_blocks), arrays[key], atol=1e-5)


def _largest_difference(tree, expected):
  return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), tree, expected)))


def _largest_relative(ours, expected):
  """The largest distance of two arrays, as a part of the expected one's length."""
  relative = lambda a, b: float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3))
  return max(jax.tree.leaves(jax.tree.map(relative, ours, expected)))


def _before(arrays, names, network, optimizer, decay, *, group):
  """The state before the first step, which keeps the last gradients in `opt_state[0]`, and the
  compiled update."""
  spy = optax.GradientTransformation(lambda params: params, lambda grads, _, params: (grads, grads))
  tx, teacher = optax.chain(spy, optimizer), ema(decay)
  update = method.make_update(network=network, tx=tx, teacher=teacher, schedules={}, group=group)
  params, batch_stats = variables_in(arrays, "before.student.", names)
  teacher = teacher.init(*variables_in(arrays, "before.teacher.", names))
  step = jnp.zeros((), jnp.int32)
  state = method.TrainState(step, params, batch_stats, tx.init(params), teacher)
  return state, jax.jit(update)


def test_three_steps(golden):
  """Gradients of the first step and the state after three, through the project's own update."""
  arrays = golden("atst_step")
  table = lambda values: lambda step: jnp.asarray(values, jnp.float32)[step]
  network = method.make_network(
    encoder={"kind": "transformer", **ENCODER},
    joint_views=True,
    heads={"hidden": 64, "out": 32, "use_bias": False},
    dtype=jnp.float32,
    subtraction=Subtraction(),
  )
  adamw = optax.adamw(
    table(arrays["lr"]),
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    weight_decay=table(arrays["wd"]),
    mask=decay_mask,
  )
  state, update = _before(arrays, NAMES, network, adamw, table(arrays["ema"]), group=5)
  for step in range(3):
    pair = jnp.asarray(arrays["views"][step]).swapaxes(0, 1)
    state, metrics = update(state, jax.random.key(0), pair)
    values = [float(metrics[k]) for k in ("loss", "std_student", "std_teacher")]
    np.testing.assert_allclose(values, arrays["trace_loss_stds_stdt"][step], rtol=1e-5)
    if step == 0:
      grads, _ = variables_in(arrays, "grad.", NAMES)
      # The last LayerNorm's bias moves all rows alike, which the projector's BatchNorm removes: its
      # gradient is rounding noise, of which Adam makes steps of the learning rate.
      ours = jax.tree.map(np.asarray, state.opt_state[0])
      for tree in (ours, grads):
        assert np.abs(tree["encoder"]["norm"].pop("bias")).max() < 1e-6
      assert _largest_relative(ours, grads) < 1e-4
  expected, expected_stats = variables_in(arrays, "after.student.", NAMES)
  del state.params["encoder"]["norm"]["bias"], expected["encoder"]["norm"]["bias"]
  assert _largest_difference(state.params, expected) < 1e-4
  assert _largest_difference(state.batch_stats, expected_stats) < 1e-4
  expected, expected_stats = variables_in(arrays, "after.teacher.", NAMES)
  assert _largest_difference(state.teacher.params, expected) < 1e-4
  assert _largest_difference(state.teacher.batch_stats, expected_stats) < 1e-4


CNN = {"kind": "cnn", "version": "AudioNTT2022", "width": 1088, "hidden": 32, "dropout": 0.0}


def test_cnn_encoder(golden):
  """BatchNorm on the batch's statistics, the running ones after that, and with them; a clip of
  another length."""
  arrays = golden("byola_encoder")
  encoder = make_encoder(CNN)
  names = encoder.torch_names()
  params, stats = variables_in(arrays, "weights.", names)
  train = functools.partial(encoder.apply, train=True, mutable=["batch_stats"])
  (y, _), new = jax.jit(train)({"params": params, "batch_stats": stats}, arrays["mel"])
  np.testing.assert_allclose(y, arrays["train_out"], atol=1e-5)
  params, stats = variables_in(arrays, "after.", names)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), new["batch_stats"], stats)
  variables, apply = {"params": params, "batch_stats": stats}, jax.jit(encoder.apply)
  y, before = apply(variables, arrays["mel"])
  np.testing.assert_allclose(y, arrays["eval_out"], atol=1e-5)
  np.testing.assert_allclose(before["frames"], arrays["eval_frames"], atol=1e-5)
  np.testing.assert_allclose(apply(variables, arrays["long_mel"])[0], arrays["long_out"], atol=1e-5)
  padded = np.pad(arrays["long_mel"], ((0, 0), (0, 37), (0, 0)))
  y, _ = apply(variables, padded, jnp.array([250, 250]))
  np.testing.assert_allclose(y, arrays["long_out"], atol=1e-5)


def test_difference_step(golden):
  """One step of BYOL-A with the subtraction: outputs, losses, gradients, Adam, both networks."""
  arrays = golden("difference_step")
  network = method.make_network(
    encoder=CNN,
    joint_views=False,
    dtype=jnp.float32,
    heads={"hidden": 48, "out": 16, "use_bias": True},
    subtraction=Subtraction(weight=float(arrays["lam"])),
  )
  adam, _ = make_optimizer(
    total_steps=10,
    batch_size=6,
    form="optax",
    schedule="constant",
    base_lr=float(arrays["lr"]),
    reference_batch=0,
    end_lr=0.0,
    warmup_steps=0,
    weight_decay_start=0.0,
    weight_decay_end=0.0,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
  )
  names = network_names(make_encoder(CNN))
  decay = lambda _: jnp.float32(arrays["ema"])
  state, update = _before(arrays, names, network, adam, decay, group=6)
  pair, gamma = jnp.asarray(arrays["views"]).swapaxes(0, 1), jnp.asarray(arrays["gamma"]).T
  mixed, _ = mixtures.mix_neighbours(pair, None, gamma, group=6, scale=1.0)
  mixed = mixtures.Mixtures(mixed, None, gamma)
  teach = functools.partial(network.apply, method=method.Network.teach, mutable=["batch_stats"])
  teacher_variables = {"params": state.teacher.params, "batch_stats": state.teacher.batch_stats}
  (z, y), _ = jax.jit(teach)(teacher_variables, pair, None)
  np.testing.assert_allclose(z.swapaxes(0, 1), arrays["z_teacher"], atol=1e-5)
  student_variables = {"params": state.params, "batch_stats": state.batch_stats}
  apply = functools.partial(network.apply, mutable=["batch_stats"])
  (p, p_difference), _ = jax.jit(apply, static_argnums=4)(
    student_variables, pair, None, mixed, 6, y
  )
  # Behind four BatchNorms of six rows a float32 pass is 1e-5 from float64.
  np.testing.assert_allclose(p.swapaxes(0, 1), arrays["q"], atol=2e-5)
  np.testing.assert_allclose(p_difference.swapaxes(0, 1), arrays["q_difference"], atol=2e-5)
  state, metrics = update(state, jax.random.key(0), pair, None, mixed)
  for name in ("loss", "loss_byol", "loss_difference"):
    np.testing.assert_allclose(metrics[name], arrays[name], rtol=1e-5)
  grads, _ = variables_in(arrays, "grad.", names)
  expected, expected_stats = variables_in(arrays, "after.student.", names)
  ours = jax.tree.map(np.asarray, state.opt_state[0])
  # A bias in front of a BatchNorm plays no part: its gradient is rounding noise, of which Adam
  # makes whole steps.
  for tree in (ours, grads, state.params, expected):
    noise = [tree["encoder"][f"conv_{i}"].pop("bias") for i in (0, 1)]
    noise += [
      tree[head]["hidden"].pop("bias")
      for head in ("projector", "predictor", "predictor_difference")
    ]
    noise += [tree["projector"]["out"].pop("bias")]  # the predictors' BatchNorm comes next
    assert tree is state.params or tree is expected or max(np.abs(x).max() for x in noise) < 2e-5
  assert _largest_relative(ours, grads) < 3e-4  # compiled without optimisations 1.2e-4
  # Adam's first step is the rate times the gradient's sign: near 0 that is rounding noise too.
  clear = jax.tree.map(lambda g: np.abs(g) > 1e-2 * np.sqrt(np.mean(np.square(g))), grads)
  gap = jax.tree.map(
    lambda a, b, c: float(np.abs((a - b)[c]).max(initial=0)), state.params, expected, clear
  )
  assert max(jax.tree.leaves(gap)) < 1e-4
  assert _largest_difference(state.params, expected) < 2.01 * arrays["lr"]
  assert np.mean(np.concatenate([c.ravel() for c in jax.tree.leaves(clear)])) > 0.5
  assert _largest_difference(state.batch_stats, expected_stats) < 1e-4
  expected, expected_stats = variables_in(arrays, "after.teacher.", names)
  assert _largest_difference(state.teacher.params, expected) < 1e-4
  assert _largest_difference(state.teacher.batch_stats, expected_stats) < 1e-4
