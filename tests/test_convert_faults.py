"""Files of weights that are refused, each with its reason."""

import argparse
import copy
import functools
import os
import pickle
import re
import subprocess
import sys

import pytest

from tests.evaluation import write_encoder
from tests.released_files import backbone, convert, dino, lightning, torch, torch_method
from tests.tiny import ROOT


class Payload:
  def __reduce__(self):
    return os.mkdir, ("/tmp/should-never-exist",)


def _without(state, key):
  state = copy.copy(state)
  del state[key]
  return state


@functools.cache
def _broken():
  """{message: content of a file that is refused with it}"""
  atst, framed = dino(backbone()), lightning(backbone())
  byola = torch_method.AudioNTT(2, 1056, 16).state_dict()
  teacher, prefix, zeros = atst["teacher"], "module.backbone.", torch.zeros
  taught = lambda name, value: {**atst, "teacher": {**teacher, name: value}}
  untaught = lambda name: {**atst, "teacher": _without(teacher, prefix + name)}
  weights = lambda name, value: {**framed, "state_dict": {**framed["state_dict"], name: value}}
  return {
    "lacks norm.bias": untaught("norm.bias"),
    "lacks blocks.1.attn.qkv.weight": untaught("blocks.1.attn.qkv.weight"),
    "has keys of another model: extra.weight": taught(f"{prefix}extra.weight", zeros(1)),
    "keys that do not belong to this layout: module.tail.weight": taught(
      "module.tail.weight", zeros(1)
    ),
    "keys that do not belong to this layout: model.other.weight": weights(
      "model.other.weight", zeros(1)
    ),
    "holds a student but no teacher": _without(atst, "teacher"),
    "ATST-Frame is another model": {**atst, "teacher": {f"{prefix}norm_frame.weight": zeros(64)}},
    "lacks fc.3.bias": _without(byola, "fc.3.bias"),
    "not a checkpoint of ATST": {"conv.weight": zeros(2, 2)},
    "holds a Tensor, expected a dict": zeros(3),
    "holds values that are not tensors among its weights: epoch": {**byola, "epoch": 3},
    "holds a Tensor where its weights should be": {**atst, "teacher": zeros(3)},
    "norm/scale has shape .3,., the other tensors ask for .64,.": taught(
      f"{prefix}norm.weight", zeros(3)
    ),
    "fc2/bias has shape .3,.": {**byola, "fc.3.bias": zeros(3)},
    "holds NaN or infinity in norm.bias": taught(
      f"{prefix}norm.bias", torch.full((64,), torch.nan)
    ),
    "its arguments say patch_height=16": {
      **atst,
      "args": argparse.Namespace(patch_height=16, patch_width=16),
    },
    "its arguments' 'atst_jax' are not what this project writes": {
      **framed,
      "hyper_parameters": {"atst_jax": []},
    },
    "its patches hold 512 numbers": weights(
      "model.teacher.encoder.patch_embed.patch_embed.weight", zeros(64, 512)
    ),
    "holds the Python object .*mkdir": {**atst, "callback": Payload()},
  }


@pytest.mark.parametrize("message", list(_broken()))
def test_fault_42_other_files_are_refused_with_their_reason(tmp_path, capsys, message):
  torch.save(_broken()[message], tmp_path / "file.ckpt", pickle_protocol=2)
  flags = ["--mean=0", "--std=1"] if "fc" in message or "epoch" in message else ["--heads=2"]
  assert convert(tmp_path / "file.ckpt", tmp_path / "encoder", *flags) == 2
  error = capsys.readouterr().err
  assert re.search(message, error), error
  assert sorted(os.listdir(tmp_path)) == ["file.ckpt"] and not os.path.exists(
    "/tmp/should-never-exist"
  )


def test_damaged_files_and_wrong_flags_are_refused(tmp_path, capsys):
  torch.save(dino(backbone()), tmp_path / "whole.ckpt")
  data = (tmp_path / "whole.ckpt").read_bytes()
  (tmp_path / "cut.ckpt").write_bytes(data[: len(data) // 2])
  (tmp_path / "text.ckpt").write_text("not weights")
  (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({"a": 1}))
  torch.save(torch_method.AudioNTT(2, 1056, 16).state_dict(), tmp_path / "byola.pth")
  torch.save(dino(backbone(width=96)), tmp_path / "wide.ckpt")
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
    assert convert(tmp_path / source, tmp_path / "encoder", *flags) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|")), (source, error)
    assert not (tmp_path / "encoder").exists()


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
