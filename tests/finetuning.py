"""A tiny fine-tuning, for the tests of it."""

import functools
import json
import os
import pathlib

import jax
import pytest

from atst_jax.data.dataset import Clip
from atst_jax.downstream.finetune import job, recipe
from atst_jax.runtime import mesh
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests.evaluation import make_clips
from tests.tiny import ROOT

OVERRIDES = {
  "batch_size": "16",
  "mixup.group": "2",
  "epochs": "6",
  "warmup_epochs": "1",
  "optimizer.base_lr": "4",
  "log.every_steps": "1",
  "checkpoint.every_epochs": "3",
}


def split_clips(n=60, **options):
  """Clips with splits of their own: every fifth is tested, every fifth validates."""
  names = ("test", "valid", "train", "train", "train")
  return [
    Clip(c.id, c.mel, c.labels, False, -1, names[i % 5])
    for i, c in enumerate(make_clips(n, folds=0, **options))
  ]


def config_of(encoder, data, variant="as20k", **overrides):
  """The config of a tiny fine-tuning."""
  config = configs.load(f"{ROOT / 'configs' / 'finetune.py'}:{variant}")
  values = {**OVERRIDES, **{k.replace("__", "."): v for k, v in overrides.items()}}
  for key, value in {"encoder": encoder, "data.path": data, **values}.items():
    configs.override(config, key, value)
  return config


def resolved(encoder, data, **overrides):
  """Its recipe, for batches of 16 on 8 devices."""
  return recipe.resolve(config_of(encoder, data, **overrides))


def run(encoder, data, workdir, variant="as20k", devices=1, **overrides):
  """The exit code, and results.json if it is there."""
  config = config_of(encoder, data, variant, **overrides)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      recipe, "make_mesh", functools.partial(mesh.make_mesh, devices=jax.devices()[:devices])
    )
    code = job.run(config, str(workdir), allow_changed_config=False)
  path = pathlib.Path(workdir, "results.json")
  return code, json.loads(path.read_text()) if path.exists() else None


def refused(pattern, encoder, data, workdir, **overrides):
  with pytest.raises(UserError, match=pattern):
    run(encoder, data, workdir, **overrides)
  assert not os.path.exists(os.path.join(workdir, "results.json"))
