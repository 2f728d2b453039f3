"""Twenty steps of the trainer's own step against an independent PyTorch loop: what that loop wrote
into tests/golden everywhere, and the loop itself where PyTorch is.

Both begin from the same clips, weights and draws (`trajectory`); views, mixtures, schedules,
networks, losses, AdamW and teacher are the loop's own (`torch_views`, `torch_method`).
"""

import copy
import functools
import os

import numpy as np
import pytest

from tests import trajectory
from tests.trajectory import GOLDEN, KINDS


def _check(ours, theirs):
  """Draws are those; views agree to 1e-4, losses to 1e-3 relative at every step, distances that
  parameters moved to 1 %. Seen red with γ on the clip itself, with the patch time-major (both at
  step 1), with Mixup's partner of the other view, without weight decay, with the teacher's decay of
  the step before, and with a maximum whose gradient goes where equality says (which lost a
  twentieth of it, compiled without optimisations)."""
  for name in trajectory.DRAWS:
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-7, err_msg=name)
  for name in ("views", "mixtures", "view"):
    np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)
  np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=1e-3)
  for name in ("student", "teacher"):
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-2, err_msg=name)


def _golden(kind):
  with np.load(GOLDEN) as arrays:
    return {
      name.removeprefix(f"{kind}/"): arrays[name] for name in arrays if name.startswith(f"{kind}/")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_equal_the_golden_ones(kind):
  """PyTorch's numbers, without PyTorch. They move: the last step's loss is not the first's."""
  ours, _ = trajectory.product(kind)
  golden = _golden(kind)
  _check(ours, golden)
  assert min(golden["student"]) > 0.1 * max(golden["student"]) > 0.01


@functools.cache
def _loop(kind):
  """The same twenty steps in PyTorch, from the draws and weights of `product`."""
  import torch

  from tests import torch_method, torch_views

  ours, weights = trajectory.product(kind)
  config = trajectory.config_of(kind)
  encoder, heads, optimizer = config.encoder, config.heads, config.optimizer
  if kind == "transformer":
    net = torch_method.Transformer(
      encoder.width, encoder.depth, encoder.heads, encoder.max_frames // 4
    )
  else:
    net = torch_method.AudioNTT(2, encoder.width, encoder.hidden)
  student = torch_method.Student(
    net, encoder.width, heads.hidden, heads.out, heads.use_bias, config.joint_views
  )
  for part, tensors in weights.items():
    state = {name: torch.from_numpy(x.copy()) for name, x in tensors.items()}
    missing, unexpected = getattr(student, part).load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
  loop = torch_method.Loop(
    student,
    copy.deepcopy(student),
    config.difference.weight,
    (optimizer.b1, optimizer.b2),
    optimizer.eps,
  )
  found = {name: ours[name] for name in trajectory.DRAWS}
  found |= {"views": [], "mixtures": [], "losses": []}
  for step in range(trajectory.STEPS):
    drawn = {name: ours[name][step] for name in trajectory.DRAWS}
    views = torch_views.make_views(trajectory.clips_of(step), drawn, config.views)
    mixtures = torch_views.mix(views, drawn["gamma"], config.views, config.difference.mix_domain)
    gamma = list(torch.tensor(drawn["gamma"]).T)
    found["losses"].append(loop.step(views, mixtures, gamma, **torch_views.rates(step, config)))
    for name, pair in (("views", views), ("mixtures", mixtures)):
      found[name].append(trajectory.digest(torch.stack(pair, 1).numpy()))
  found["view"] = torch.stack(views, 1).numpy()[0]
  for name, network, parts in (
    ("student", loop.student, list(weights)),
    ("teacher", loop.teacher, ["encoder", "projector"]),
  ):
    after = {
      part: {n: p.detach().numpy() for n, p in getattr(network, part).named_parameters()}
      for part in parts
    }
    far = trajectory.moved(weights, after)
    found[name] = [far[part] for part in sorted(far)]
  return {name: np.array(x) for name, x in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_equal_an_independent_loop(kind):
  """And the golden numbers are this loop's. UPDATE_GOLDEN=1 writes them anew."""
  pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e .[torch]")
  if os.environ.get("UPDATE_GOLDEN"):
    both = {f"{k}/{name}": x for k in KINDS for name, x in _loop(k).items()}
    small = {n: x.astype(np.float32) if x.dtype == np.float64 else x for n, x in both.items()}
    np.savez_compressed(GOLDEN, **small)
  theirs = _loop(kind)
  _check(trajectory.product(kind)[0], theirs)
  for name, x in _golden(kind).items():
    np.testing.assert_allclose(theirs[name], x, rtol=1e-3, atol=1e-4, err_msg=name)
