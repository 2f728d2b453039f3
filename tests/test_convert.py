"""Released PyTorch files: read whole or refused with a reason, run like the original, written back
unchanged."""

import argparse
import copy
import functools
import os
import pickle
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from evaluation import write_encoder
from tiny import ROOT

from atst_jax.artifacts import folder
from atst_jax.artifacts.model import load_model
from atst_jax.artifacts.torch_files import to_variables
from atst_jax.audio.frontend import FRONTENDS, log_mel
from atst_jax.convert import main

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e .[torch]")
torch_method = pytest.importorskip("torch_method")

NORMALIZATION = {"kind": "min_max", "top_db": 80.0, "low": -79.6482, "high": 50.6842}


def _convert(source, target, *flags):
  return main([f"--from={source}", f"--to={target}", *flags])


def _backbone(width=64, depth=2, seed=0):
  torch.manual_seed(seed)
  net = torch_method.Transformer(width, depth, width // 32, positions=250)
  torch.nn.init.normal_(net.cls_token), torch.nn.init.normal_(net.pos_embed, std=0.02)
  return net


def _dino(net):
  state = {f"module.backbone.{k}": x for k, x in net.state_dict().items()}
  return {
    "student": state,
    "teacher": state | {"module.head.0.weight": torch.zeros(3)},
    "epoch": 7,
    "args": argparse.Namespace(
      arch="ast_tiny", anchor_len=6.0, patch_height=64, patch_width=4, pos_type="cut", use_cls=True
    ),
  }


def _lightning(net):
  state = {f"model.teacher.encoder.{k}": x for k, x in net.state_dict().items()}
  other = {
    "model.student.projector.0.weight": torch.zeros(3),
    "model.teacher.projector.3.weight": torch.zeros(3),
  }
  return {
    "pytorch-lightning_version": "1.5.10",
    "state_dict": state | other,
    "hyper_parameters": {"train_len": (1.0, 2.0)},  # the first counts, as in the original
  }


@pytest.mark.parametrize("layout, chunk", [(_dino, 601), (_lightning, 101)])
def test_converted_atst_runs_like_the_original(tmp_path, layout, chunk):
  """From the waveform: front-end, clamp, scale, every block's CLS and mean. Seen red with the head
  width halved."""
  net = _backbone()
  torch.save(layout(net), tmp_path / "released.ckpt")
  assert _convert(tmp_path / "released.ckpt", tmp_path / "encoder", "--heads=2") == 0
  model = load_model(str(tmp_path / "encoder"))
  assert model.frontend == FRONTENDS["audiossl"] and model.chunk_frames == chunk
  assert model.config["normalization"] == NORMALIZATION and model.config["tail"] == "released"
  assert model.max_seconds == 12.0
  audio = np.random.default_rng(0).normal(0, 0.1, 15_200).astype(np.float32)  # 96 frames
  mel = log_mel(audio, FRONTENDS["audiossl"])
  x = 2 * (np.maximum(mel, mel.max() - 80) + 79.6482) / (50.6842 + 79.6482) - 1
  with torch.no_grad():
    tokens = net.tokens(torch.from_numpy(x[None]).float()).numpy()[:, 0]
  expected = np.concatenate([tokens[:, 0].ravel(), tokens[:, 1:].mean(1).ravel()])
  ours = model.embed([model.log_mel(audio, 16000)])[0]
  assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("blocks, width", [(2, 1056), (3, 48)])
def test_converted_byola_runs_like_the_original(tmp_path, capsys, blocks, width):
  """Both versions, and a clip longer than a chunk of the embedder's padding; written back, every
  tensor is the same bit for bit."""
  torch.manual_seed(0)
  net = torch_method.AudioNTT(blocks, width, 48)
  for _ in range(3):  # running statistics of some data
    net(torch.randn(4, 96, 64) + 1)
  torch.save(net.state_dict(), tmp_path / "byola.pth")
  flags = [tmp_path / "byola.pth", tmp_path / "encoder", "--mean=-9.66", "--std=4.722"]
  if blocks == 3:  # v1's files were made with two front-ends
    assert _convert(*flags) == 2 and "state --frontend=byola (librosa" in capsys.readouterr().err
    flags.append("--frontend=byola")
  assert _convert(*flags) == 0
  model = load_model(str(tmp_path / "encoder"))
  assert model.frontend == FRONTENDS["byola"] and model.max_seconds is None
  audio = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
  power = 10 ** (log_mel(audio, FRONTENDS["byola"]).astype(np.float64) / 10)
  x = (np.log(power + 2.0**-23) + 9.66) / 4.722
  with torch.no_grad():
    expected = net.eval()(torch.from_numpy(x[None]).float()).numpy()[0]
  ours = model.embed([model.log_mel(audio, 16000)])[0]
  assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected)
  assert _convert(tmp_path / "encoder", tmp_path / "back.pth") == 0
  back = torch_method.AudioNTT(blocks, width, 48)
  back.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True))
  for (name, a), (_, b) in zip(net.state_dict().items(), back.state_dict().items(), strict=True):
    assert name.endswith("tracked") or torch.equal(a, b), name


@pytest.mark.parametrize("layout", ["dino", "lightning"])
def test_round_trip_of_atst(tmp_path, layout):
  """There and back: every tensor bit for bit, and the file converts to the same export again."""
  net = _backbone()
  torch.save(_dino(net), tmp_path / "released.ckpt")
  assert _convert(tmp_path / "released.ckpt", tmp_path / "encoder", "--heads=2") == 0
  assert _convert(tmp_path / "encoder", tmp_path / "back.pth", f"--layout={layout}") == 0
  # heads and the rest are in the file
  assert _convert(tmp_path / "back.pth", tmp_path / "again") == 0
  first, again = (folder.read(str(tmp_path / name)) for name in ("encoder", "again"))
  jax.tree.map(np.testing.assert_array_equal, first[1], again[1])
  assert {k: v for k, v in first[0].items() if k != "provenance"} == {
    k: v for k, v in again[0].items() if k != "provenance"
  }
  content = torch.load(tmp_path / "back.pth", weights_only=False)
  state, prefix = (
    (content["teacher"], "module.backbone.")
    if layout == "dino"
    else (content["state_dict"], "model.teacher.encoder.")
  )
  loaded = _backbone(seed=1)
  state = {k.removeprefix(prefix): x for k, x in state.items()}
  assert state.pop("mask_embed").shape == (1, 1, 64)
  loaded.load_state_dict(state)  # strict
  for a, b in zip(net.parameters(), loaded.parameters(), strict=True):
    assert torch.equal(a, b)


def test_what_the_released_layouts_have_no_place_for_comes_back_too(tmp_path, capsys):
  """Front-end, normalisation and chunks of this project's own; and the notes that released loaders
  differ."""
  encoder = write_encoder(tmp_path / "encoder")
  assert _convert(encoder, tmp_path / "mine.pth") == 0
  notes = capsys.readouterr().err
  assert "compute the front-end 'audiossl'" in notes and "normalise by" in notes
  assert _convert(tmp_path / "mine.pth", tmp_path / "again") == 0
  first, again = (folder.read(str(path))[0] for path in (encoder, tmp_path / "again"))
  for key in ("frontend", "normalization", "chunk_frames", "tail", "max_seconds", "params_hash"):
    assert first[key] == again[key]
  assert {**first["encoder"], "drop_path": 0.1, "max_frames": 33} == again["encoder"]


def test_weights_of_other_precision_and_kind(tmp_path):
  """bfloat16, and parameters instead of plain tensors."""
  net = torch_method.AudioNTT(2, 1056, 16)
  half = {k: x.bfloat16() if x.is_floating_point() else x for k, x in net.state_dict().items()}
  torch.save(half, tmp_path / "half.pth")
  torch.save(
    {**net.state_dict(), "fc.0.bias": torch.nn.Parameter(half["fc.0.bias"].float())},
    tmp_path / "kind.pth",
  )
  for name in ("half", "kind"):
    assert _convert(tmp_path / f"{name}.pth", tmp_path / name, "--mean=0", "--std=1") == 0
  variables = folder.read(str(tmp_path / "half"))[1]
  np.testing.assert_array_equal(
    variables["params"]["fc1"]["bias"], half["fc.0.bias"].float().numpy()
  )


class Payload:
  def __reduce__(self):
    return os.mkdir, ("/tmp/should-never-exist",)


def _without(state, key):
  state = copy.copy(state)
  del state[key]
  return state


@functools.cache
def _broken():
  dino, byola = _dino(_backbone()), torch_method.AudioNTT(2, 1056, 16).state_dict()
  lightning = _lightning(_backbone())
  teacher = dino["teacher"]
  prefix, wide = "module.backbone.", "model.teacher.encoder.patch_embed.patch_embed.weight"
  return {
    "lacks norm.bias": {**dino, "teacher": _without(teacher, f"{prefix}norm.bias")},
    "lacks blocks.1.attn.qkv.weight": {
      **dino,
      "teacher": _without(teacher, f"{prefix}blocks.1.attn.qkv.weight"),
    },
    "has keys of another model: extra.weight": {
      **dino,
      "teacher": {**teacher, f"{prefix}extra.weight": torch.zeros(1)},
    },
    "keys that do not belong to this layout: module.tail.weight": {
      **dino,
      "teacher": {**teacher, "module.tail.weight": torch.zeros(1)},
    },
    "keys that do not belong to this layout: model.other.weight": {
      **lightning,
      "state_dict": {**lightning["state_dict"], "model.other.weight": torch.zeros(1)},
    },
    "holds a student but no teacher": _without(dino, "teacher"),
    "ATST-Frame is another model": {
      **dino,
      "teacher": {f"{prefix}norm_frame.weight": torch.zeros(64)},
    },
    "lacks fc.3.bias": _without(byola, "fc.3.bias"),
    "not a checkpoint of ATST": {"conv.weight": torch.zeros(2, 2)},
    "holds a Tensor, expected a dict": torch.zeros(3),
    "holds values that are not tensors among its weights: epoch": {**byola, "epoch": 3},
    "holds a Tensor where its weights should be": {**dino, "teacher": torch.zeros(3)},
    "norm/scale has shape .3,., the other tensors ask for .64,.": {
      **dino,
      "teacher": {**teacher, f"{prefix}norm.weight": torch.zeros(3)},
    },
    "fc2/bias has shape .3,.": {**byola, "fc.3.bias": torch.zeros(3)},
    "holds NaN or infinity in norm.bias": {
      **dino,
      "teacher": {**teacher, f"{prefix}norm.bias": torch.full((64,), torch.nan)},
    },
    "its arguments say patch_height=16": {
      **dino,
      "args": argparse.Namespace(patch_height=16, patch_width=16),
    },
    "its arguments' 'atst_jax' are not what this project writes": {
      **lightning,
      "hyper_parameters": {"atst_jax": []},
    },
    "its patches hold 512 numbers": {
      **lightning,
      "state_dict": {**lightning["state_dict"], wide: torch.zeros(64, 512)},
    },
    "holds the Python object .*mkdir": {**dino, "callback": Payload()},
  }


@pytest.mark.parametrize("message", list(_broken()))
def test_fault_42_other_files_are_refused_with_their_reason(tmp_path, capsys, message):
  torch.save(_broken()[message], tmp_path / "file.ckpt", pickle_protocol=2)
  flags = ["--mean=0", "--std=1"] if "fc" in message or "epoch" in message else ["--heads=2"]
  assert _convert(tmp_path / "file.ckpt", tmp_path / "encoder", *flags) == 2
  error = capsys.readouterr().err
  assert re.search(message, error), error
  assert sorted(os.listdir(tmp_path)) == ["file.ckpt"] and not os.path.exists(
    "/tmp/should-never-exist"
  )


def test_damaged_files_and_wrong_flags_are_refused(tmp_path, capsys):
  torch.save(_dino(_backbone()), tmp_path / "whole.ckpt")
  data = (tmp_path / "whole.ckpt").read_bytes()
  (tmp_path / "cut.ckpt").write_bytes(data[: len(data) // 2])
  (tmp_path / "text.ckpt").write_text("not weights")
  (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({"a": 1}))
  torch.save(torch_method.AudioNTT(2, 1056, 16).state_dict(), tmp_path / "byola.pth")
  torch.save(_dino(_backbone(width=96)), tmp_path / "wide.ckpt")
  for source, flags, message in (
    ("cut.ckpt", (), "truncated, or no PyTorch file"),
    ("text.ckpt", (), "no PyTorch file"),
    ("plain.ckpt", (), "no PyTorch file|not a checkpoint"),
    ("absent.ckpt", (), "no such file"),
    ("byola.pth", (), "state --mean and --std"),
    ("byola.pth", ("--mean=0", "--std=0"), "state --mean and --std"),
    ("wide.ckpt", (), "96 wide and 2 blocks deep, no released size, and nothing in the file says"),
    ("whole.ckpt", (), "how many heads it has: state --heads, one of 1, 2, 4, 8"),
    ("whole.ckpt", ("--frontend=byola",), "--frontend do not belong to a file of atst"),
    ("byola.pth", ("--mean=0", "--std=1", "--frontend=atst"), "takes byola or byola_htk"),
    ("byola.pth", ("--mean=-5.49", "--std=5.04"), "are what v1's README gives for HTK filters"),
    ("wide.ckpt", ("--heads=5",), "--heads=5: must divide"),
    ("whole.ckpt", ("--heads=2", "--chunk_seconds=0"), "chunks of 1 frames do not fit"),
    ("whole.ckpt", ("--heads=0",), "--heads=0: must divide"),
    ("whole.ckpt", ("--mean=0",), "--mean do not belong to a file of atst"),
    ("byola.pth", ("--mean=nan", "--std=1"), "state --mean and --std"),
    ("byola.pth", ("--mean=0", "--std=1", "--heads=3"), "--heads do not belong to a file of byola"),
    ("whole.ckpt", ("--heads=2", "--chunk_seconds=11"), "chunks of 1101 frames do not fit the enc"),
  ):
    assert _convert(tmp_path / source, tmp_path / "encoder", *flags) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|")), (source, error)
    assert not (tmp_path / "encoder").exists()


def test_golden_checkpoints(shared, golden, tmp_path):
  """The released layouts hold the golden weights; a waveform's vector is that of the original
  encoder on its golden spectrogram, within 1e-4."""
  files = {
    "atst_lightning.ckpt": ["--heads=3"],
    "atst_dino.ckpt": ["--heads=3"],
    "byola_v2.pth": ["--mean=0", "--std=1"],
  }
  for name, flags in files.items():
    assert _convert(shared / "golden" / name, tmp_path / name, *flags) == 0
  weights = {
    k.removeprefix("before.teacher.encoder."): v
    for k, v in golden("atst_step").items()
    if k.startswith("before.teacher.encoder.")
  }
  for name in ("atst_lightning.ckpt", "atst_dino.ckpt"):
    model = load_model(str(tmp_path / name))
    expected = to_variables(weights, model.encoder.torch_names())
    jax.tree.map(np.testing.assert_array_equal, model.variables, expected)
  after = {
    k.removeprefix("after."): v
    for k, v in golden("byola_encoder").items()
    if k.startswith("after.")
  }
  model = load_model(str(tmp_path / "byola_v2.pth"))
  expected = to_variables(after, model.encoder.torch_names())
  jax.tree.map(np.testing.assert_array_equal, model.variables, expected)
  model, arrays = load_model(str(tmp_path / "atst_dino.ckpt")), golden("frontend")
  net = torch_method.Transformer(48, 3, 3, positions=250)
  del weights["mask_embed"]
  net.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
  for clip in range(3):
    norm = arrays[f"released_norm_{clip}"][:601]
    with torch.no_grad():
      tokens = net.tokens(torch.from_numpy(norm[None])).numpy()[:, 0]
    expected = np.concatenate([tokens[:, 0].ravel(), tokens[:, 1:].mean(1).ravel()])
    wave = arrays[f"wave_{clip}"]
    ours = model.embed([model.log_mel(wave, 16000)[:601]])[0]
    assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected), clip


def test_without_pytorch_one_sentence_says_what_to_install(tmp_path):
  script = (
    "import sys; sys.modules['torch'] = None; "
    "from atst_jax.convert import main; sys.exit(main(sys.argv[1:]))"
  )
  for source, target in (("a.pth", "x"), (write_encoder(tmp_path / "encoder"), "x.pth")):
    run = subprocess.run(
      [sys.executable, "-c", script, f"--from={source}", f"--to={tmp_path}/{target}"],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert (
      run.returncode == 2
      and "pip install -e .[torch]" in run.stderr
      and "Traceback" not in run.stderr
    )
