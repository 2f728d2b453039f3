"""EfficientNet-B0 and ResNet-50: sizes, padding, operations, and values beside other libraries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.artifacts import export
from atst_jax.artifacts.embedding import get_scene_embeddings, get_timestamp_embeddings
from atst_jax.artifacts.model import load_model
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.export import main as export_main
from atst_jax.models.convnets import efficientnet
from atst_jax.models.convnets.parts import Conv
from atst_jax.models.encoders import check_encoder, make_encoder

B0 = {"kind": "efficientnet", "width": 1280, "stem": 32, "depth": 4, "drop_path": 0.2}
RESNET = {"kind": "resnet50", "width": 512, "stem": 64, "stem_stride": 2, "depth": 6}
TINY = {
  "efficientnet": {**B0, "width": 24, "stem": 4, "depth": 1},
  "resnet50": {**RESNET, "width": 12, "stem": 4, "stem_stride": 1, "depth": 1},
}


def _count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  "encoder, trained, statistics",
  [
    # Keras counts 4,048,991: three more, of its Normalization layer, which is the identity
    (B0, 4_006_972, 42_016),
    # torchvision's 25,557,032 with one channel in and 512 classes
    (RESNET, 24_550_848, 53_120),
  ],
)
def test_parameter_counts(encoder, trained, statistics):
  check_encoder(encoder, 64)
  module = make_encoder(encoder)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 98, 64)))
  assert _count(shapes["params"]) == trained and _count(shapes["batch_stats"]) == statistics
  y, before = jax.eval_shape(module.apply, shapes, jnp.zeros((2, 98, 64)))
  assert y.shape == (2, encoder["width"]) and y.dtype == jnp.float32
  assert before["frames"].shape == (2, 4, encoder["width"])


@functools.cache
def _tiny(kind):
  """A network with statistics that are not those of the beginning, and its function."""
  module = make_encoder(TINY[kind])
  variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 40, 64)))
  rng = np.random.default_rng(0)
  moved = jax.tree.map(lambda x: x + rng.uniform(0.1, 1, x.shape), variables["batch_stats"])
  return module, {**variables, "batch_stats": moved}, jax.jit(module.apply)


@pytest.mark.parametrize("kind", TINY)
def test_padding_does_not_change_a_clip(kind):
  """Of odd and even lengths at every stride. Seen red without the shift of odd clips, without zeros
  behind the end, and with a squeeze over the padding."""
  _, variables, apply = _tiny(kind)
  rng = np.random.default_rng(1)
  lengths = np.array([98, 77])
  padded = 40 * rng.normal(size=(len(lengths), 101, 64)).astype(np.float32)
  y, before = apply(variables, padded, lengths)
  for i in (0, 1):
    alone, parts = apply(variables, padded[i : i + 1, : lengths[i]])
    np.testing.assert_allclose(y[i], alone[0], atol=1e-5)
    N = parts["frames"].shape[1]
    np.testing.assert_allclose(before["frames"][i, :N], parts["frames"][0], atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("same", [True, False])
def test_a_convolution_is_the_sum_it_says(kernel, same):
  """Against the sum over taps in float64, with TensorFlow's and PyTorch's zeros at the borders."""
  rng = np.random.default_rng(0)
  for T, F in ((7, 6), (8, 5)):
    x = rng.normal(size=(1, T, F, 2)).astype(np.float32)
    conv = Conv(3, kernel, jax.nn.initializers.normal(1.0), stride=2, same=same)
    variables = conv.init(jax.random.key(0), x)
    taps, half = np.asarray(variables["params"]["kernel"], np.float64), kernel // 2
    pads = [half - (same and size % 2 == 0) for size in (T, F)]
    expected = np.zeros((1, -(-T // 2), -(-F // 2), 3))
    for t, f, dt, df in np.ndindex(*expected.shape[1:3], kernel, kernel):
      at = (2 * t + dt - pads[0], 2 * f + df - pads[1])
      if 0 <= at[0] < T and 0 <= at[1] < F:
        expected[0, t, f] += x[0, *at] @ taps[dt, df]
    np.testing.assert_allclose(conv.apply(variables, x), expected, atol=1e-5)


@pytest.mark.parametrize("encoder", [{**B0, "depth": 1}, {**RESNET, "depth": 1}])
def test_flops_are_xlas(encoder):
  """Within a few per cent: XLA counts element-wise work, too, and no zeros at the borders."""
  module = make_encoder(encoder)
  mel = jax.ShapeDtypeStruct((1, 384, 128), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), mel)
  counted = jax.jit(module.apply).lower(shapes, mel).cost_analysis()["flops"]
  assert 0.85 < module.flops(frames=384, n_mels=128) / counted < 1.05


def test_initialisation_is_that_of_keras():
  """Normal of variance 2 / fan out, and of 2 / taps where every channel is for itself."""
  sizes = next(
    sizes for sizes in make_encoder(B0).plan() if sizes.kernel == 5 and sizes.inside == 80
  )
  module = efficientnet.Block(sizes, 0.0, jnp.float32)
  init = functools.partial(module.init, train=False, track=False)
  block = jax.jit(init)(jax.random.key(0), jnp.zeros((1, 3, 4, 80)), jnp.array([3]))["params"]
  assert abs(float(block["expand"]["kernel"].std()) / (2 / 480) ** 0.5 - 1) < 0.02
  assert abs(float(block["depthwise"]["kernel"].std()) / (2 / 25) ** 0.5 - 1) < 0.02
  assert not block["squeeze"]["bias"].any()


def test_statistics_are_of_the_global_batch():
  """Eight devices give what one gives, running statistics too, which move by Keras's hundredth."""
  module, variables, _ = _tiny("efficientnet")
  x = 40 * np.random.default_rng(3).normal(size=(8, 64, 64)).astype(np.float32)
  train = functools.partial(module.apply, train=True, mutable=["batch_stats"])
  rngs = {"drop_path": jax.random.key(1)}
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
  (y, _), new = jax.jit(train)(variables, x, rngs=rngs)
  (sharded, _), new_sharded = jax.jit(train)(variables, jax.device_put(x, rows), rngs=rngs)
  np.testing.assert_allclose(y, sharded, atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new, new_sharded)
  stem, before = new["batch_stats"]["stem_norm"], variables["batch_stats"]["stem_norm"]
  kernel = variables["params"]["stem_conv"]["kernel"]
  h = jax.lax.conv_general_dilated(
    x[..., None] * efficientnet.RESCALING,
    kernel,
    (2, 2),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  np.testing.assert_allclose(
    stem["mean"], 0.99 * before["mean"] + 0.01 * h.mean((0, 1, 2)), rtol=1e-4
  )


def test_resnet_is_pytorchs():
  """The same operations by PyTorch, whose padding is symmetric, on an odd number of frames."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e .[torch]")
  module, variables, apply = _tiny("resnet50")
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
  """B0 with Keras's random weights and other statistics; its number of parameters."""
  pytest.importorskip("tensorflow", reason="TensorFlow is not installed: .[tfds]")
  keras = pytest.importorskip("keras")
  keras.utils.set_random_seed(0)
  shape = (frames, 64, 1)
  net = keras.applications.EfficientNetB0(False, None, input_shape=shape, pooling="max")
  assert net.count_params() == 4_048_991
  rng = np.random.default_rng(0)
  params, statistics = {}, {}

  def norm(path, layer):
    gamma, beta, mean, var = layer.get_weights()
    gamma, beta = (x + rng.normal(0, 0.1, x.shape).astype(np.float32) for x in (gamma, beta))
    mean = mean + rng.normal(0, 0.1, mean.shape).astype(np.float32)
    var = var * rng.uniform(0.01, 1, var.shape).astype(np.float32)
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
  np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))


def test_an_export_embeds(tmp_path):
  """As any encoder: written, read back, run as a program of its own, and over a long sound."""
  module, variables, _ = _tiny("efficientnet")
  export.write(
    str(tmp_path / "encoder"),
    jax.tree.map(np.asarray, variables),
    encoder=TINY["efficientnet"],
    frontend=FRONTENDS["cola"],
    chunk_frames=98,
    tail="weighted",
    normalization={"kind": "log_magnitude", "floor": 1e-5, "offset": 0.0},
    provenance={"step": 1},
    artifacts=("safetensors", "card", "jax"),
  )
  model = load_model(str(tmp_path / "encoder"))
  sound = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
  vectors = get_scene_embeddings([sound], model, 16_000)
  over_time, times = get_timestamp_embeddings([sound], model, 16_000)
  assert vectors.shape == (1, module.width) and np.isfinite(vectors).all()
  assert over_time.shape[1] == times.shape[1] > 0 and over_time.shape[2] == module.width
  flags = [f"--encoder={tmp_path / 'encoder'}", f"--output={tmp_path / 'again'}"]
  assert export_main([*flags, "--artifacts=onnx"]) == 2
