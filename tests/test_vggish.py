"""VGGish: values of the released code, conversion by name, and its place beside other encoders."""

import functools

import jax
import numpy as np
import pytest

from atst_jax.artifacts import export
from atst_jax.artifacts.embedding import get_timestamp_embeddings
from atst_jax.artifacts.families import vggish as family
from atst_jax.artifacts.model import Model, load_model
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.data.dataset import Clip
from atst_jax.method.normalization import normalize
from atst_jax.models.convnets.vggish import Quantizer
from atst_jax.models.encoders import make_encoder
from atst_jax.util.errors import UserError
from tests.evaluation import evaluate, make_clips, refused, write_clips

SMALL = {"kind": "vggish", "width": 8, "hidden": 24, "channels": 4, "output": "embedding"}


def _tensors(encoder=SMALL, seed=0):
  """Tensors of a small network by their names in PyTorch's files."""
  module = make_encoder(encoder)
  shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 96, 64), np.float32))
  rng = np.random.default_rng(seed)
  out = {}
  for name, path in module.torch_names().items():
    shape = functools.reduce(lambda node, key: node[key], path, shapes).shape
    shape = shape[::-1] if len(shape) in (2, 4) else shape
    fan = np.prod(shape[1:]) if len(shape) > 1 else 400
    out[name] = (rng.normal(size=shape) * (2 / fan) ** 0.5).astype(np.float32)
  return out


def write_vggish(folder, **changes):
  """A small exported network. Returns the folder."""
  parts = family.read_vggish(_tensors(SMALL | changes), None)
  export.write(str(folder), provenance={}, **parts)
  return str(folder)


@pytest.mark.slow
def test_released_values(golden):
  """The whole network, from the waveform."""
  arrays = golden("vggish")
  tensors = {}
  for i, (name, text) in enumerate(zip(arrays["names"], arrays["shapes"], strict=True)):
    shape = tuple(int(n) for n in text.strip("()").split(",") if n.strip())
    x = np.random.default_rng([7, i]).standard_normal(shape, np.float32)
    scale = 0.05 if len(shape) == 1 else (2 / np.prod(shape[1:])) ** 0.5
    tensors[str(name)] = x * np.float32(scale)
  parts = family.read_vggish(tensors, None)
  assert parts["encoder"] == {**SMALL, "width": 128, "hidden": 4096, "channels": 64}
  frontend = parts.pop("frontend")
  model = Model(
    {"max_seconds": None, "frontend": frontend.to_json(), **parts}, parts["variables"], None
  )
  found, _ = get_timestamp_embeddings([arrays["waveform"]], model, 16_000)
  np.testing.assert_allclose(found[0], arrays["embeddings"], atol=1e-4)


def test_released_post_processor(golden):
  """Exact, but for what lies between two whole numbers."""
  arrays = golden("vggish")
  quantizer = {"kernel": arrays["pca_eigen_vectors"].T, "mean": arrays["pca_means"].T}
  numbers = np.asarray(Quantizer().apply({"params": quantizer}, arrays["embeddings"][None]))[0]
  components = (arrays["embeddings"] - arrays["pca_means"].T) @ arrays["pca_eigen_vectors"].T
  exact = (np.clip(components.astype(np.float64), -2, 2) + 2) * 63.75
  tie = np.abs(exact % 1 - 0.5) < 1e-3
  assert tie.mean() < 0.05
  np.testing.assert_array_equal(numbers[~tie], arrays["postprocessed"][~tie])


def _model(**changes):
  parts = family.read_vggish(_tensors(SMALL | changes), None)
  frontend = parts.pop("frontend")
  variables = parts.pop("variables")
  return Model({"max_seconds": None, "frontend": frontend.to_json(), **parts}, variables, None)


@pytest.mark.parametrize("output", ["embedding", "quantized"])
def test_a_clip_is_the_mean_of_its_whole_examples(output):
  """Alone, beside a longer one, and longer than a chunk; 15,600 samples make one example."""
  model = _model(output=output)
  rng = np.random.default_rng(0)
  sounds = [rng.normal(0, 0.1, n).astype(np.float32) for n in (15_600, 60_000)]
  vectors = model.embed([model.mel(x, 16_000) for x in sounds])
  frames = [model.embed_frames(model.mel(x, 16_000)) for x in sounds]
  assert [len(x) for x in frames] == [1, 3]
  for vector, over_time in zip(vectors, frames, strict=True):
    np.testing.assert_allclose(vector, over_time.mean(0), rtol=1e-5, atol=1e-6)
  mel = model.mel(sounds[1], 16_000)
  x = normalize(mel, peak=0, **model.config["normalization"])[None]
  whole, _ = make_encoder(model.config["encoder"]).apply(model.variables, x)
  np.testing.assert_allclose(whole[0], vectors[1], rtol=1e-5, atol=1e-6)
  padded, _ = make_encoder(model.config["encoder"]).apply(model.variables, x, np.array([100]))
  np.testing.assert_allclose(padded[0], frames[1][0], rtol=1e-5, atol=1e-6)
  assert model.min_samples == 15_600
  with pytest.raises(UserError, match="a clip of 95 frames; this encoder needs at least 96"):
    model.embed([model.mel(sounds[0][:-1], 16_000)])


def test_flops_are_xlas():
  module = make_encoder({**SMALL, "width": 128, "hidden": 2048, "channels": 8})
  mel = jax.ShapeDtypeStruct((1, 192, 64), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), mel)
  counted = jax.jit(module.apply).lower(shapes, mel).cost_analysis()["flops"]
  assert 0.95 < module.flops(frames=192, n_mels=64) / counted < 1.1


def test_conversion_by_name(tmp_path, capsys):
  """There and back, bit for bit; with the post-processor's file; anything else is refused."""
  released = pytest.importorskip("tests.released_files")
  torch, convert = released.torch, released.convert
  tensors = {name: torch.from_numpy(x) for name, x in _tensors().items()}
  torch.save(tensors, tmp_path / "vggish.pth")
  assert convert(tmp_path / "vggish.pth", tmp_path / "plain") == 0
  model = load_model(str(tmp_path / "plain"))
  assert model.config["encoder"] == SMALL and model.frontend == FRONTENDS["vggish"]
  assert convert(tmp_path / "plain", tmp_path / "back.pth") == 0
  back = torch.load(tmp_path / "back.pth", weights_only=True)
  assert back.keys() == tensors.keys()
  assert all(torch.equal(back[name], x) for name, x in tensors.items())

  rng = np.random.default_rng(0)
  vectors, means = rng.normal(size=(8, 8)), rng.normal(size=8)  # arrays, as the released file holds
  pca = tmp_path / "pca.pth"
  torch.save({"pca_eigen_vectors": vectors, "pca_means": means}, pca)
  flags = (tmp_path / "vggish.pth", tmp_path / "whole", f"--postprocess={pca}")
  assert convert(*flags) == 0
  whole = load_model(str(tmp_path / "whole"))
  mel = model.mel(rng.normal(0, 0.1, 20_000).astype(np.float32), 16_000)
  components = (model.embed([mel]) - means) @ vectors.T
  expected = (np.clip(components, -2, 2) + 2) * 63.75
  assert np.abs(whole.embed([mel]) - expected).max() < 0.501

  capsys.readouterr()
  torch.save(tensors | {"features.1.weight": torch.zeros(3)}, tmp_path / "more.pth")
  torch.save({k: x for k, x in tensors.items() if k != "features.8.bias"}, tmp_path / "less.pth")
  for name, flag, reason in (
    ("more", (), "keys of another model: features.1.weight"),
    ("less", (), "lacks features.8.bias"),
    ("vggish", ("--mean=1",), "--mean do not belong to a file of vggish"),
    ("vggish", (f"--postprocess={tmp_path / 'less.pth'}",), "the post-processor's file has"),
  ):
    assert convert(tmp_path / f"{name}.pth", tmp_path / "no", *flag) == 2
    assert reason in capsys.readouterr().err


def test_onnx_nodes(tmp_path):
  """The graph's vectors are the model's: with the post-processor, too."""
  pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: .[onnx]")
  for output in ("embedding", "quantized"):
    folder = write_vggish(tmp_path / output, output=output)
    export.add_program(folder, "onnx", load_model(folder))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  return write_vggish(tmp_path_factory.mktemp("vggish") / "encoder")


def test_linear_evaluation(exported, tmp_path):
  """On data of its own front-end, whose clips hold an example; other data are refused."""
  clips = [
    Clip(clip.id, np.tile(clip.mel, (5, 1))[:100], clip.labels, fold=clip.fold)
    for clip in make_clips(12)
  ]
  data = write_clips(tmp_path / "data", clips, frontend="vggish")
  options = {"protocol": "exact", "seeds": "1", "blocks": "'last',"}
  results = evaluate(exported, data, tmp_path / "run", **options)
  assert [row["dimensions"] for row in results["rows"]] == [8, 8, 128]
  assert results["rows"][-1]["mean"] == 1.0
  other = write_clips(tmp_path / "other", clips, frontend="atst")
  refused("front-end", exported, other, tmp_path / "refused", **options)
