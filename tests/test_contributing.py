"""CONTRIBUTING.md does what it says: a toy encoder, objective, view and task, each added as its
section tells."""

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from atst_jax import main
from atst_jax.artifacts import export
from atst_jax.artifacts.embedding import get_scene_embeddings
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.downstream.papers import tasks
from atst_jax.embed import load_model
from atst_jax.method import views
from atst_jax.models import encoders
from atst_jax.models.layers import Encoder, pool_frames
from atst_jax.objectives import registry
from atst_jax.objectives.objective import Loss, Objective
from atst_jax.objectives.similarity import Embedder
from atst_jax.objectives.windows import clip_keys, draw_starts, normalized, peaks, take_windows
from atst_jax.pretraining import checks, recipe
from atst_jax.pretraining.checks import check
from atst_jax.runtime.metric_writer import read_metrics
from data_pipeline import prepare, synth
from data_pipeline.sources import inputs
from data_pipeline.sources.files import Listing, Source
from data_pipeline.sources.owner_lists import OwnerFolder
from tests.evaluation import MIN_MAX, write_encoder
from tests.preparing import write_inline
from tests.tiny import ROOT, tiny_config, tiny_flags


class Bands(Encoder):
  """A toy encoder: one linear layer for every two frames."""

  width: int
  dtype: jnp.dtype = jnp.float32
  hop = 2

  @nn.compact
  def __call__(self, mel, length=None, *, train=False, track=True, tokens=False):
    """(B, T, F) -> (B, D), {"frames": (B, T // 2, D)}."""
    B, T, F = mel.shape
    pairs = mel[:, : T // 2 * 2].reshape(B, T // 2, 2 * F)
    frames = nn.Dense(self.width, dtype=self.dtype)(pairs).astype(jnp.float32)
    return pool_frames(frames, None if length is None else length // 2), {"frames": frames}


@pytest.fixture
def bands(monkeypatch):
  monkeypatch.setitem(encoders.ENCODERS, "bands", Bands)
  # as importing it anew would
  monkeypatch.setitem(checks.CHOICES, "encoder.kind", tuple(encoders.ENCODERS))
  return {"kind": "bands", "width": 16}


def test_an_encoder_pre_trains_and_embeds(bands, tmp_path):
  config = tiny_config(views__padding="silence", difference__weight="0.2", warmup_steps="0")
  config.unlock()
  config.encoder = ConfigDict(bands)
  config = recipe.resolve(config, None)
  check(config, None, devices=8, processes=1)
  init, step = recipe.build(config, ragged=False)
  state = jax.jit(init)(jax.random.key(0))
  batch = next(recipe.batches(config, None, start_step=0, rows=(0, 16)))
  after, metrics = jax.jit(step)(state, batch)
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), state.params["encoder"], after.params["encoder"]
  )
  assert np.isfinite(metrics["loss"]) and min(jax.tree.leaves(moved)) > 0

  export.write(
    str(tmp_path / "encoder"),
    {"params": after.params["encoder"]},
    encoder=bands,
    frontend=FRONTENDS["atst"],
    chunk_frames=32,
    tail="weighted",
    provenance={"step": 1},
    normalization=MIN_MAX,
  )
  sound = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
  assert get_scene_embeddings(
    [sound], load_model(str(tmp_path / "encoder")), sample_rate=16000
  ).shape == (1, 16)


class Levels(Objective):
  """A toy objective: the mean level of every mel bin of a crop is told from the crop."""

  class Settings(NamedTuple):
    """The section `levels`."""

    weight: float

  name, settings = "levels", Settings
  ranges: ClassVar = {"levels.weight": (0, 10)}
  outputs = 64

  def make_network(self, encoder, *, dtype, accumulation):
    """A linear layer on the encoder."""
    return Embedder(encoder, self.outputs, dtype, accumulation)

  def loss(self, student, batch, key):
    """Mean squared error."""
    mel, length, views = batch["mel"], batch["length"], self.config["views"]
    starts = draw_starts(clip_keys(key, len(length), 1), length, views["crop_frames"])
    windows = take_windows(mel, length, starts, views["crop_frames"])
    crops = normalized(windows, peaks(mel, length), views["normalization"])[:, 0]
    said = student(crops)
    error = jnp.square(said - crops.mean(1)).mean()
    return Loss(self.options.weight * error, {"loss_level": error}, said)

  def flops(self, n_mels):
    """Nothing is asked of it here."""
    return 1.0


def test_an_objective_trains_and_is_exported(monkeypatch, tmp_path, capsys, one_device):
  """By the commands: train and export. Nothing but the registry knows of it."""
  monkeypatch.setitem(registry.OBJECTIVES, "levels", Levels)
  monkeypatch.setitem(checks.CHOICES, "objective", tuple(registry.OBJECTIVES))
  mine = tmp_path / "levels.py"
  mine.write_text(
    "from ml_collections import ConfigDict\nfrom configs import base\nVARIANTS = ('paper',)\n\n"
    "def get_config(variant='paper'):\n  config = base.common()\n"
    "  config.objective = 'levels'\n  config.levels = ConfigDict({'weight': 1.0})\n"
    "  return config\n"
  )
  flags = tiny_flags(str(mine), encoder__depth="1", online__every_steps="2")
  run = [*flags, f"--workdir={tmp_path / 'run'}"]
  assert main.main([*run, "--dry_run"]) == 0
  told = capsys.readouterr().out
  assert "objective   levels" in told and "teacher" not in told
  assert main.main([*run, "--config.levels.weight=11"]) == 2
  assert "must lie between 0 and 10" in capsys.readouterr().err
  assert main.main(run) == 0
  step = export.export_run(str(tmp_path / "run"), str(tmp_path / "encoder"))["step"]
  records = read_metrics(tmp_path / "run" / "metrics.jsonl")
  assert step == 6 and records[-1]["loss_level"] < records[0]["loss_level"]
  sound = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
  vectors = get_scene_embeddings([sound], load_model(str(tmp_path / "encoder")), sample_rate=16000)
  assert len(vectors) == 1 and np.isfinite(vectors).all()


def mask_frames(key, x, length, *, share):
  """A toy view: a random window of `share` of the valid frames becomes 0. (T, F) -> (T, F)."""
  width = jnp.floor(share * length).astype(jnp.int32)
  start = jax.random.randint(key, (), 0, length - width + 1)
  frame = jnp.arange(x.shape[0])
  return jnp.where(((frame >= start) & (frame < start + width))[:, None], 0, x)


def test_a_view_hides_frames_of_every_view(monkeypatch):
  """In the fader's place, with a key that nothing else takes."""
  config = tiny_config(views__fader_gain="1")

  def fade(x, head, tail, length):
    return mask_frames(jax.random.key(jnp.abs(head * 1e6).astype(jnp.int32)), x, length, share=0.25)

  monkeypatch.setattr(views, "fade", fade)
  mel = jnp.asarray(np.random.default_rng(0).normal(-30, 15, (4, 64, 64)), jnp.float32)
  options = {**config.views.to_dict(), "ragged": False, "apart": False}
  draw = jax.jit(lambda key: views.make_views(key, mel, jnp.full(4, 64), **options)[0])
  pair = draw(jax.random.key(3))
  hidden = np.asarray((pair == 0).all(-1))  # (B, K, T)
  assert pair.shape == (4, 2, 32, 64) and (hidden.sum(-1) >= 8).all()
  assert len({tuple(row) for row in hidden.reshape(8, 32)}) > 1  # not the same of all
  np.testing.assert_array_equal(pair, draw(jax.random.key(3)))


def test_a_task_is_prepared_and_evaluated(monkeypatch, tmp_path, capsys):
  def toy(folder: OwnerFolder) -> Listing:
    """CLASS/sNN_TAKE.wav, three folds in turn."""
    files = sorted((tmp_path / "sounds").rglob("*.wav"))
    return Listing(
      [
        Source(
          str(file),
          f"{file.parent.name}/{file.name}",
          (file.parent.name,),
          fold=int(file.stem[1:3]) % 3,
        )
        for file in files
      ],
      "toy",
      ["a", "b", "c"],
    )

  monkeypatch.setitem(inputs.LAYOUTS, "toy", toy)
  monkeypatch.setitem(tasks.TASKS, "toy", tasks.Task("Toy", 10, 4.0))
  write_inline(monkeypatch)
  synth.write_classes(str(tmp_path / "sounds"), seed=0, clips_per_class=3)
  flags = [
    f"--input={tmp_path / 'sounds'}",
    "--layout=toy",
    f"--output={tmp_path / 'data'}",
    "--name=toy",
  ]
  assert prepare.main([*flags, "--frontend=atst", "--num_shards=1", "--workers=1"]) == 0
  capsys.readouterr()
  encoder = tmp_path / "encoder"
  write_encoder(encoder)
  argv = [
    f"--config={ROOT / 'configs/linear.py'}",
    f"--config.encoder={encoder}",
    f"--config.data.path={tmp_path / 'data'}",
    "--config.seeds=1",
  ]
  assert main.main([*argv, f"--workdir={tmp_path / 'run'}", "--dry_run"]) == 0
  printed = capsys.readouterr().out
  assert "30 clips" in printed and "3 divisions x 8 penalties" in printed
