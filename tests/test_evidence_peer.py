"""Pre-training with PyTorch's update is ours, and goes on from where it was stopped."""

import jax
import numpy as np
import pytest

from atst_jax.artifacts.model import load_model
from atst_jax.performance import torch_update
from atst_jax.pretraining import job, recipe
from atst_jax.runtime.mesh import make_mesh
from atst_jax.util.errors import UserError
from launch import evidence_peer
from tests.tiny import tiny_config, write_dataset


def config_of(folder, **values):
  """Of three steps, on clips shorter than the crop too."""
  data = write_dataset(str(folder / "data"))
  values = {"difference__weight": "0", **values}
  config = tiny_config(data__source="records", data__path=data, **values)
  config.encoder.drop_path, config.total_steps, config.checkpoint.every_steps = 0.0, 3, 2
  return config


def trained(config):
  """A peer after all steps and our state, whose losses are equal."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed: .[torch]")
  config, dataset = job.settle(config)
  mesh = make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  program = recipe.compile_for(config, mesh, ragged=True)
  state, step = job.fresh_state(config, program), recipe.compile_step(program)
  peer = evidence_peer.Peer(torch, config, state)
  rows = (0, config.batch_size)
  theirs = evidence_peer.views_from(config, dataset, step=0, rows=rows)
  ours = recipe.batches(config, dataset, start_step=0, rows=rows)
  for number in range(config.total_steps):
    state, metrics = step(state, next(ours))
    loss = peer.step(number, *next(theirs))
    assert loss == pytest.approx(float(metrics["loss"]), abs=1e-5)
  return peer, state


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["0", "0.2"])
@pytest.mark.parametrize("decay", [(0.04, 0.4), (100.0, 300.0)])
def test_pytorchs_update_is_ours(tmp_path, decay, weight):
  """Three steps: the same losses and teachers. The second decay takes a tenth of a parameter in a
  step: another schedule, or another choice of parameters, would show."""
  start, end = map(str, decay)
  decay = {"optimizer__weight_decay_start": start, "optimizer__weight_decay_end": end}
  peer, state = trained(config_of(tmp_path, difference__weight=weight, **decay))
  networks = (peer.student, state.params), (peer.teacher, state.teacher.params)
  for network, params in networks:
    found = evidence_peer.unload(network, peer.depth)["params"]
    wanted = dict(params["encoder"])
    for one in (found, wanted):
      # BatchNorm takes away what this bias adds: Adam makes steps of rounding
      one["norm"] = {"scale": one["norm"]["scale"]}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, wanted)


@pytest.mark.slow
def test_a_stopped_peer_goes_on_to_the_same_encoder(tmp_path, monkeypatch):
  """From the state of the step before the last, which is kept every two."""
  pytest.importorskip("torch", reason="PyTorch is not installed: .[torch]")
  config, step = config_of(tmp_path), evidence_peer.Peer.step
  config.encoder.drop_path = 0.5  # drawn by PyTorch
  evidence_peer.train(config, tmp_path / "whole")
  done = []

  def stops(peer, number, *views):
    if number == 2 and not done:
      done.append(number)
      raise KeyboardInterrupt
    return step(peer, number, *views)

  monkeypatch.setattr(evidence_peer.Peer, "step", stops)
  with pytest.raises(KeyboardInterrupt):
    evidence_peer.train(config, tmp_path / "stopped")
  monkeypatch.setattr(evidence_peer, "load", lambda *_: None)  # what it goes on from is its own
  evidence_peer.train(config, tmp_path / "stopped")
  whole, stopped = (load_model(str(tmp_path / name / "encoder")) for name in ("whole", "stopped"))
  assert whole.config["params_hash"] == stopped.config["params_hash"]
  with pytest.raises(UserError, match="was trained with another config"):
    evidence_peer.train(config_of(tmp_path, optimizer__base_lr="2e-2"), tmp_path / "stopped")


def test_the_peer_refuses_what_it_does_not_compute():
  for values, message in (
    ({"heads__use_bias": "true"}, "heads.use_bias=True: PyTorch's update knows False alone"),
    ({"optimizer__form": "transformers"}, "optimizer.form=transformers"),
    ({"export": "student"}, "export=student"),
  ):
    with pytest.raises(UserError, match=message):
      torch_update.check(tiny_config(**values), evidence_peer.COMPUTED)
