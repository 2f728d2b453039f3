"""ONNX graphs with weights of 8 bits: near the encoder's vectors, and how near is said."""

import sys

import jax
import numpy as np
import pytest

from atst_jax import export
from atst_jax.artifacts.model import load_model
from atst_jax.artifacts.programs import int8_graph
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log
from tests.evaluation import write_encoder


def test_vectors_are_near_and_the_loss_is_said(tmp_path, monkeypatch):
  onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[onnx]")
  pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: .[onnx]")
  said = []
  monkeypatch.setattr(log, "info", lambda text, *values: said.append(text % values))
  encoder = write_encoder(tmp_path / "encoder")
  flags = [f"--encoder={encoder}", f"--output={tmp_path / 'small'}", "--artifacts=onnx_int8"]
  assert export.main(flags) == 0
  assert any("encoder_int8.onnx: vectors differ by" in line for line in said)
  path = str(tmp_path / "small" / int8_graph.NAME)
  kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
  assert onnx.TensorProto.INT8 in kinds
  model = load_model(str(tmp_path / "small"))
  mel = np.random.default_rng(0).normal(-40, 20, (1, 32, 64)).astype(np.float32)
  mel[0, 20:] = 0  # padding
  length, peak = np.array([20], np.int32), mel.max((1, 2))
  found = int8_graph.onnx_graph.load(path)(mel=mel, length=length, peak=peak)["scene"]
  expected = np.asarray(jax.jit(model.outputs)(model.variables, mel, length, peak)["scene"])
  lost = np.linalg.norm(found - expected) / np.linalg.norm(expected)
  assert 1e-5 < lost < 0.1


def test_vectors_that_lie_too_far_are_refused(tmp_path, monkeypatch):
  pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: .[onnx]")
  monkeypatch.setattr(int8_graph, "LOST", 1e-9)
  with pytest.raises(RuntimeError, match="of their norm from the model's"):
    int8_graph.add(str(tmp_path), load_model(write_encoder(tmp_path / "encoder")))


def test_without_onnxruntime_it_is_one_sentence(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
  with pytest.raises(UserError, match="onnx needs pip install"):
    int8_graph.build(load_model(write_encoder(tmp_path / "encoder")))
