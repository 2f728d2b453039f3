"""Released PyTorch files: read whole or refused with a reason, run like the original, written back
unchanged."""

import jax
import numpy as np
import pytest

from atst_jax.artifacts import folder
from atst_jax.artifacts.model import load_model
from atst_jax.artifacts.torch_files import to_variables
from atst_jax.audio.frontend import FRONTENDS, log_mel
from tests.evaluation import write_encoder
from tests.released_files import backbone, convert, dino, lightning, torch, torch_method

NORMALIZATION = {"kind": "min_max", "top_db": 80.0, "low": -79.6482, "high": 50.6842}


@pytest.mark.parametrize("layout, chunk", [(dino, 601), (lightning, 101)])
def test_converted_atst_runs_like_the_original(tmp_path, layout, chunk):
  """From the waveform: front-end, clamp, scale, every block's CLS and mean. Seen red with the head
  width halved."""
  net = backbone()
  torch.save(layout(net), tmp_path / "released.ckpt")
  assert convert(tmp_path / "released.ckpt", tmp_path / "encoder", "--heads=2") == 0
  model = load_model(str(tmp_path / "encoder"))
  assert model.frontend == FRONTENDS["audiossl"] and model.chunk_frames == chunk
  assert model.config["normalization"] == NORMALIZATION and model.config["tail"] == "released"
  assert model.max_seconds == 12.0
  audio = np.random.default_rng(0).normal(0, 0.1, 15_200).astype(np.float32)  # 96 frames
  mel = log_mel(audio, FRONTENDS["audiossl"])
  x = 2 * (np.maximum(mel, mel.max() - 80) + 79.6482) / (50.6842 + 79.6482) - 1
  with torch.no_grad():
    tokens = net.tokens(torch.from_numpy(x[None]).float()).numpy()[:, 0]
  expected = np.concatenate([tokens[:, 0].ravel(), tokens[:, 1:].mean(1).ravel()])
  ours = model.embed([model.log_mel(audio, 16000)])[0]
  assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("blocks, width", [(2, 1056), (3, 48)])
def test_converted_byola_runs_like_the_original(tmp_path, capsys, blocks, width):
  """Both versions, and a clip longer than a chunk of the embedder's padding; written back, every
  tensor is the same bit for bit."""
  torch.manual_seed(0)
  net = torch_method.AudioNTT(blocks, width, 48)
  for _ in range(3):  # running statistics of some data
    net(torch.randn(4, 96, 64) + 1)
  torch.save(net.state_dict(), tmp_path / "byola.pth")
  flags = [tmp_path / "byola.pth", tmp_path / "encoder", "--mean=-9.66", "--std=4.722"]
  if blocks == 3:  # v1's files were made with two front-ends
    assert convert(*flags) == 2 and "state --frontend=byola (librosa" in capsys.readouterr().err
    flags.append("--frontend=byola")
  assert convert(*flags) == 0
  model = load_model(str(tmp_path / "encoder"))
  assert model.frontend == FRONTENDS["byola"] and model.max_seconds is None
  audio = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
  power = 10 ** (log_mel(audio, FRONTENDS["byola"]).astype(np.float64) / 10)
  x = (np.log(power + 2.0**-23) + 9.66) / 4.722
  with torch.no_grad():
    expected = net.eval()(torch.from_numpy(x[None]).float()).numpy()[0]
  ours = model.embed([model.log_mel(audio, 16000)])[0]
  assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected)
  assert convert(tmp_path / "encoder", tmp_path / "back.pth") == 0
  back = torch_method.AudioNTT(blocks, width, 48)
  back.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True))
  for (name, a), (_, b) in zip(net.state_dict().items(), back.state_dict().items(), strict=True):
    assert name.endswith("tracked") or torch.equal(a, b), name


@pytest.mark.parametrize("layout", ["dino", "lightning"])
def test_round_trip_of_atst(tmp_path, layout):
  """There and back: every tensor bit for bit, and the file converts to the same export again."""
  net = backbone()
  torch.save(dino(net), tmp_path / "released.ckpt")
  assert convert(tmp_path / "released.ckpt", tmp_path / "encoder", "--heads=2") == 0
  assert convert(tmp_path / "encoder", tmp_path / "back.pth", f"--layout={layout}") == 0
  # heads and the rest are in the file
  assert convert(tmp_path / "back.pth", tmp_path / "again") == 0
  first, again = (folder.read(str(tmp_path / name)) for name in ("encoder", "again"))
  jax.tree.map(np.testing.assert_array_equal, first[1], again[1])
  assert {k: v for k, v in first[0].items() if k != "provenance"} == {
    k: v for k, v in again[0].items() if k != "provenance"
  }
  content = torch.load(tmp_path / "back.pth", weights_only=False)
  state, prefix = (
    (content["teacher"], "module.backbone.")
    if layout == "dino"
    else (content["state_dict"], "model.teacher.encoder.")
  )
  loaded = backbone(seed=1)
  state = {k.removeprefix(prefix): x for k, x in state.items()}
  assert state.pop("mask_embed").shape == (1, 1, 64)
  loaded.load_state_dict(state)  # strict
  for a, b in zip(net.parameters(), loaded.parameters(), strict=True):
    assert torch.equal(a, b)


def test_what_the_released_layouts_have_no_place_for_comes_back_too(tmp_path, capsys):
  """Front-end, normalisation, chunks and channels of this project's own; and the notes that
  released loaders differ."""
  encoder = write_encoder(tmp_path / "encoder")
  config = (tmp_path / "encoder" / "config.json").read_text()
  told = config.replace('"channels": "mean"', '"channels": "loudest"')
  (tmp_path / "encoder" / "config.json").write_text(told)
  assert convert(encoder, tmp_path / "mine.pth") == 0
  notes = capsys.readouterr().err
  assert "compute the front-end 'audiossl'" in notes and "normalise by" in notes
  assert convert(tmp_path / "mine.pth", tmp_path / "again") == 0
  first, again = (folder.read(str(path))[0] for path in (encoder, tmp_path / "again"))
  for key in ("frontend", "normalization", "chunk_frames", "tail", "max_seconds", "params_hash"):
    assert first[key] == again[key]
  assert first["channels"] == again["channels"] == "loudest"
  assert {**first["encoder"], "drop_path": 0.1, "max_frames": 33} == again["encoder"]


def test_weights_of_other_precision_and_kind(tmp_path):
  """bfloat16, and parameters instead of plain tensors."""
  net = torch_method.AudioNTT(2, 1056, 16)
  half = {k: x.bfloat16() if x.is_floating_point() else x for k, x in net.state_dict().items()}
  torch.save(half, tmp_path / "half.pth")
  torch.save(
    {**net.state_dict(), "fc.0.bias": torch.nn.Parameter(half["fc.0.bias"].float())},
    tmp_path / "kind.pth",
  )
  for name in ("half", "kind"):
    assert convert(tmp_path / f"{name}.pth", tmp_path / name, "--mean=0", "--std=1") == 0
  variables = folder.read(str(tmp_path / "half"))[1]
  np.testing.assert_array_equal(
    variables["params"]["fc1"]["bias"], half["fc.0.bias"].float().numpy()
  )


def test_golden_checkpoints(shared, golden, tmp_path):
  """The released layouts hold the golden weights; a waveform's vector is that of the original
  encoder on its golden spectrogram, within 1e-4."""
  files = {
    "atst_lightning.ckpt": ["--heads=3"],
    "atst_dino.ckpt": ["--heads=3"],
    "byola_v2.pth": ["--mean=0", "--std=1"],
  }
  for name, flags in files.items():
    assert convert(shared / "golden" / name, tmp_path / name, *flags) == 0
  weights = {
    k.removeprefix("before.teacher.encoder."): v
    for k, v in golden("atst_step").items()
    if k.startswith("before.teacher.encoder.")
  }
  for name in ("atst_lightning.ckpt", "atst_dino.ckpt"):
    model = load_model(str(tmp_path / name))
    expected = to_variables(weights, model.encoder.torch_names())
    jax.tree.map(np.testing.assert_array_equal, model.variables, expected)
  after = {
    k.removeprefix("after."): v
    for k, v in golden("byola_encoder").items()
    if k.startswith("after.")
  }
  model = load_model(str(tmp_path / "byola_v2.pth"))
  expected = to_variables(after, model.encoder.torch_names())
  jax.tree.map(np.testing.assert_array_equal, model.variables, expected)
  model, arrays = load_model(str(tmp_path / "atst_dino.ckpt")), golden("frontend")
  net = torch_method.Transformer(48, 3, 3, positions=250)
  del weights["mask_embed"]
  net.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
  for clip in range(3):
    norm = arrays[f"released_norm_{clip}"][:601]
    with torch.no_grad():
      tokens = net.tokens(torch.from_numpy(norm[None])).numpy()[:, 0]
    expected = np.concatenate([tokens[:, 0].ravel(), tokens[:, 1:].mean(1).ravel()])
    wave = arrays[f"wave_{clip}"]
    ours = model.embed([model.log_mel(wave, 16000)[:601]])[0]
    assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected), clip
