"""Adapters of benchmark suites: each is loaded as the suite loads it, and gives the vectors of
`atst_jax.embed`.

HEAR's validator, its evaluation kit and X-ARES are used themselves where they are installed (pip
install -e .[torch,suites]; the kit pins numpy 1.19 and is installed with --no-deps). EVAR's licence
is for evaluation only: its base class, its loader and its way to name a model are stood in for
here, from their description.
"""

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile

from atst_jax.artifacts.embedding import get_scene_embeddings, get_timestamp_embeddings
from atst_jax.downstream import evar, hear, xares
from atst_jax.downstream.suites import torch_arrays
from atst_jax.embed import load_model
from atst_jax.method.normalization import LOG_EPS
from atst_jax.util.errors import UserError
from tests.evaluation import write_encoder
from tests.tiny import ROOT

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e .[torch]")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
  folder = tmp_path_factory.mktemp("suites")
  return {kind: write_encoder(folder / kind, kind=kind) for kind in ("transformer", "cnn")}


@pytest.fixture
def named(encoders, monkeypatch):
  monkeypatch.setenv(torch_arrays.VARIABLE, encoders["transformer"])
  return encoders["transformer"]


def _sounds(seconds=0.5, number=2):
  return (
    np.random.default_rng(0).normal(0, 0.1, (number, round(16000 * seconds))).astype(np.float32)
  )


def test_hear(encoders, named):
  """The functions and attributes of the specification, from a path or the environment, with
  options."""
  audio, encoder = torch.from_numpy(_sounds()), load_model(named)
  for model, blocks in ((hear.load_model(), 1), (hear.load_model(named, num_blocks=2), 2)):
    model.to("cpu")
    assert isinstance(model, torch.nn.Module) and model.sample_rate == 16000
    scene = hear.get_scene_embeddings(audio, model)
    assert scene.dtype == torch.float32 and scene.shape == (2, model.scene_embedding_size)
    np.testing.assert_array_equal(
      scene, get_scene_embeddings(_sounds(), encoder, 16000, num_blocks=blocks)
    )
    vectors, times = hear.get_timestamp_embeddings(audio, model)
    assert vectors.dtype == torch.float32
    assert vectors.shape == (2, 12, model.timestamp_embedding_size)
    np.testing.assert_array_equal(vectors, get_timestamp_embeddings(_sounds(), encoder, 16000)[0])
    np.testing.assert_allclose(times, np.broadcast_to(15 + 40 * np.arange(12), (2, 12)))
  short = hear.get_scene_embeddings(audio[:, :100], model)  # filled with silence
  filled = np.pad(_sounds()[:, :100], ((0, 0), (0, 413)))
  np.testing.assert_array_equal(short, get_scene_embeddings(filled, encoder, 16000, num_blocks=2))
  with pytest.raises(UserError, match="the encoder has 2 blocks"):
    hear.load_model(named, num_blocks=3)
  assert hear.load_model(encoders["cnn"]).timestamp_embedding_size == 1032


def test_an_encoder_has_to_be_named(monkeypatch):
  monkeypatch.delenv(torch_arrays.VARIABLE, raising=False)
  for load in (hear.load_model, xares.ATSTJAXEncoder):
    with pytest.raises(UserError, match="Set the environment variable ATST_JAX_ENCODER"):
      load()


def test_hear_validator(named):
  """HEAR's own, as its users call it."""
  pytest.importorskip(
    "hearvalidator", reason="hearvalidator is not installed: pip install -e .[suites]"
  )
  command = [
    "-m",
    "hearvalidator.validate",
    "atst_jax.downstream.hear",
    "--model",
    named,
    "--device",
    "cpu",
  ]
  done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0 and "Looks good!" in done.stdout, done.stderr


# the kit leaves files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_hear_evaluation_kit(named, tmp_path, monkeypatch):
  """A task of scenes and one of events in HEAR's layout, embedded by the kit."""
  kit = pytest.importorskip(
    "heareval.embeddings.task_embeddings", reason="heareval is not installed"
  )
  monkeypatch.setattr(kit.gpu_max_mem, "measure", lambda: None)
  for kind, labels in (
    ("scene", ["dog"]),
    ("event", [{"label": "dog", "start": 100.0, "end": 300.0}]),
  ):
    task, out = tmp_path / kind, tmp_path / f"{kind}_out"
    (task / "16000" / "train").mkdir(parents=True)
    about = {
      "splits": ["train"],
      "sample_duration": 0.5,
      "embedding_type": kind,
      "prediction_type": "multiclass",
    }
    (task / "task_metadata.json").write_text(json.dumps(about))
    (task / "labelvocabulary.csv").write_text("idx,label\n0,dog\n")
    (task / "train.json").write_text(json.dumps({f"{i}.wav": labels for i in range(3)}))
    for i, sound in enumerate(_sounds(number=3)):
      soundfile.write(task / "16000" / "train" / f"{i}.wav", sound, 16000, subtype="FLOAT")
    kit.task_embeddings(kit.Embedding("atst_jax.downstream.hear", named, {}), task, out)
    found = np.load(out / "train" / "1.wav.embedding.npy")
    encoder = load_model(named)
    if kind == "scene":
      np.testing.assert_allclose(
        found, get_scene_embeddings(_sounds(number=3), encoder, 16000)[1], atol=1e-6
      )
    else:
      np.testing.assert_allclose(
        found, get_timestamp_embeddings(_sounds(number=3), encoder, 16000)[0][1], atol=1e-6
      )
      heard = json.loads((out / "train" / "1.wav.target-labels.json").read_text())
      assert [bool(x) for x in heard] == [100 <= t <= 300 for t in 15 + 40 * np.arange(12)]


def test_xares(named):
  """What its checker asks for: a class called …Encoder, three attributes, (B, T, D); one name for
  every export."""
  encoder, audio = xares.ATSTJAXEncoder(), torch.from_numpy(_sounds())
  assert [name for name in dir(xares) if name.endswith("Encoder")] == ["ATSTJAXEncoder"]
  assert isinstance(encoder, torch.nn.Module)
  assert (encoder.sampling_rate, encoder.hop_size_in_ms) == (16000, 40)
  out = encoder(audio)
  assert out.shape == (2, 12, encoder.output_dim) and encoder(audio[0]).shape == (1, 12, 8)
  np.testing.assert_array_equal(
    out, get_timestamp_embeddings(_sounds(), load_model(named), 16000)[0]
  )
  assert type(encoder).__name__ == f"ATSTJAX{load_model(named).config['params_hash']}Encoder"


def test_xares_checker(named):
  """The suite's own way from a path to a checked encoder."""
  utils = pytest.importorskip(
    "xares.utils", reason="xares is not installed: pip install -e .[suites]"
  )
  from xares.audio_encoder_checker import check_audio_encoder

  encoder = utils.attr_from_py_path("atst_jax/downstream/xares.py", endswith="Encoder")()
  assert check_audio_encoder(encoder)


class _Config(types.SimpleNamespace):
  """EVAR reads keys of its YAML as attributes."""

  @classmethod
  def read(cls, text):
    import yaml

    return cls(**yaml.safe_load(text))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A stand-in of an EVAR checkout: its base class keeps the config, computes nothing before, and
  is abstract."""
  folder = tmp_path / "evar"
  folder.mkdir()
  (folder / "__init__.py").touch()
  (folder / "ar_base.py").write_text(
    "import torch\n\n\nclass BaseAudioRepr(torch.nn.Module):\n"
    "  def __init__(self, cfg):\n    super().__init__()\n    self.cfg = cfg\n\n"
    "  def precompute(self, device, data_loader):\n    pass\n\n"
    "  def forward(self, batch_audio):\n    raise NotImplementedError\n"
  )
  (folder / "ar_atst_jax.py").write_text("from atst_jax.downstream.evar import AR_ATST_JAX\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  for name in ("evar", "evar.ar_base", "evar.ar_atst_jax"):
    monkeypatch.delitem(sys.modules, name, raising=False)
  yield tmp_path
  for name in ("evar", "evar.ar_base", "evar.ar_atst_jax"):
    sys.modules.pop(name, None)


def _as_evar_loads(cfg, loader):
  """The steps of its linear evaluation up to the vectors of a batch."""
  import evar.ar_atst_jax

  assert evar.ar_atst_jax
  device = torch.device("cpu")
  model = eval("evar." + cfg.audio_repr)(cfg).to(device)
  model.precompute(device, loader)
  model.eval()
  parallel = torch.nn.DataParallel(model).to(device)
  with torch.no_grad():
    return model, torch.cat([parallel(audio) for audio, _ in loader])


def test_evar(encoders, checkout, capsys):
  """From the printed config to vectors, in batches, of the central 12 s."""
  assert evar.main([f"--encoder={encoders['transformer']}", "--blocks=2"]) == 0
  cfg = _Config.read(capsys.readouterr().out)
  assert (cfg.feature_d, cfg.sample_rate, cfg.n_mels, cfg.max_seconds) == (32, 16000, 64, 12.0)
  cfg.max_seconds = 0.3
  sounds, encoder = _sounds(1.0, 4), load_model(encoders["transformer"])
  loader = torch.utils.data.DataLoader([(sound, 0) for sound in sounds], batch_size=3)
  model, vectors = _as_evar_loads(cfg, loader)
  mels = [encoder.log_mel(sound[5600:10400], 16000) for sound in sounds]  # the central 0.3 s of 1 s
  np.testing.assert_allclose(vectors, encoder.embed(mels, num_blocks=2), atol=1e-5)
  frames = model.encode_frames(torch.from_numpy(sounds))
  assert frames.shape == (4, 8, 25)
  np.testing.assert_array_equal(
    frames.swapaxes(1, 2), get_timestamp_embeddings(sounds, encoder, 16000)[0]
  )
  cfg.feature_d = 16
  with pytest.raises(UserError, match="feature_d is 16 in the config and 32"):
    _as_evar_loads(cfg, loader)
  assert evar.main([f"--encoder={encoders['transformer']}", "--blocks=9"]) == 2


def test_evar_standardises_by_the_evaluated_set(encoders, checkout):
  """BYOL-A's protocol. The statistics of two batches, against one computation over all frames."""
  cfg = _Config.read(evar.config_text(encoders["cnn"], 1))
  assert cfg.max_seconds == 0
  sounds, encoder = (
    _sounds(0.5, 3) * np.array([[1], [0.1], [0]], np.float32),
    load_model(encoders["cnn"]),
  )
  loader = torch.utils.data.DataLoader([(sound, 0) for sound in sounds], batch_size=2)
  model, vectors = _as_evar_loads(cfg, loader)
  power = 10 ** (
    np.concatenate([encoder.log_mel(sound, 16000) for sound in sounds]).astype(np.float64) / 10
  )
  logs = np.log(power + LOG_EPS)
  found = model.encoder.config["normalization"]
  np.testing.assert_allclose([found["mean"], found["std"]], [logs.mean(), logs.std()], rtol=1e-5)
  expected = encoder.standardized({"log_mean": logs.mean(), "log_std": logs.std()})
  np.testing.assert_allclose(
    vectors, get_scene_embeddings(sounds, expected, 16000), rtol=1e-3, atol=1e-4
  )
  assert not np.allclose(vectors, get_scene_embeddings(sounds, encoder, 16000), rtol=0.1)


def test_evar_that_is_not_there(monkeypatch):
  monkeypatch.setitem(sys.modules, "evar", None)
  with pytest.raises(UserError, match="run from the root of its checkout"):
    _ = evar.AR_ATST_JAX
  with pytest.raises(AttributeError):
    _ = evar.other


def test_importing_the_adapters_loads_no_torch():
  code = (
    "import sys; from atst_jax.downstream import evar, hear, xares; "
    "sys.exit(str({'torch', 'tensorflow'} & set(sys.modules) or 0))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ
  )
  assert done.stderr.strip() == "0", done.stderr
