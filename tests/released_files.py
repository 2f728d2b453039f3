"""Files of weights as the released PyTorch codes write them. Needs PyTorch."""

import argparse

import pytest

from atst_jax.convert import main

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e .[torch]")
torch_method = pytest.importorskip("tests.torch_method")


def convert(source, target, *flags):
  return main([f"--from={source}", f"--to={target}", *flags])


def backbone(width=64, depth=2, seed=0):
  torch.manual_seed(seed)
  net = torch_method.Transformer(width, depth, width // 32, positions=250)
  torch.nn.init.normal_(net.cls_token), torch.nn.init.normal_(net.pos_embed, std=0.02)
  return net


def dino(net):
  state = {f"module.backbone.{k}": x for k, x in net.state_dict().items()}
  return {
    "student": state,
    "teacher": state | {"module.head.0.weight": torch.zeros(3)},
    "epoch": 7,
    "args": argparse.Namespace(
      arch="ast_tiny", anchor_len=6.0, patch_height=64, patch_width=4, pos_type="cut", use_cls=True
    ),
  }


def lightning(net):
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
