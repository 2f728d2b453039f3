"""EfficientNet-B0 beside Keras's, ResNet-50 beside PyTorch's operations."""

import functools

import jax
import numpy as np
import pytest

from atst_jax.models.encoders import make_encoder
from tests.test_convnets import B0, tiny_network


def test_resnet_is_pytorchs():
  """The same operations by PyTorch, whose padding is symmetric, on an odd number of frames."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e .[torch]")
  module, variables, apply = tiny_network("resnet50")
  weights, statistics = variables["params"], variables["batch_stats"]
  tensor = lambda x: torch.from_numpy(np.array(x))

  def conv(x, name, stride=1):
    kernel = functools.reduce(lambda node, key: node[key], name.split("/"), weights)["kernel"]
    kernel = tensor(kernel).permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

  def norm(x, name):
    at = lambda tree: functools.reduce(lambda node, key: node[key], name.split("/"), tree)
    mean, var, scale, bias = (
      tensor(at(tree)[key])
      for tree, key in (
        (statistics, "mean"),
        (statistics, "var"),
        (weights, "scale"),
        (weights, "bias"),
      )
    )
    return torch.nn.functional.batch_norm(x, mean, var, scale, bias)

  mel = np.random.default_rng(5).normal(size=(2, 75, 64)).astype(np.float32)
  x = torch.relu(norm(conv(tensor(mel)[:, None], "stem_conv"), "stem_norm"))
  x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
  for i, sizes in enumerate(module.plan()):
    block = f"block_{i:02d}"
    h = torch.relu(norm(conv(x, f"{block}/conv_0"), f"{block}/norm_0"))
    h = torch.relu(norm(conv(h, f"{block}/conv_1", sizes.stride), f"{block}/norm_1"))
    h = norm(conv(h, f"{block}/conv_2"), f"{block}/norm_2")
    if sizes.projected:
      x = norm(conv(x, f"{block}/shortcut", sizes.stride), f"{block}/shortcut_norm")
    x = torch.relu(x + h)
  expected = x.mean((2, 3)) @ tensor(weights["out"]["kernel"]) + tensor(weights["out"]["bias"])
  np.testing.assert_allclose(apply(variables, mel)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [98, 75])
def test_efficientnet_is_keras(frames):
  """B0 with Keras's random weights and other statistics; its number of parameters. COLA builds it
  for clips of unknown length, which Keras pads otherwise than those of a known one."""
  pytest.importorskip("tensorflow", reason="TensorFlow is not installed: .[tfds]")
  keras = pytest.importorskip("keras")
  keras.utils.set_random_seed(0)
  shape = (None, 64, 1)
  net = keras.applications.EfficientNetB0(False, None, input_shape=shape, pooling="max")
  assert net.count_params() == 4_048_991
  rng = np.random.default_rng(0)
  params, statistics = {}, {}

  def norm(path, layer):
    gamma, beta, mean, var = layer.get_weights()
    gamma, beta = (x + rng.normal(0, 0.1, x.shape).astype(np.float32) for x in (gamma, beta))
    mean = mean + rng.normal(0, 0.1, mean.shape).astype(np.float32)
    var = var * rng.uniform(0.3, 1, var.shape).astype(np.float32)
    layer.set_weights([gamma, beta, mean, var])
    assert (layer.momentum, layer.epsilon) == (0.99, 1e-3)
    return {"scale": gamma, "bias": beta}, {"mean": mean, "var": var}

  names = {
    **{"expand_conv": "expand", "expand_bn": "expand_norm", "dwconv": "depthwise"},
    **{"bn": "depthwise_norm", "se_reduce": "squeeze", "se_expand": "excite"},
    **{"project_conv": "project", "project_bn": "project_norm"},
  }
  blocks, drops = [], {}
  for layer in net.layers:
    block, _, part = layer.name.partition("_")
    if not block.startswith("block") or part not in names:
      if layer.name.endswith("_drop"):
        drops[block] = layer.rate
      if layer.name in ("stem_conv", "top_conv"):
        params[layer.name] = {"kernel": layer.get_weights()[0]}
      elif layer.name in ("stem_bn", "top_bn"):
        name = layer.name.replace("_bn", "_norm")
        params[name], statistics[name] = norm(name, layer)
      continue
    blocks += [] if block in blocks else [block]
    ours, name = f"block_{blocks.index(block):02d}", names[part]
    node = params.setdefault(ours, {})
    if name.endswith("norm"):
      node[name], statistics.setdefault(ours, {})[name] = norm(name, layer)
    elif name == "depthwise":
      node[name] = {"kernel": layer.get_weights()[0].transpose(0, 1, 3, 2)}
    else:
      node[name] = dict(zip(("kernel", "bias"), layer.get_weights(), strict=False))
  module = make_encoder(B0)
  assert len(blocks) == len(list(module.plan()))
  for block, rate in drops.items():
    assert abs(rate - 0.2 * blocks.index(block) / len(blocks)) < 1e-9
  mel = (8 * rng.normal(size=(2, frames, 64)) - 5).astype(np.float32)
  y, _ = jax.jit(module.apply)({"params": params, "batch_stats": statistics}, mel)
  expected = net.predict(mel[..., None], verbose=0)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
