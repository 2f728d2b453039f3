"""What an export may hold beside its weights: a program, an ONNX graph and a model card, each
checked against it."""

import datetime
import functools
import json
import os

import jax
import numpy as np
import pytest

from atst_jax import export as export_command
from atst_jax.artifacts import export, folder, model_card
from atst_jax.artifacts.convert import to_torch
from atst_jax.artifacts.embedding import get_scene_embeddings
from atst_jax.artifacts.programs import jax_program, onnx_graph
from atst_jax.audio.frontend import FRONTENDS, log_mel
from atst_jax.embed import load_model
from atst_jax.models.audiontt import AudioNTT
from atst_jax.models.encoders import ENCODERS
from atst_jax.models.layers import Encoder
from atst_jax.models.transformer import Transformer
from atst_jax.util.config import flatten
from atst_jax.util.errors import UserError
from tests.evaluation import noise, write_encoder
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
  folder = tmp_path_factory.mktemp("artifacts")
  return {kind: write_encoder(folder / kind, kind=kind) for kind in ("transformer", "cnn")}


def _batch(sounds, frames):
  """(mel, length, peak) of sounds, padded with what must not matter."""
  mels = [log_mel(sound, FRONTENDS["atst"]) for sound in sounds]
  batch = np.full((len(mels), frames, 64), 7, np.float32)
  for row, mel in zip(batch, mels, strict=True):
    row[: len(mel)] = mel
  return (
    batch,
    np.array([len(m) for m in mels], np.int32),
    np.array([m.max() for m in mels], np.float32),
  )


def _check(model, encode):
  """Scene vectors and frames of a batch that is no power of two, with shorter clips than its
  frames; another batch and two lengths were compared when the export was written."""
  fade_in = lambda sound: sound * np.linspace(0, 1, len(sound), dtype=np.float32) ** 6
  sounds = [noise(0.14), noise(0.2, 1), noise(0.05, 2)]
  mel, length, peak = _batch(list(map(fade_in, sounds)), 21)
  out = {key: np.asarray(x) for key, x in encode(mel, length, peak).items()}
  clips = [row[:n] for row, n in zip(mel, length, strict=True)]
  np.testing.assert_allclose(out["scene"], model.embed(clips, num_blocks=1), rtol=1e-4, atol=1e-4)
  for clip, frames in zip(clips, out["frames"], strict=True):
    expected = model.embed_frames(clip)
    np.testing.assert_allclose(frames[: len(expected)], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["transformer", "cnn"])
def test_program(encoders, tmp_path, kind):
  """One file for three platforms, any batch, any length; read by the function, and as the docstring
  says."""
  folder = tmp_path / "export"
  assert (
    export_command.main(
      [f"--encoder={encoders[kind]}", f"--output={folder}", "--artifacts=safetensors,jax"]
    )
    == 0
  )
  assert sorted(os.listdir(folder)) == [
    "config.json",
    "encoder.jax",
    "mel_filters.npy",
    "model.safetensors",
  ]
  model = load_model(str(folder))
  with open(folder / "encoder.jax", "rb") as file:
    exported = jax.export.deserialize(bytearray(file.read()))
  assert exported.platforms == ("cpu", "cuda", "tpu")
  written = model.config["programs"]["jax"]
  assert written["jax"] == jax.__version__ and written["date"] <= datetime.date.today().isoformat()
  if kind == "cnn":
    _check(model, exported.call)
  else:
    _check(model, jax_program.load(str(folder / "encoder.jax")))
    # positions beyond the chunk were never trained
    with pytest.raises(ValueError, match="refining shapes"):
      exported.call(
        np.zeros((1, 33, 64), np.float32), np.zeros(1, np.int32), np.zeros(1, np.float32)
      )


class Plain(AudioNTT):
  """An encoder that brings neither ONNX nodes nor names in PyTorch files."""

  onnx, torch_names = Encoder.onnx, Encoder.torch_names


def test_an_encoder_without_nodes_or_names_is_refused(encoders, tmp_path, monkeypatch):
  monkeypatch.setitem(ENCODERS, "cnn", Plain)
  with pytest.raises(UserError, match=r"encoder\.kind=cnn has no layout of PyTorch files"):
    to_torch(encoders["cnn"], str(tmp_path / "a.pth"), "dino")
  pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[onnx]")
  with pytest.raises(UserError, match=r"encoder\.kind=cnn has no ONNX nodes; leave out onnx"):
    onnx_graph.build(load_model(encoders["cnn"]))


def test_files_that_are_no_programs(tmp_path):
  (tmp_path / "encoder.jax").write_bytes(b"x" * 100)
  told = "not a program that this version of JAX .*JAX_EXPORT_DESERIALIZE_EXPIRED_VERSIONS=1 loads"
  with pytest.raises(UserError, match=told):
    jax_program.load(str(tmp_path / "encoder.jax"))
  with pytest.raises(UserError, match="does not exist"):
    jax_program.load(str(tmp_path / "none.jax"))


@pytest.mark.parametrize("kind", ["transformer", "cnn"])
def test_onnx(encoders, tmp_path, kind):
  pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[onnx]")
  pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[onnx]")
  export.export_again(encoders[kind], str(tmp_path / "export"), artifacts=["safetensors", "onnx"])
  _check(load_model(encoders[kind]), onnx_graph.load(str(tmp_path / "export" / "encoder.onnx")))


def test_an_artifact_that_differs_is_not_written(encoders, tmp_path, monkeypatch):
  other = load_model(encoders["transformer"]).reinitialized(5)
  monkeypatch.setattr(jax_program, "build", lambda model: b"")
  wrong = functools.partial(jax.jit(other.outputs), other.variables)
  monkeypatch.setattr(jax_program, "load", lambda path: wrong)
  with pytest.raises(RuntimeError, match=r"(frames|scene) differs"):
    export.export_again(
      encoders["transformer"], str(tmp_path / "export"), artifacts=["safetensors", "jax"]
    )
  assert not os.listdir(tmp_path)


def _results(params_hash):
  row = {"name": "pre-trained, last block", "dimensions": 16, "mean": 0.734, "std": 0.005}
  return {
    "job": "linear",
    "encoder": {"params_hash": params_hash},
    "chance": 0.1,
    "data": {"name": "esc10", "divisions": [1] * 5},
    "config": {"seeds": 3, "select_on_test": False},
    "metric": "accuracy",
    "rows": [row],
  }


def test_model_card(encoders, tmp_path, capsys):
  """What was stated and measured, and the size of what is there; nothing that nobody knows."""
  with open(os.path.join(encoders["transformer"], model_card.NAME), encoding="utf-8") as file:
    plain = file.read()
  assert (
    plain.startswith("---\nlicense: unknown\n")
    and "None were given" in plain
    and "Not known" in plain
  )
  model = load_model(encoders["transformer"])
  path = tmp_path / "results.json"
  path.write_text(json.dumps(_results(model.config["params_hash"])))
  flags = [
    f"--encoder={encoders['transformer']}",
    f"--output={tmp_path}/my_model",
    "--license=cc-by-4.0",
  ]
  assert model_card.read_results(str(tmp_path), model.config["params_hash"])["job"] == "linear"
  assert export_command.main([*flags, f"--results={path}", "--artifacts=params,card"]) == 0
  text = (tmp_path / "my_model" / "README.md").read_text(encoding="utf-8")
  encoder = Transformer(width=8, depth=2, heads=2, drop_path=0.0, patch_frames=4, max_frames=32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 32, 64)))
  count = sum(x.size for x in jax.tree.leaves(shapes))
  for words in (
    "license: cc-by-4.0",
    "# my_model",
    f"{count:,} parameters",
    "one vector of 16 numbers",
    "of 8 for every 0.04 s",
    model.frontend.hash,
    "| esc10 | pre-trained, last block | 16 | accuracy 73.4 ± 0.5 | 3 seeds, 5 folds |",
    "Longer than 0.32 s",
    "`params/`: the weights as an Orbax checkpoint",
  ):
    assert words in text, words
  assert "model.safetensors" not in text
  scene = get_scene_embeddings([noise(1)], model, 16000)
  np.testing.assert_array_equal(
    get_scene_embeddings([noise(1)], load_model(f"{tmp_path}/my_model"), 16000), scene
  )
  path.write_text(json.dumps(_results("0" * 16)))
  (tmp_path / "other.json").write_text("{}")
  (tmp_path / "bgknown.json").write_text(json.dumps(_results("0" * 16) | {"job": "difference"}))
  for change, message in (
    ([f"--results={path}"], "measured the encoder 0000000000000000, this one is"),
    ([f"--results={tmp_path}/other.json"], "not the results.json"),
    ([f"--results={tmp_path}/bgknown.json"], "of the job difference; the card"),
    (["--step=3"], "--step does not go with --encoder"),
    (["--artifacts=card"], "at least one of safetensors and params"),
    (["--artifacts=card,params,tf"], "choose from"),
    (["--artifacts=safetensors"], "add card"),
  ):
    assert export_command.main([*flags, f"--output={tmp_path}/none", *change]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
  assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
  "kind, most", [("transformer", "at most 32 frames"), ("cnn", "any length")]
)
def test_the_card_tells_what_the_program_takes(encoders, kind, most):
  model = load_model(encoders[kind])
  options = {"license": "mit", "results": [], "artifacts": ["jax"]}
  text = model_card.card("x", model.config, model.variables, **options)
  assert f"a `jax.export` program with the weights, any batch, {most}, for cpu" in text


def test_the_card_tells_data_and_recipe(encoders):
  model = load_model(encoders["cnn"])
  run = {
    "data": {
      "source": "records",
      "split": "train",
      "path": "/secret/place/fsd50k",
      "fingerprint": "abc",
    },
    "optimizer": {"base_lr": 1e-4},
    "difference": {"weight": 0.2},
    "batch_size": 256,
  }
  config = {
    **model.config,
    "provenance": {"config": run, "step": 7, "network": "student", "atst_jax": "0.1"},
  }
  text = model_card.card("x", config, model.variables, license="mit", results=[], artifacts=["jax"])
  for words in (
    "split `train` of `fsd50k` (fingerprint `abc`)",
    "The student's encoder after 7 updates",
    "| difference.weight | `0.2` |",
    "| batch_size | `256` |",
    "`encoder.jax`",
  ):
    assert words in text, words
  assert "/secret" not in text
  known = flatten(tiny_config())
  assert set(model_card.RECIPE) <= set(known), set(model_card.RECIPE) - set(known)
  noise = {
    **config["provenance"],
    "config": {**run, "data": {**run["data"], "source": "synthetic"}},
  }
  assert "noise, to try the code" in model_card.card(
    "x", {**config, "provenance": noise}, model.variables, license="mit", results=[], artifacts=[]
  )


def test_the_export_is_read_without_a_model(encoders):
  """Fine-tuning starts from the same variables that `load_model` embeds with."""
  config, variables, _ = folder.read(encoders["transformer"])
  model = load_model(encoders["transformer"])
  assert config["params_hash"] == model.config["params_hash"] == folder.params_hash(variables)
