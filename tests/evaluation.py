"""A tiny exported encoder and tiny labelled sets, for the tests of what comes after
pre-training."""

import functools
import json
import os
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.artifacts import export, folder
from atst_jax.artifacts.model import Model
from atst_jax.audio.frontend import FRONTENDS, get_frontend
from atst_jax.data.dataset import Clip
from atst_jax.downstream.linear import job
from atst_jax.models.encoders import fresh_variables, make_encoder
from atst_jax.pretraining import recipe
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests.tiny import ROOT, tiny_config, write_shards

CNN = {"kind": "cnn", "version": "AudioNTT2022", "width": 1032, "hidden": 8, "dropout": 0.3}
ENCODER = {
  "kind": "transformer",
  "width": 8,
  "depth": 2,
  "heads": 2,
  "drop_path": 0.0,
  "patch_frames": 4,
  "max_frames": 32,
}


MIN_MAX = {"kind": "min_max", "top_db": 80.0, "low": -100.0, "high": 40.0}

SESSION = tempfile.TemporaryDirectory()


def write_encoder(folder, *, kind="transformer", frontend="atst"):
  """A tiny exported encoder with random parameters. Returns the folder."""
  shutil.copytree(_exported(kind, frontend), folder)
  return str(folder)


@functools.cache
def _exported(kind, frontend):
  folder = f"{SESSION.name}/{kind}_{frontend}"
  encoder, normalization = {
    "transformer": (ENCODER, MIN_MAX),
    "cnn": (CNN, {"kind": "standard", "mean": -5.0, "std": 4.0}),
  }[kind]
  variables = jax.jit(make_encoder(encoder).init)(jax.random.key(77), jnp.zeros((1, 32, 64)))
  export.write(
    folder,
    variables,
    encoder=encoder,
    frontend=FRONTENDS[frontend],
    chunk_frames=32,
    tail="weighted",
    normalization=normalization,
    provenance={"step": 123},
  )
  return folder


def model_of(file) -> Model:
  """Of a run's export, with random parameters."""
  config = recipe.resolve(tiny_config(file), None).to_dict()
  settings = export.settings(config)
  frontend = get_frontend(config["data"]["frontend"])
  encoder = make_encoder(config["encoder"])
  variables = fresh_variables(encoder, settings["chunk_frames"], frontend.n_mels, 0)
  return Model({**settings, "frontend": frontend.to_json()}, variables, None)


def write_model(path, model, **changes) -> str:
  """The export of a model."""
  settings = {key: model.config[key] for key in folder.EMBEDDING} | changes
  export.write(str(path), model.variables, frontend=model.frontend, provenance={}, **settings)
  return str(path)


def write_clips(root, clips, *, frontend="atst", names=("low", "mid", "high"), name="tones"):
  """A prepared dataset of the given clips, a shard for each split. Returns root."""
  splits = {
    split: [[clip for clip in clips if clip.split == split]]
    for split in sorted({clip.split for clip in clips})
  }
  return write_shards(root, splits, name=name, names=names, frontend=frontend)


def make_clips(n=36, *, folds=3, seed=0, loud=40.0):
  """Clips of 20 to 80 frames. The class is the third of the spectrum that is `loud` dB louder;
  folds change every 3."""
  rng = np.random.default_rng(seed)
  clips = []
  for i in range(n):
    mel = rng.normal(-60, 5, (int(rng.integers(20, 81)), 64))
    mel[:, 21 * (i % 3) : 21 * (i % 3) + 21] += loud
    clips.append(
      Clip(f"{i}.wav", mel.astype(np.float16), (i % 3,), fold=i // 3 % folds if folds else -1)
    )
  return clips


def noise(seconds, seed=0):
  """(N,) float32 at 16 kHz."""
  return np.random.default_rng(seed).normal(0, 0.1, round(16000 * seconds)).astype(np.float32)


def several_labels(n):
  """Clips of one or two classes, each a loud third of the spectrum; every fourth is tested."""
  clips = []
  for i, clip in enumerate(make_clips(n)):
    second = (i % 3 + i // 3 % 3) % 3
    clip.mel[:, 21 * second : 21 * second + 21] += 40 * (second != i % 3)
    labels = tuple(sorted({i % 3, second}))
    clips.append(Clip(clip.id, clip.mel, labels, True, -1, "test" if i % 4 == 0 else "train"))
  return clips


OVERRIDES = {
  "protocol": "atst",
  "seeds": "2",
  "knn": "3",
  "probe.epochs": "40",
  "probe.batch_size": "32",
  "probe.learning_rates": "0.01,0.1,1.0",
}


def resolved(encoder, data, variant="paper", **overrides):
  """The config of a linear evaluation, made tiny."""
  config = configs.load(f"{ROOT / 'configs' / 'linear.py'}:{variant}")
  values = {**OVERRIDES, "protocol": "evar" if variant == "evar" else "atst"}
  values |= {k.replace("__", "."): v for k, v in overrides.items()}
  if values["protocol"] in ("exact", "none"):  # it has no use for the others' settings
    idle = {key for key in OVERRIDES if key.startswith("probe.")}
    values = {key: value for key, value in values.items() if key not in idle}
    values |= {k.replace("__", "."): v for k, v in overrides.items()}
  for key, value in {"encoder": encoder, "data.path": data, **values}.items():
    configs.override(config, key, value)
  return config


def vectors(encoder, data, folder, variant="paper", **overrides):
  """{row: (N, D) arrays} of a linear evaluation that embeds and probes nothing."""
  return dict(job.vectors(job.resolve(resolved(encoder, data, variant, **overrides)), str(folder)))


def evaluate(encoder, data, workdir, variant="paper", **overrides):
  config = resolved(encoder, data, variant, **overrides)
  assert job.run(config, str(workdir), allow_changed_config=False) == 0
  with open(os.path.join(workdir, "results.json"), encoding="utf-8") as file:
    return json.load(file)


def refused(pattern, encoder, data, workdir, **overrides):
  with pytest.raises(UserError, match=pattern):
    evaluate(encoder, data, workdir, **overrides)
  assert not os.path.exists(os.path.join(workdir, "results.json"))
