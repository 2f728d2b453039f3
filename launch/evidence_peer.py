"""Trains what a config of pre-training says with PyTorch's update in place of ours.

  python -m launch.evidence_peer --config=configs/evidence.py --workdir=runs/peer \
    --config.data.path=data/real

Order of the clips, views, initial parameters and schedules are ours; networks, gradients, AdamW and
the teacher's average are PyTorch's (`atst_jax/performance/torch_update.py`). The teacher's encoder
lies in WORKDIR/encoder afterwards, as an export. So what an evaluation finds can be set beside our
own run of the same config. Stopped at any moment, the same command goes on from the last of the
states that it keeps every `checkpoint.every_steps`. A step that ours would leave out as a spike
(`guard.spike`) is taken. On the CPU; needs pip install -e .[torch].
"""

import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

import atst_jax
from atst_jax.artifacts import export
from atst_jax.audio.frontend import get_frontend
from atst_jax.data.dataset import write_json
from atst_jax.method.ema import EmaState
from atst_jax.method.mixtures import make_mixtures
from atst_jax.method.optimizer import cosine_schedule, make_optimizer
from atst_jax.method.subtraction import SECTIONS
from atst_jax.method.views import make_views
from atst_jax.performance import torch_update
from atst_jax.pretraining import job, recipe
from atst_jax.pretraining.checks import is_ragged
from atst_jax.runtime.mesh import make_mesh, process_rows
from atst_jax.util import config as configs
from atst_jax.util.cli import Parser, guard
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

STATE = "state.pt"
COMPUTED = {**torch_update.COMPUTED, "optimizer.form": ("optax",), "export": ("teacher",)}
LINEAR = {"weight": "kernel", "bias": "bias"}
NORM = {"weight": "scale", "bias": "bias"}
HEAD = {
  "0": ("hidden", {"weight": "kernel"}),
  "1": ("norm", NORM),
  "3": ("out", {"weight": "kernel"}),
}


class Schedules(NamedTuple):
  """(steps,) each."""

  learning_rate: np.ndarray
  weight_decay: np.ndarray
  decay: np.ndarray  # of the teacher


def names(depth: int, parts: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
  """Name of every parameter of `torch_update.make_networks` -> its path in ours.

  Args:
    parts: "encoder", and the heads.
  """
  layers = {
    "encoder.embed": ("encoder/patch_embed", LINEAR),
    "encoder.norm": ("encoder/norm", NORM),
  }
  for i in range(depth):
    attention, perceptron, ours = (
      f"encoder.blocks.{2 * i}",
      f"encoder.blocks.{2 * i + 1}",
      f"encoder/block_{i:02d}",
    )
    layers |= {
      f"{attention}.norm": (f"{ours}/norm1", NORM),
      f"{attention}.layers.0.qkv": (f"{ours}/qkv", {"weight": "kernel"}),
      f"{attention}.layers.0.proj": (f"{ours}/proj", LINEAR),
      f"{perceptron}.norm": (f"{ours}/norm2", NORM),
      f"{perceptron}.layers.0": (f"{ours}/fc1", LINEAR),
      f"{perceptron}.layers.2": (f"{ours}/fc2", LINEAR),
    }
  for head in parts:
    if head != "encoder":
      layers |= {f"{head}.{n}": (f"{head}/{name}", kinds) for n, (name, kinds) in HEAD.items()}
  found: dict[str, tuple[str, ...]] = {
    "encoder.cls": ("encoder", "cls_token"),
    "encoder.position": ("encoder", "pos_embed"),
  }
  for name, (path, kinds) in layers.items():
    for theirs, own in kinds.items():
      found[f"{name}.{theirs}"] = (*path.split("/"), own)
  return found


def load(torch, network, params: dict, depth: int) -> None:
  """Copies our parameters into a network of PyTorch's. Its BatchNorm's running statistics stay:
  nothing reads them."""
  own = dict(network.named_parameters())
  for name, path in names(depth, tuple(network)).items():
    value = params
    for key in path:
      value = value[key]
    array = np.array(value)
    array = array.T if path[-1] == "kernel" else array
    with torch.no_grad():
      own.pop(name).copy_(torch.from_numpy(np.ascontiguousarray(array)))
  assert not own, f"parameters without a counterpart: {sorted(own)}"


def unload(network, depth: int) -> dict:
  """The encoder's parameters of a network of PyTorch's, as ours: {"params": …}."""
  own, params = dict(network.named_parameters()), {}
  for name, (_, *path) in names(depth, ("encoder",)).items():
    array = own[name].detach().numpy()
    place = params
    for key in path[:-1]:
      place = place.setdefault(key, {})
    place[path[-1]] = np.ascontiguousarray(array.T if path[-1] == "kernel" else array)
  return {"params": params}


def schedules(config: ConfigDict) -> Schedules:
  """Of a resolved config, for all of its steps."""
  steps = np.arange(config.total_steps)
  _, rates = make_optimizer(
    total_steps=config.total_steps,
    warmup_steps=config.warmup_steps,
    batch_size=config.batch_size,
    **config.optimizer,
  )
  teacher = config.teacher
  average = cosine_schedule(teacher.decay_start, teacher.decay_end, total_steps=config.total_steps)
  return Schedules(
    *(np.asarray(rates[name](steps)) for name in ("learning_rate", "weight_decay")),
    np.asarray(average(steps + teacher.lead_steps)),
  )


def views_from(config: ConfigDict, dataset, *, step: int, rows) -> Iterator[tuple]:
  """Yields (2 * B, T, F), valid frames (2 * B,) or None, and with λ > 0 γ (2 * B,) and `post_std`
  of every step, as `train_step` draws them; the first views of all clips come before the second
  ones."""
  ragged, options = is_ragged(config, dataset), config.views.to_dict()
  mixing = torch_update.mixing_of(config)

  def views(step, batch):
    key = jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), step)
    view_key, mix_key, _ = jax.random.split(key, 3)
    pair, length, drawn = make_views(
      view_key,
      batch["mel"],
      batch["length"],
      ragged=ragged,
      apart=mixing is not None,
      resize=config.compute.resize,
      **options,
    )
    first = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    found = (first(pair), None if length is None else first(length))
    if mixing is None:
      return found
    mixtures = make_mixtures(mix_key, pair, length, drawn["post_std"], **mixing)
    return (*found, first(mixtures.gamma), drawn["post_std"])

  views = jax.jit(views)
  for number, batch in enumerate(recipe.batches(config, dataset, start_step=step, rows=rows), step):
    yield views(number, batch)


class Peer:
  """Student, teacher and AdamW in PyTorch, which begin as our `state` does."""

  def __init__(self, torch, config: ConfigDict, state):
    encoder = {key: value for key, value in config.encoder.items() if key != "kind"}
    self.torch, self.depth, self.schedules = torch, config.encoder.depth, schedules(config)
    mixing = torch_update.mixing_of(config)
    torch.manual_seed(config.seed)
    self.student, self.teacher = torch_update.make_networks(
      torch,
      n_mels=get_frontend(config.data.frontend).n_mels,
      hidden=config.heads.hidden,
      out=config.heads.out,
      differences=mixing is not None,
      **encoder,
    )
    load(torch, self.student, state.params, self.depth)
    teacher: EmaState = state.teacher
    load(torch, self.teacher, teacher.params, self.depth)
    every = list(self.student.parameters())
    groups = [
      {"params": [p for p in every if p.ndim > 1], "decays": True},
      {"params": [p for p in every if p.ndim == 1], "decays": False},
    ]
    optimizer = config.optimizer
    self.optimizer = torch.optim.AdamW(
      groups, lr=0.0, betas=(optimizer.b1, optimizer.b2), eps=optimizer.eps, fused=True
    )
    self._update = torch_update.make_update(
      torch,
      self.student,
      self.teacher,
      self.optimizer,
      device="cpu",
      bfloat16=config.dtype == "bfloat16",
      compiled=False,
      mixing=mixing,
    )

  def step(self, number: int, views, length, *drawn) -> float:
    """One update on what `views_from` yields for a step: its loss."""
    rates = self.schedules
    for group in self.optimizer.param_groups:
      group["lr"] = float(rates.learning_rate[number])
      group["weight_decay"] = float(rates.weight_decay[number]) if group["decays"] else 0.0
    tensor = lambda x: None if x is None else self.torch.from_numpy(np.array(x))
    given = tensor(views), tensor(length), float(rates.decay[number])
    return float(self._update(*given, *map(tensor, drawn)))

  def save(self, path: pathlib.Path, step: int) -> None:
    """Keeps all that evolves, PyTorch's random numbers too: stochastic depth draws them."""
    parts = {name: getattr(self, name).state_dict() for name in ("student", "teacher", "optimizer")}
    temporary = path.with_suffix(".part")
    random = self.torch.get_rng_state()
    self.torch.save({"step": step, "random": random, **parts}, temporary)
    os.replace(temporary, path)

  def restore(self, path: pathlib.Path) -> int:
    """The step to go on from."""
    found = self.torch.load(path, weights_only=True)
    if "random" not in found:
      raise UserError(f"{path} is of a build that did not keep its random numbers: delete it")
    for name in ("student", "teacher", "optimizer"):
      getattr(self, name).load_state_dict(found[name])
    self.torch.set_rng_state(found["random"])
    return found["step"]


def train(config: ConfigDict, workdir: pathlib.Path) -> int:
  """Trains to the end and writes WORKDIR/encoder. Returns 0. Raises UserError."""
  try:
    import torch
  except ImportError:
    raise UserError("PyTorch is not installed: pip install -e .[torch]") from None
  config, dataset = job.settle(config)
  torch_update.check(config, COMPUTED)
  workdir.mkdir(parents=True, exist_ok=True)
  stored, path = configs.to_json(config), workdir / "config.json"
  if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != stored:
    raise UserError(f"--workdir={workdir} was trained with another config; choose another")
  write_json(str(path), stored)
  mesh = make_mesh(**config.mesh)
  program = recipe.compile_for(config, mesh, ragged=is_ragged(config, dataset))
  peer = Peer(torch, config, job.fresh_state(config, program))
  first = peer.restore(workdir / STATE) if (workdir / STATE).is_file() else 0
  rows = process_rows(mesh, config.batch_size)
  with (workdir / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
    found = views_from(config, dataset, step=first, rows=rows)
    for step in range(first, config.total_steps):
      loss = peer.step(step, *next(found))
      if (step + 1) % config.log.every_steps == 0:
        log.info("step %d/%d loss %.4f", step + 1, config.total_steps, loss)
        metrics.write(json.dumps({"step": step + 1, "loss": loss}) + "\n")
        metrics.flush()
      if (step + 1) % config.checkpoint.every_steps == 0 or step + 1 == config.total_steps:
        peer.save(workdir / STATE, step + 1)
  provenance = {
    "step": config.total_steps,
    "network": "teacher",
    "atst_jax": atst_jax.__version__,
    "trained_by": f"PyTorch {torch.__version__}",
    "config": stored,
  }
  variables = unload(peer.teacher, peer.depth)
  export.write(
    str(workdir / "encoder"), variables, provenance=provenance, **export.settings(stored)
  )
  return 0


def main(argv: list[str]) -> int:
  """Returns the exit code: 0, or 2 for a mistake."""
  parser = Parser("launch.evidence_peer", __doc__)
  parser.add_argument("--config", required=True, help="of a pre-training")
  parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of this run")
  flags, overrides = parser.parse_with_overrides(argv)
  return train(configs.load_with_overrides(flags.config, overrides, SECTIONS), flags.workdir)


if __name__ == "__main__":
  sys.exit(guard(lambda: main(sys.argv[1:])))
