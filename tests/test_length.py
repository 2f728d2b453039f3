"""The length rule of an export: whose seconds count, in Python, as a command, under HEAR's names,
from spectrograms and in ONNX files; and long sounds of encoders that see them as in one pass."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from atst_jax import embed, export
from atst_jax.artifacts.embedding import get_scene_embeddings, get_timestamp_embeddings
from atst_jax.artifacts.model import Model, load_model
from atst_jax.artifacts.programs import onnx_graph
from atst_jax.audio import waveforms
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log
from tests.evaluation import CNN, write_encoder

RATE, RULE = 16000, 0.5


@functools.cache
def _sound(samples=RATE + 77):
  swell = np.linspace(0.01, 1, samples) ** 4
  return (0.3 * swell * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


def _middle(sound):
  start = (len(sound) - round(RULE * RATE)) // 2
  return sound[start : start + round(RULE * RATE)]


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
  """An export with the rule, written from one that has none."""
  folder = tmp_path_factory.mktemp("length")
  encoder = write_encoder(folder / "whole")
  flags = [f"--encoder={encoder}", f"--output={folder / 'ruled'}", f"--length={RULE}"]
  assert export.main(flags) == 0
  return str(folder / "ruled")


@pytest.fixture(scope="module")
def expected(ruled):
  """The vector of the sound's middle, cut out by hand."""
  vectors = get_scene_embeddings([_middle(_sound())], load_model(ruled).limited(None), RATE)
  whole = get_scene_embeddings([_sound()], load_model(ruled).limited(None), RATE)
  assert np.abs(vectors - whole).max() > 1e-2
  return vectors


def test_the_middle_of_a_longer_sound_is_embedded(ruled, expected, monkeypatch):
  """Of the waveform, read in pieces of any size; a shorter sound is embedded whole. Seen red with
  a crop of the spectrogram."""
  model = load_model(ruled)
  assert model.max_seconds == RULE
  for size in (1 << 18, 997):
    monkeypatch.setattr(waveforms, "PIECE_SAMPLES", size)
    np.testing.assert_allclose(get_scene_embeddings([_sound()], model, RATE), expected, atol=1e-5)
  short = _middle(_sound())[:-1]
  np.testing.assert_array_equal(
    get_scene_embeddings([short], model, RATE),
    get_scene_embeddings([short], model.limited(None), RATE),
  )


def test_vectors_over_time_are_of_the_whole_sound(ruled):
  vectors, times = get_timestamp_embeddings([_sound()], load_model(ruled), RATE)
  assert vectors.shape[1] == 101 // 4 and times[0, -1] > 950


def test_a_spectrogram_is_cropped_to_the_same_frames(ruled):
  """As features of a prepared set are: its frames, whose ends saw what lies beyond them."""
  model = load_model(ruled)
  mel = model.log_mel(_sound(), RATE)
  np.testing.assert_array_equal(model.embed([mel]), model.embed([mel], max_frames=51))
  assert np.abs(model.embed([mel]) - model.limited(None).embed([mel])).max() > 1e-2


def test_the_command_keeps_to_the_rule_and_takes_another(ruled, expected, tmp_path, capsys):
  (tmp_path / "in").mkdir()
  soundfile.write(tmp_path / "in" / "a.wav", _sound(), RATE, subtype="FLOAT")
  common = [f"--encoder={ruled}", f"--input={tmp_path / 'in'}", "--workers=1"]
  read = lambda name: np.load(tmp_path / f"{name}.npz")["vector"]
  for name, flags in (("rule", []), ("whole", ["--length=whole"])):
    assert embed.main([*common, f"--output={tmp_path / name}.npz", *flags]) == 0
    with np.load(tmp_path / f"{name}.npz") as file:
      assert str(file["length"]) == {"rule": "0.5", "whole": "whole"}[name]
  np.testing.assert_allclose(read("rule"), expected, atol=1e-5)
  whole = get_scene_embeddings([_sound()], load_model(ruled).limited(None), RATE)
  np.testing.assert_allclose(read("whole"), whole, atol=1e-5)
  for text in ("some", "0", "nan", "-1"):
    assert embed.main([*common, f"--output={tmp_path / 'no'}.npz", f"--length={text}"]) == 2
    assert "must be 'whole', or 0.1 to 86400 seconds" in capsys.readouterr().err


def test_hear_and_evar_keep_to_the_rule(ruled, expected):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e .[torch]")
  from atst_jax.downstream import hear

  model = hear.load_model(ruled)
  found = hear.get_scene_embeddings(torch.from_numpy(_sound()[None]), model)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_onnx_files_say_the_rule(ruled):
  onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[onnx]")
  file = onnx.load_from_string(onnx_graph.build(load_model(ruled)))
  told = {entry.key: json.loads(entry.value) for entry in file.metadata_props}
  assert told["max_seconds"] == RULE and told["chunk_frames"] == 32 and told["tail"] == "weighted"
  assert told["frontend"] == FRONTENDS["atst"].to_json()


def test_an_export_from_before_the_rule_embeds_whole_sounds_and_says_so(
  ruled, tmp_path, monkeypatch
):
  said = []
  monkeypatch.setattr(log, "info", lambda text, *values: said.append(text % values))
  encoder = write_encoder(tmp_path / "old")
  config = json.loads((tmp_path / "old" / "config.json").read_text())
  assert load_model(encoder).max_seconds is None and not said
  del config["max_seconds"]
  (tmp_path / "old" / "config.json").write_text(json.dumps({**config, "format": 3}))
  model = load_model(encoder)
  assert model.max_seconds is None
  assert len(said) == 1 and "embedded whole" in said[0] and "--length=12" in said[0]
  np.testing.assert_array_equal(
    get_scene_embeddings([_sound()], model, RATE),
    get_scene_embeddings([_sound()], load_model(ruled).limited(None), RATE),
  )
  (tmp_path / "old" / "config.json").write_text(json.dumps({**config, "max_seconds": "long"}))
  with pytest.raises(UserError, match="max_seconds='long': must be"):
    load_model(encoder)


@pytest.mark.parametrize("version, width", [("AudioNTT2022", 1040), ("AudioNTT2020", 24)])
@pytest.mark.parametrize("frames", [65, 130, 203])
def test_a_long_sound_is_seen_as_in_one_pass(version, width, frames, monkeypatch):
  """Maximum plus mean over all frames of convolutions that see across the seams, held or computed
  in blocks. Seen red without context, and with the mean of the chunks' vectors."""
  model = _cnn(version, width)
  rng = np.random.default_rng(frames)
  mel = rng.normal(-50, 20, (frames, 64)).astype(np.float32)
  x = model.normalized(mel[None], np.array([mel.max()]), np.array([frames]))
  y, before = jax.jit(model.encoder.apply)(model.variables, x)
  blocks = lambda: iter(np.split(mel, [7, 50, 58]))
  for sound in (mel, waveforms.LongMel(blocks, frames, float(mel.max()))):
    np.testing.assert_allclose(model.embed([sound]), y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(model.embed_frames(sound), before["frames"][0], rtol=1e-6, atol=1e-6)


@functools.cache
def _cnn(version, width):
  config = {
    "encoder": {**CNN, "version": version, "width": width},
    "frontend": FRONTENDS["byola"].to_json(),
    "normalization": {"kind": "standard", "mean": -9.0, "std": 4.0},
    "chunk_frames": 64,
    "tail": "weighted",
    "max_seconds": None,
  }
  model = Model(config, {}, None)
  variables = jax.jit(model.encoder.init)(jax.random.key(0), jnp.zeros((1, 64, 64)))
  rng = np.random.default_rng(0)
  stats = jax.tree.map(lambda x: x + rng.uniform(0, 1, x.shape), variables["batch_stats"])
  variables = {"params": variables["params"], "batch_stats": jax.tree.map(np.float32, stats)}
  return Model(config, variables, None)


def test_a_rule_for_chunks_is_refused_where_none_are_averaged(tmp_path, capsys):
  encoder = write_encoder(tmp_path / "cnn", kind="cnn")
  flags = [f"--encoder={encoder}", f"--input={tmp_path}", f"--output={tmp_path / 'x.npz'}"]
  assert embed.main([*flags, "--tail=keep"]) == 2
  assert "is that of one pass, no chunks are averaged; leave it out" in capsys.readouterr().err
