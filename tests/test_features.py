"""Features of an evaluation: of which encoder, of which part of a clip, standardised by what."""

import dataclasses
import os

import numpy as np
import pytest

from atst_jax.artifacts.model import load_model
from atst_jax.data.dataset import Clip, Dataset
from atst_jax.downstream import features
from atst_jax.downstream.linear import recipe
from atst_jax.util.errors import UserError
from tests.evaluation import evaluate, make_clips, resolved, vectors, write_clips, write_encoder


def test_features_are_those_of_the_encoder_with_the_central_crop(encoder, tmp_path):
  data = write_clips(tmp_path / "data", make_clips(12, folds=3))
  rows = vectors(
    encoder, data, tmp_path / "features", max_seconds="0.4", seeds="1", blocks="'all',"
  )
  names = ("pre-trained, all blocks", "random, all blocks", "mel mean and std")
  found = [rows[name][0] for name in names]
  crops = []
  for clip in make_clips(12, folds=3):
    start = max(len(clip.mel) - 41, 0) // 2
    crops.append(clip.mel[start : start + 41].astype(np.float32))
  model = load_model(encoder)
  expected = [
    model.embed(crops),
    model.reinitialized(0).embed(crops),
    np.stack([np.r_[mel.mean(0, np.float64), mel.std(0, np.float64)] for mel in crops]),
  ]
  for x, y in zip(found, expected, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_last_blocks_of_all_blocks_equal_embedding_them(encoder):
  model, mels = load_model(encoder), [clip.mel.astype(np.float32) for clip in make_clips(4)]
  x = features.last_blocks(model.embed(mels), depth=2, num_blocks=1)
  np.testing.assert_allclose(x, model.embed(mels, num_blocks=1), atol=1e-6)


def test_crops_of_the_unit(tmp_path):
  """Clips that are tested begin at their start, others anywhere; a seed gives the same again;
  silence is -100 dB."""
  clips = [
    Clip(
      f"{i}",
      np.arange(80 * 64, dtype=np.float16).reshape(80, 64) / 64,
      (i % 3,),
      False,
      -1,
      ("train", "valid", "test")[i % 3],
    )
    for i in range(9)
  ]
  dataset = Dataset.load(
    write_clips(tmp_path / "data", [*clips, Clip("s", clips[0].mel[:5], (0,), False, -1, "test")])
  )
  read = lambda seed: list(features.mels(dataset, 10, "", unit=40, seed=seed))
  found = {clip.id: mel for clip, mel in zip(features.clips(dataset), read(0), strict=True)}
  assert all(mel.shape == (40, 64) for mel in found.values())
  starts = {id: round(float(mel[0, 0])) for id, mel in found.items()}
  assert (
    all(starts[str(i)] == 0 for i in (2, 5, 8))
    and len({starts[str(i)] for i in (0, 1, 3, 4, 6, 7)}) > 3
  )
  train = list(features.mels(dataset, 3, "", split="train", unit=40, seed=0))
  assert sorted(x[0, 0] for x in train) == sorted(found[str(i)][0, 0] for i in (0, 3, 6))
  np.testing.assert_array_equal(found["s"][:5], clips[0].mel[:5])
  assert np.allclose(found["s"][5:], -100)
  assert all(map(np.array_equal, read(0), read(0))) and not all(
    map(np.array_equal, read(0), read(1))
  )


def test_clips_keep_their_start_where_folds_are_drawn_and_each_is_tested(encoder, tmp_path):
  """They were cut anywhere, though the exported head says that it hears the start."""
  clips = [dataclasses.replace(clip, fold=-1, split="train") for clip in make_clips()]
  data = write_clips(tmp_path / "data", clips)
  job = recipe.resolve(resolved(encoder, data, crop="unit", unit_seconds="0.1"))
  found = features.mels(job.dataset, len(clips), "", unit=job.unit, seed=job.crop_seed)
  mels = {clip.id: clip.mel for clip in features.clips(job.dataset)}
  for mel, cut in zip(mels.values(), found, strict=True):
    np.testing.assert_array_equal(cut, mel[: job.unit])


def test_a_convolutional_encoder_has_one_row_and_may_standardise_by_the_data(tmp_path, encoder):
  cnn = write_encoder(tmp_path / "cnn", kind="cnn")
  data = write_clips(tmp_path / "data", make_clips(18))
  few = {"seeds": "1", "probe__epochs": "2"}
  own = evaluate(cnn, data, tmp_path / "own", **few)
  assert [row["name"] for row in own["rows"]] == ["pre-trained", "random", "mel mean and std"]
  assert [row["dimensions"] for row in own["rows"]] == [1032, 1032, 128]
  vectors(cnn, data, tmp_path / "data_statistics" / "features", **few, statistics="data")
  read = lambda name: {
    f: np.load(tmp_path / name / "features" / f) for f in os.listdir(tmp_path / name / "features")
  }
  arrays = [
    x for name in ("own", "data_statistics") for x in read(name).values() if x.shape[1] == 1032
  ]
  assert len(arrays) == 4 and len({x.tobytes() for x in arrays}) == 4
  model = load_model(cnn).standardized({"log_mean": -7.0, "log_std": 3.0})
  mels = [clip.mel.astype(np.float32) for clip in Dataset.load(data).clips("train")]
  assert any(np.allclose(x, model.embed(mels), atol=1e-5) for x in arrays)
  with pytest.raises(UserError, match="does not standardise its input"):
    evaluate(encoder, data, tmp_path / "no", **few, statistics="data")


def test_a_task_is_its_clips_and_labels(tmp_path):
  """Not their sound or order: another front-end, seed or number of shards asks the same."""
  sets = {
    "first": {"clips": make_clips(6)},
    "sounds": {"clips": make_clips(6, seed=1)[::-1], "frontend": "difference"},
    "labels": {"clips": [Clip(c.id, c.mel, (0,)) for c in make_clips(6)]},
    "fewer": {"clips": make_clips(6)[1:]},
    "names": {"clips": make_clips(6), "names": ("low", "mid", "top")},
  }
  tasks = {}
  for name, options in sets.items():
    dataset = Dataset.load(write_clips(tmp_path / name, **options))
    tasks[name] = features.task(dataset.label_names, features.read_labels(dataset))
  assert tasks["first"] == tasks.pop("sounds") and len({*tasks.values()}) == 4
  more = features.task(dataset.label_names, features.read_labels(dataset), "pairs")
  assert more != tasks["names"]
