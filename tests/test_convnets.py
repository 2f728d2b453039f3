"""EfficientNet-B0 and ResNet-50: sizes, padding, operations; every kind in a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from atst_jax.artifacts import export
from atst_jax.artifacts.embedding import get_scene_embeddings, get_timestamp_embeddings
from atst_jax.artifacts.model import Model, load_model
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.models import depthwise
from atst_jax.models.convnets import efficientnet
from atst_jax.models.convnets.parts import Conv
from atst_jax.models.encoders import check_encoder, make_encoder
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check
from atst_jax.util.errors import UserError
from tests.drawn import drawn_encoder
from tests.test_conformer import TINY as CONFORMER
from tests.test_vggish import SMALL as VGGISH
from tests.tiny import tiny_config

B0 = {"kind": "efficientnet", "width": 1280, "stem": 32, "depth": 4, "drop_path": 0.2}
RESNET = {"kind": "resnet50", "width": 512, "stem": 64, "stem_stride": 2, "depth": 6}
TINY = {
  "efficientnet": {**B0, "width": 24, "stem": 4, "depth": 1},
  "resnet50": {**RESNET, "width": 12, "stem": 4, "stem_stride": 1, "depth": 1},
}


ALL = TINY | {"conformer": CONFORMER, "vggish": VGGISH}


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
  # EfficientNet: 98, 49, 24, 12, 6, 3; ResNet: 98, 49, 25, 13, 7, 4
  frames = 3 if encoder is B0 else 4
  assert before["frames"].shape == (2, frames, encoder["width"])


@functools.cache
def tiny_network(kind):
  """A network with statistics that are not those of the beginning, and its function."""
  module = make_encoder(TINY[kind])
  return module, drawn_encoder(module, 64), jax.jit(module.apply)


@pytest.mark.parametrize("kind", TINY)
def test_padding_does_not_change_a_clip(kind):
  """Of odd and even lengths at every stride. Seen red without zeros behind the
  end, and with a squeeze over the padding."""
  _, variables, apply = tiny_network(kind)
  rng = np.random.default_rng(1)
  lengths = np.array([98, 77])
  padded = 40 * rng.normal(size=(len(lengths), 101, 64)).astype(np.float32)
  y, before = apply(variables, padded, lengths)
  for i in (0, 1):
    alone, parts = apply(variables, padded[i : i + 1, : lengths[i]])
    np.testing.assert_allclose(y[i], alone[0], rtol=1e-5, atol=1e-5)
    N = parts["frames"].shape[1]
    np.testing.assert_allclose(before["frames"][i, :N], parts["frames"][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("later", [True, False])
def test_a_convolution_is_the_sum_it_says(kernel, later):
  """Against the sum over taps in float64, with Keras's and PyTorch's zeros at the borders."""
  rng = np.random.default_rng(0)
  for T, F in ((7, 6), (8, 5)):
    x = rng.normal(size=(1, T, F, 2)).astype(np.float32)
    conv = Conv(3, kernel, jax.nn.initializers.normal(1.0), stride=2, later=later)
    variables = conv.init(jax.random.key(0), x)
    taps, half = np.asarray(variables["params"]["kernel"], np.float64), kernel // 2
    before = half - later
    expected = np.zeros((1, (T + 1 - later) // 2, (F + 1 - later) // 2, 3))
    for t, f, dt, df in np.ndindex(*expected.shape[1:3], kernel, kernel):
      at = (2 * t + dt - before, 2 * f + df - before)
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
  sizes = list(make_encoder(TINY["efficientnet"]).plan())[4]
  block = efficientnet.Block(sizes, 0.5, jnp.float32)
  x = np.random.default_rng(3).normal(2, 3, size=(8, 9, 8, sizes.inside)).astype(np.float32)
  options = {"length": None, "train": True, "track": True}
  rngs = {"params": jax.random.key(0), "drop_path": jax.random.key(1)}
  variables = jax.jit(lambda x: block.init(rngs, x, **options))(x)
  train = jax.jit(lambda x: block.apply(variables, x, rngs=rngs, mutable="batch_stats", **options))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
  y, new = train(x)
  sharded, new_sharded = train(jax.device_put(x, rows))
  np.testing.assert_allclose(y, sharded, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new, new_sharded)
  h = x @ np.asarray(variables["params"]["expand"]["kernel"])[0, 0]
  moved = new["batch_stats"]["expand_norm"]
  np.testing.assert_allclose(moved["mean"], 0.01 * h.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
  variance = h.var((0, 1, 2), ddof=1)
  np.testing.assert_allclose(moved["var"], 0.99 + 0.01 * variance, rtol=1e-3)


@pytest.mark.parametrize(
  "artifacts", [(), pytest.param(("jax",), marks=pytest.mark.slow)], ids=["weights", "program"]
)
def test_an_export_embeds(artifacts, tmp_path):
  """As any encoder: written, read back, run as a program of its own, and over a long sound."""
  module, variables, _ = tiny_network("efficientnet")
  export.write(
    str(tmp_path / "encoder"),
    jax.tree.map(np.asarray, variables),
    encoder=TINY["efficientnet"],
    frontend=FRONTENDS["cola"],
    chunk_frames=98,
    tail="weighted",
    normalization={"kind": "log_magnitude", "floor": 1e-5, "offset": 0.0},
    provenance={"step": 1},
    artifacts=("safetensors", "card", *artifacts),
  )
  model = load_model(str(tmp_path / "encoder"))
  jax.tree.map(np.testing.assert_array_equal, model.variables, variables)
  sound = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
  vectors = get_scene_embeddings([sound], model, 16_000)
  over_time, times = get_timestamp_embeddings([sound], model, 16_000)
  assert vectors.shape == (1, module.width) and np.isfinite(vectors).all()
  assert over_time.shape[1] == times.shape[1] > 1 and over_time.shape[2] == module.width
  assert times[0, 1] - times[0, 0] == 320  # ms


@pytest.mark.parametrize("stem_stride", [None, 1, 2])
def test_the_middle_of_what_a_vector_over_time_sees(stem_stride):
  """By the gradient of one vector: its time was told 15 frames too early, or too late."""
  kind = TINY["resnet50"] | {"stem_stride": stem_stride} if stem_stride else TINY["efficientnet"]
  module = make_encoder(kind)
  variables, place = drawn_encoder(module, 64), 192 // module.hop
  vector = lambda x: module.apply(variables, x)[1]["frames"][0, place]
  mel = np.random.default_rng(0).normal(size=(1, 384, 64)).astype(np.float32)
  slope = jax.jit(jax.grad(lambda x: jnp.square(vector(x)).sum()))(mel)
  seen = np.abs(np.asarray(slope, np.float64)).sum((0, 2))
  middle = (seen * np.arange(384)).sum() / seen.sum()
  assert abs(middle - (place * module.hop + module.centre)) < 5


@pytest.mark.parametrize("kernel, stride", [((3, 3), 2), ((5, 1), 1)])
def test_both_ways_of_a_depthwise_convolution_agree(kernel, stride):
  """Values and gradients, with more zeros on one side than on the other."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 9, 8, 3)).astype(np.float32)
  taps = rng.normal(size=(*kernel, 1, 3)).astype(np.float32)
  pads = tuple((size // 2 - (stride == 2), size // 2) for size in kernel)
  found = []
  for function in (depthwise._of_taps, depthwise._of_groups, depthwise.depthwise):

    @jax.jit
    def both(x, taps, function=function):
      y, pull = jax.vjp(lambda x, taps: function(x, taps, stride, pads), x, taps)
      return y, *pull(jnp.cos(y))

    found.append(both(x, taps))
  for way in found[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found[0], way)


@pytest.mark.parametrize("kind", ALL)
def test_each_kind_is_pre_trained(kind):
  """Checked, and VGGish, which no objective is told to have, traced as part of a step."""
  crop = {"efficientnet": 32, "resnet50": 16, "conformer": 16, "vggish": 96}[kind]
  config = tiny_config(
    views__padding="silence",
    warmup_steps="0",
    views__crop_frames=str(crop),
    data__clip_frames=str(2 * crop),
  )
  config.unlock()
  config.encoder = ConfigDict(ALL[kind])
  config = recipe.resolve(config, None)
  check(config, None, devices=8, processes=1)
  if kind == "vggish":
    init, step = recipe.build(config, ragged=False)
    state = jax.eval_shape(init, jax.random.key(0))
    batch = next(recipe.batches(config, None, start_step=0, rows=(0, 16)))
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == ()
  config.views.crop_frames = make_encoder(ALL[kind]).hop - 1
  with pytest.raises(UserError, match="frames"):
    check(config, None, devices=8, processes=1)


def test_numbers_of_the_post_processor_are_not_trained():
  config = tiny_config(views__crop_frames="96", data__clip_frames="96", views__padding="silence")
  config.unlock()
  config.encoder = ConfigDict(ALL["vggish"] | {"output": "quantized"})
  with pytest.raises(UserError, match=r"encoder\.output=quantized"):
    check(recipe.resolve(config, None), None, devices=8, processes=1)


@pytest.mark.parametrize(
  "changes",
  [("efficientnet", "depth", 65), ("resnet50", "depth", 65), ("resnet50", "stem_stride", 3)],
)
def test_sizes_that_are_none(changes):
  kind, key, value = changes
  with pytest.raises(ValueError, match=f"encoder.{key} {value} must be"):
    check_encoder(TINY[kind] | {key: value}, 64)


@pytest.mark.parametrize("kind", ["efficientnet", "resnet50", "conformer"])
def test_onnx_nodes(kind, tmp_path):
  """The graph's vectors are the model's, of odd and even lengths, alone and padded. Seen red
  without the shift of odd clips, and with another epsilon in the Conformer."""
  pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[onnx]")
  variables = drawn_encoder(make_encoder(ALL[kind]), 64)
  config = {
    "encoder": ALL[kind],
    "frontend": FRONTENDS["atst"].to_json(),
    "normalization": {"kind": "standard", "mean": -4.0, "std": 2.0},
    "chunk_frames": 200,
    "tail": "weighted",
    "max_seconds": None,
    "head": None,
  }
  model = Model(config, jax.tree.map(np.asarray, variables), None)
  export.add_program(str(tmp_path), "onnx", model)
