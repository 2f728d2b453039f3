"""Hostile PyTorch files: damaged bytes, and sound files that hold what no checkpoint of the methods
does."""

import argparse
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atst_jax.artifacts import convert, export
from atst_jax.util.errors import UserError
from tests.hostile import bounded, damaged_trees, edits, fuzz, mutate
from tests.tiny_clips import FRONTEND

torch = pytest.importorskip("torch")
torch_method = pytest.importorskip("tests.torch_method")


def _checkpoints():
  torch.manual_seed(0)
  net = torch_method.Transformer(64, 1, 2, positions=250)
  state = {f"module.backbone.{k}": x for k, x in net.state_dict().items()}
  arguments = {
    "patch_height": 64,
    "patch_width": 4,
    "pos_type": "cut",
    "use_cls": True,
    "anchor_len": 6.0,
  }
  normalization = {"kind": "min_max", "top_db": 80.0, "low": -80.0, "high": 50.0}
  ours = {
    "frontend": FRONTEND.to_json(),
    "normalization": normalization,
    "chunk_frames": 601,
    "tail": "weighted",
    "heads": 2,
    "patch_frames": 4,
  }
  lightning = {f"model.teacher.encoder.{k}": x for k, x in net.state_dict().items()}
  return {
    "dino": {"teacher": state, "args": arguments, "epoch": 3},
    "namespace": {"teacher": state, "args": argparse.Namespace(**arguments)},
    "lightning": {
      "pytorch-lightning_version": "1.5.10",
      "state_dict": lightning,
      "hyper_parameters": {"train_len": 6.0, convert.OURS: ours},
    },
    "byola": dict(torch_method.AudioNTT(2, 1056, 16).state_dict()),
  }


CHECKPOINTS = _checkpoints()
TENSORS = [
  torch.zeros(3),
  torch.zeros(0),
  torch.zeros(()),
  torch.full((64,), torch.nan),
  torch.zeros(1).expand(2**40),
  torch.zeros(1, 1, 64),
  torch.ones(64, dtype=torch.int64),
  torch.ones(64, dtype=torch.complex64),
  torch.ones(64, dtype=torch.bool),
  torch.ones(2, 2).to_sparse(),
  torch.empty(2**30, device="meta"),
  torch.nn.Parameter(torch.ones(64, 256)),
]
NASTY = [
  *TENSORS,
  *TENSORS,
  None,
  True,
  -1,
  0,
  2**40,
  2**70,
  float("nan"),
  "",
  "x",
  [],
  {},
  [1],
  {"a": 1},
  (1, 2),
  0.5,
  b"x",
]


@fuzz(50)
@given(st.data())
def test_torch_files(tmp_path_factory, data):
  base = tmp_path_factory.getbasetemp() / "torch"
  base.mkdir(exist_ok=True)
  path, written = base / "file.ckpt", []
  content = CHECKPOINTS[data.draw(st.sampled_from(sorted(CHECKPOINTS)))]
  legacy = data.draw(st.integers(0, 4)) == 0
  if structural := data.draw(st.booleans()):
    content = data.draw(damaged_trees(content, NASTY))
  torch.save(content, path, _use_new_zipfile_serialization=not legacy)
  if not structural:
    path.write_bytes(mutate(path.read_bytes(), data.draw(edits)))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(export, "write", lambda folder, **parts: written.append(parts))
    with bounded("torch files", UserError):
      convert.from_torch(
        str(path),
        str(base / "encoder"),
        heads=data.draw(st.sampled_from([None, 2])),
        mean=None,
        std=None,
      )
    with bounded("torch files", UserError):
      convert.from_torch(str(path), str(base / "encoder"), mean=0.0, std=1.0)
  assert sorted(os.listdir(base)) == ["file.ckpt"]
  for parts in written:
    json.dumps({key: parts[key] for key in ("encoder", "normalization", "chunk_frames", "tail")})
