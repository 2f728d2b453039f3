"""From a trained state to vectors: the export reads back the same, and audio of any kind becomes
the right numbers."""

import json
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax import export, main
from atst_jax.artifacts import training_set
from atst_jax.artifacts.embedding import get_scene_embeddings, get_timestamp_embeddings
from atst_jax.audio.frontend import FRONTENDS, log_mel
from atst_jax.data.dataset import Dataset, write_json
from atst_jax.embed import load_model
from atst_jax.models.encoders import make_encoder
from atst_jax.models.transformer import Transformer
from atst_jax.pretraining import recipe
from atst_jax.runtime.checkpoint import find_checkpoint
from atst_jax.runtime.trees import restore_encoder
from atst_jax.util.errors import UserError
from tests.checkpoints import open_checkpoints, read_tree
from tests.evaluation import make_clips, noise, write_clips
from tests.tiny import tiny_config, tiny_flags


def write_run(folder, steps=(1, 2), **options):
  """The workdir of a run whose student and teacher differ, with checkpoints of these steps."""
  config = recipe.resolve(tiny_config(**options), None)
  encoder, mel = make_encoder(config.encoder), np.zeros((1, 32, 64), np.float32)
  init = jax.jit(encoder.init)
  network = lambda seed: {
    kind: {"encoder": tree} for kind, tree in init(jax.random.key(seed), mel).items()
  }
  folder.mkdir()
  write_json(str(folder / "config.json"), config.to_dict())
  checkpoints = open_checkpoints(folder / "checkpoints")
  for step in steps:
    student, teacher = network(step), network(100 + step)
    moved = jax.tree.map(lambda x: x + 1, student.get("batch_stats", {}))
    state = {**student, "batch_stats": moved, "teacher": {"batch_stats": {}, **teacher}}
    checkpoints.save(step, {**state, "step": jnp.int32(step)}, sound=True)
  checkpoints.close()
  return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def encoder(workdir):
  folder = workdir.parent / "encoder"
  assert export.main([f"--workdir={workdir}", f"--output={folder}"]) == 0
  return folder


@pytest.fixture(scope="module")
def model(encoder):
  return load_model(str(encoder))


def test_export_is_the_teacher_of_the_newest_checkpoint(workdir, encoder, model):
  state = read_tree(workdir / "checkpoints" / "2" / "default")
  teacher, student = state["teacher"]["params"]["encoder"], state["params"]["encoder"]
  jax.tree.map(np.testing.assert_array_equal, model.variables["params"], teacher)
  assert not np.array_equal(teacher["cls_token"], student["cls_token"])
  assert model.config["provenance"]["step"] == 2 and model.frontend == FRONTENDS["atst"]
  assert sorted(os.listdir(encoder)) == [
    "README.md",
    "config.json",
    "mel_filters.npy",
    "model.safetensors",
  ]
  assert find_checkpoint(workdir / "checkpoints", 1)[0] == 1


def test_the_channels_are_those_of_the_training_set(tmp_path, caplog, monkeypatch):
  """As they were prepared; the mean, and a line, where the set is another one now or gone."""
  write_clips(tmp_path / "set", make_clips(64, folds=0))
  manifest = json.loads((tmp_path / "set" / "dataset.json").read_text())

  def channels(preparation):
    write_json(str(tmp_path / "set" / "dataset.json"), {**manifest, **preparation})
    return training_set.channels_of_run(data)

  dataset = Dataset.load(str(tmp_path / "set"))
  data = {"source": "records", "path": dataset.root, "split": "train"}
  data["fingerprint"] = dataset.fingerprint("train")
  assert channels({"preparation": {"channels": "loudest"}}) == "loudest"
  run = write_run(tmp_path / "run")
  config = json.loads((run / "config.json").read_text())
  write_json(str(run / "config.json"), {**config, "data": {**config["data"], **data}})
  assert export.main([f"--workdir={run}", f"--output={tmp_path}/encoder"]) == 0
  assert load_model(str(tmp_path / "encoder")).config["channels"] == "loudest"
  monkeypatch.setattr(logging.getLogger("atst_jax"), "propagate", True)
  caplog.clear()
  assert channels({}) == channels({"preparation": {}}) == "mean" and not caplog.text
  data["fingerprint"] = "another"
  assert channels({"preparation": {"channels": "loudest"}}) == "mean"
  assert "/set holds other clips now" in caplog.text
  data["path"] = str(tmp_path / "gone")
  assert channels({}) == "mean" and "gone/dataset.json does not exist" in caplog.text


def test_checkpoints_elsewhere(tmp_path, capsys, one_device):
  """`checkpoint.folder`: the config lies there too, so that no other run enters it, a run without
  it is not begun anew, and the folder alone is enough to export."""
  folder = f"--config.checkpoint.folder={tmp_path}/store"
  flags = tiny_flags(total_steps="1", warmup_steps="1", difference__weight="0", encoder__depth="1")
  assert main.main([*flags, folder, f"--workdir={tmp_path}/a"]) == 0
  assert (
    sorted(os.listdir(tmp_path / "store")) == [".lock", "1", "config.json"]
    and not (tmp_path / "a/checkpoints").exists()
  )
  assert main.main([*flags, folder, f"--workdir={tmp_path}/b", "--config.seed=1"]) == 2
  assert (
    f"{tmp_path}/store belongs to a run with another config:\n  seed: 0 -> 1"
    in capsys.readouterr().err
  )
  assert main.main([*flags, f"--workdir={tmp_path}/a"]) == 2
  assert "checkpoint.folder" in capsys.readouterr().err
  assert (
    main.main([*flags, folder, f"--workdir={tmp_path}/c"]) == 0
    and "steps 1 to 1" in capsys.readouterr().err
  )
  assert export.main([f"--workdir={tmp_path}/store", f"--output={tmp_path}/encoder"]) == 0
  assert load_model(str(tmp_path / "encoder")).config["provenance"]["step"] == 1


def test_fault_40_embedding_is_that_of_the_training_model(workdir, model):
  """One chunk, by hand: front-end, clamp, scale, encoder, [CLS, mean of patches]. Seen red without
  the clamp."""
  variables = restore_encoder(find_checkpoint(workdir / "checkpoints")[1], network="teacher")
  audio = noise(0.3) * np.linspace(0, 1, 4800) ** 6
  mel = log_mel(audio, FRONTENDS["atst"])
  x = 2 * (np.maximum(mel, mel.max() - 80) + 100) / 140 - 1
  encoder = Transformer(width=16, depth=2, heads=2, drop_path=0.0, patch_frames=4, max_frames=64)
  _, out = jax.jit(encoder.apply)({"params": variables["params"]}, x[None, :28])
  tokens = out["blocks"][1, 0]
  expected = np.concatenate([tokens[0], tokens[1:].mean(0)])
  np.testing.assert_allclose(get_scene_embeddings([audio], model, 16000)[0], expected, atol=1e-4)


def test_length_and_company_of_a_clip_do_not_matter(model):
  """A clip alone, among others, and longer audio as the weighted mean of its chunks of 32
  frames."""
  mels = [
    log_mel(noise(s, seed), FRONTENDS["atst"]) for seed, s in enumerate((0.05, 0.31, 0.2, 1.7, 0.1))
  ]
  together = model.embed(mels)
  assert together.shape == (5, 2 * 2 * 16) and together.dtype == np.float32
  for mel, vector in zip(mels, together, strict=True):
    np.testing.assert_allclose(model.embed([mel])[0], vector, atol=1e-5)
  long = mels[3]
  chunks = [long[s : s + 32] for s in range(0, len(long), 32)]
  # nothing is clamped
  assert len(chunks) > 4 and 4 <= len(chunks[-1]) <= 16 and long.min() > long.max() - 80
  parts = np.stack([model.embed([c])[0] for c in chunks])
  for tail, weights in (
    ("weighted", [len(c) for c in chunks]),
    ("keep", None),
    ("drop", [len(c) > 16 for c in chunks]),
  ):
    np.testing.assert_allclose(
      model.embed([long], tail=tail)[0], np.average(parts, 0, weights), atol=1e-4
    )
  assert not np.allclose(
    model.embed([long], tail="keep"), model.embed([long], tail="weighted"), atol=1e-3
  )


def test_central_crop(model):
  mel = log_mel(noise(1.0), FRONTENDS["atst"])
  np.testing.assert_allclose(
    model.embed([mel], max_frames=31), model.embed([mel[35:66]]), atol=1e-5
  )


def test_timestamps(model):
  vectors, times = get_timestamp_embeddings(np.stack([noise(1.0), noise(1.0, 1)]), model, 16000)
  assert vectors.shape == (2, 25, 16) and times.shape == (2, 25)
  np.testing.assert_allclose(times[0, :3], [15, 55, 95])


def test_other_rates_are_resampled(model):
  time = np.arange(32000) / 16000
  tone = 0.3 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
  time = np.arange(88200) / 44100
  same = 0.3 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
  a, b = get_scene_embeddings([tone], model, 16000), get_scene_embeddings([same], model, 44100)
  wrong = get_scene_embeddings([same], model, 16000)
  assert np.abs(a - b).max() < 0.25 * np.abs(a - wrong).max()


@pytest.mark.parametrize(
  "audio, message",
  [
    (np.zeros(100), "100 samples at 16000 Hz; at least 513"),
    (np.zeros((2, 9000)), "expected one axis"),
    (np.full(9000, np.nan), "finite"),
  ],
)
def test_bad_audio_is_refused(model, audio, message):
  with pytest.raises(UserError, match=message):
    get_scene_embeddings([audio], model, 16000)


def test_random_baseline_has_the_same_form(model):
  again, other = model.reinitialized(1), model.reinitialized(2)
  assert jax.tree.structure(again.variables["params"]) == jax.tree.structure(
    dict(model.variables["params"])
  )
  assert not np.array_equal(
    again.variables["params"]["pos_embed"], other.variables["params"]["pos_embed"]
  )


def test_a_damaged_export_is_refused(encoder, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(encoder, copy)
  config = json.loads((copy / "config.json").read_text())
  (copy / "config.json").write_text(json.dumps({**config, "params_hash": "0" * 16}))
  with pytest.raises(UserError, match="do not match params_hash"):
    load_model(str(copy))
  config["frontend"]["hop_length"] = 320
  (copy / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="stored hash"):
    load_model(str(copy))
  with pytest.raises(UserError, match="is not an exported encoder"):
    load_model(str(tmp_path / "nothing"))


def test_mistakes_of_export_are_one_line(workdir, encoder, tmp_path, capsys):
  for flags, message in (
    ([f"--workdir={workdir}", f"--output={encoder}"], "exists; choose another folder"),
    ([f"--workdir={tmp_path}", f"--output={tmp_path}/e"], "is not the workdir of a run"),
    (
      [f"--workdir={workdir}", f"--output={tmp_path}/e", "--step=77"],
      "no checkpoint of step 77; there are [1, 2]",
    ),
  ):
    assert export.main(flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
  assert not os.listdir(tmp_path)


def test_byola_exports_the_student_with_its_running_statistics(tmp_path):
  """Sounds of any length, short ones too; frames every 40 ms."""
  small = {"encoder__width": "1040", "encoder__hidden": "8"}
  write_run(tmp_path / "run", file="byola.py", **small)
  assert export.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'encoder'}"]) == 0
  model = load_model(str(tmp_path / "encoder"))
  state = read_tree(tmp_path / "run" / "checkpoints" / "2" / "default")
  jax.tree.map(np.testing.assert_array_equal, model.variables["params"], state["params"]["encoder"])
  jax.tree.map(
    np.testing.assert_array_equal, model.variables["batch_stats"], state["batch_stats"]["encoder"]
  )
  teacher = state["teacher"]["batch_stats"]["encoder"]["norm_0"]["mean"]
  assert not np.array_equal(model.variables["batch_stats"]["norm_0"]["mean"], teacher)
  sounds = [noise(0.04), noise(3.0, 2)]
  vectors = get_scene_embeddings(sounds, model, 16000)
  assert vectors.shape == (2, 1040)
  # whole, whatever the padding: maximum plus mean over time
  for sound, vector in zip(sounds, vectors, strict=True):
    frames, times = get_timestamp_embeddings([sound], model, 16000)
    np.testing.assert_allclose(frames[0].max(0) + frames[0].mean(0), vector, atol=1e-5)
  np.testing.assert_allclose(np.diff(times[0]), 40)
