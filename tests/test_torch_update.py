"""PyTorch's update, which `benchmark step --torch` measures, is ours: loss, gradients, teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atst_jax.method import train_step
from atst_jax.method.ema import ema
from atst_jax.method.mixtures import draw_gamma, make_mixtures
from atst_jax.method.subtraction import Subtraction
from atst_jax.performance import torch_step, torch_update
from launch.evidence_peer import load, names

CLIPS, FRAMES, MELS = 8, 16, 8
RATE, DECAY = 0.1, 0.9
ENCODER = {"width": 16, "depth": 1, "heads": 2, "patch_frames": 4, "max_frames": 16}
HEADS = {"hidden": 32, "out": 8}
# Every switch of `difference` that a transformer has, away from its default once.
SWITCHES = {
  "base.py": {"mix_domain": "energy"},
  "one direction": {"symmetric": False, "stop_gradient": True, "mix_stage": "pre_norm"},
  "the others": {
    **{"match_level": True, "renormalize": "batch", "rescale": True, "joint_projector": True},
    **{"neighbour": "batch", "gamma_per": "batch", "gamma_shared": True},
    **{"subtrahend": "teacher", "mix_domain": "energy", "mix_k": 3.0},
  },
}


def parts_of(options):
  """Our network and its rules."""
  network = train_step.make_network(
    encoder={"kind": "transformer", "drop_path": 0.0, **ENCODER},
    heads={"use_bias": False, **HEADS},
    joint_views=True,
    dtype=jnp.float32,
    subtraction=options,
  )
  return {"network": network, "tx": optax.sgd(RATE), "teacher": ema(lambda step: DECAY)}


@pytest.fixture(scope="module")
def state():
  """One whose teacher is not its student."""
  parts = {**parts_of(Subtraction(weight=0.3)), "frames": FRAMES, "n_mels": MELS, "group": 4}
  init = lambda key: train_step.init_state(key, **parts)
  both = jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(0), 2))
  first, second = (jax.tree.map(lambda x, i=i: x[i], both) for i in (0, 1))
  return first._replace(teacher=second.teacher)


@pytest.mark.parametrize("case", SWITCHES)
def test_the_update_is_ours(state, case):
  """After one step of plain gradient descent, in which no gradient can hide. Seen red with another
  neighbour, the other sign of the subtrahend, λ and 1 - λ exchanged, without the mixtures' lengths
  and with each of the switches ignored that act on given γ."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed: .[torch]")
  options = Subtraction(weight=0.3, **SWITCHES[case])
  group = CLIPS if options.neighbour == "batch" else 4
  mixing = {"options": options, "k": options.mix_k or 2.0, "group": group}
  views = jax.random.normal(jax.random.key(1), (CLIPS, 2, FRAMES, MELS))
  post_std, length = jnp.float32(1.7), None
  if case != "one direction":
    length = jax.random.randint(jax.random.key(2), (CLIPS, 2), 4, FRAMES + 1)
  mixed = make_mixtures(jax.random.key(3), views, length, post_std, **mixing)
  update = jax.jit(train_step.make_update(**parts_of(options), schedules={}, group=group))
  after, metrics = update(state, jax.random.key(4), views, length, mixed)

  student, teacher = torch_update.make_networks(
    torch, **ENCODER, **HEADS, n_mels=MELS, drop_path=0.0, differences=True
  )
  load(torch, student, state.params, 1)
  load(torch, teacher, state.teacher.params, 1)
  theirs = torch_update.make_update(
    *(torch, student, teacher, torch.optim.SGD(student.parameters(), lr=RATE)),
    **{"device": "cpu", "bfloat16": False, "compiled": False, "mixing": mixing},
  )
  first = lambda x: torch.from_numpy(np.array(x.swapaxes(0, 1).reshape(-1, *x.shape[2:])))
  gamma, frames = first(mixed.gamma), None if length is None else first(length)
  loss = theirs(first(views), frames, DECAY, gamma, torch.tensor(float(post_std)))
  assert float(loss) == pytest.approx(float(metrics["loss"]), abs=1e-5)
  for network, wanted in ((student, after.params), (teacher, after.teacher.params)):
    parameters = dict(network.named_parameters())
    for name, path in names(1, tuple(network)).items():
      found, value = parameters[name].detach().numpy(), wanted
      for key in path:
        value = value[key]
      value = value.T if path[-1] == "kernel" else value
      np.testing.assert_allclose(found, value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("per", "shared", "numbers"), [("clip", True, 5), ("batch", False, 2)])
def test_shares_are_drawn_as_ours(per, shared, numbers):
  """Seen red with the switches exchanged."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed: .[torch]")
  options = Subtraction(gamma_per=per, gamma_shared=shared, gamma_min=0.2, gamma_max=0.3)
  gamma = torch_step.draw_gamma(torch, 5, options, "cpu").numpy()
  ours = draw_gamma(jax.random.key(0), 5, low=0.2, high=0.3, per=per, shared=shared).T.ravel()
  assert gamma.shape == ours.shape and len(set(gamma)) == numbers
  assert 0.2 <= gamma.min() <= gamma.max() <= 0.3
  same = lambda x: x[:, None] == x
  np.testing.assert_array_equal(same(gamma), same(np.array(ours)))
