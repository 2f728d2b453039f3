"""What an exported encoder is given and carries: rates, partial batches, its own front-end; and
damaged folders."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
import soundfile

from atst_jax.artifacts import export, folder
from atst_jax.artifacts.embedding import get_scene_embeddings, get_timestamp_embeddings
from atst_jax.artifacts.model import load_model
from atst_jax.audio import frontend
from atst_jax.audio.decode import load_audio
from atst_jax.audio.frontend import FRONTENDS, log_mel
from atst_jax.models.chunking import CPU
from atst_jax.util.errors import UserError


def noise(samples=6000, seed=0):
  return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def test_fault_17_the_rate_has_to_be_stated(model):
  for function in (get_scene_embeddings, get_timestamp_embeddings):
    with pytest.raises(TypeError, match="sample_rate"):
      function([noise()], model)
    for rate in (None, 0, -16000, float("nan"), float("inf"), "16000", True, 16):
      with pytest.raises(UserError, match=r"sample_rate=.*: state the rate of the audio in Hz"):
        function([noise()], model, rate)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_fault_17_other_rates_are_resampled_whatever_reads_them(model, tmp_path, rate):
  """A file's rate stands in its header; samples come with theirs: both give the same vector."""
  tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate).astype(np.float32)
  soundfile.write(tmp_path / "a.wav", tone, rate, subtype="FLOAT")
  mel = model.log_mel(load_audio(str(tmp_path / "a.wav"), 16000), 16000)
  np.testing.assert_allclose(mel, model.log_mel(tone, rate), atol=1e-3)
  assert (
    mel.mean(0).argmax()
    == model.log_mel(0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000), 16000)
    .mean(0)
    .argmax()
  )


def test_whole_numbers_are_no_samples(model):
  """Of 16 bits they would be 90 dB too loud."""
  with pytest.raises(UserError, match="audio of int16: expected floats"):
    get_scene_embeddings([(noise() * 32767).astype(np.int16)], model, 16000)


def test_floats_of_another_scale_are_refused(model):
  """Those of 16 bits, not divided; floats may overshoot full scale."""
  for function in (get_scene_embeddings, get_timestamp_embeddings):
    with pytest.raises(UserError, match=r"samples up to \d+.*: expected floats of full scale 1\.0"):
      function([noise() * 32768], model, 16000)
    function([noise() * 32], model, 16000)


def test_fault_18_silence_has_a_finite_vector(model):
  assert np.isfinite(get_scene_embeddings([np.zeros(6000)], model, 16000)).all()


def test_fault_30_every_clip_of_a_partial_batch_once(model):
  """One more than fills a batch, of several lengths: in their order, each as if it were alone."""
  mels = [log_mel(noise(1600 + 400 * (i % 5), i), FRONTENDS["atst"]) for i in range(CPU.rows + 1)]
  vectors = model.embed(mels)
  assert len(vectors) == CPU.rows + 1
  for i in (0, 4, CPU.rows - 1, CPU.rows):
    np.testing.assert_allclose(vectors[i], model.embed([mels[i]])[0], atol=1e-5)
  assert len({vector.tobytes() for vector in vectors}) == CPU.rows + 1


def test_fault_40_the_front_end_travels_with_the_export(encoder, tmp_path, monkeypatch):
  """Its filters are those of the file, whatever a library here would compute."""
  monkeypatch.setattr(frontend, "mel_filters", None)
  model = load_model(encoder)
  mel = model.log_mel(noise(), 16000)
  copy = shutil.copytree(encoder, tmp_path / "copy")
  filters = np.load(copy / "mel_filters.npy", allow_pickle=False)
  np.save(copy / "mel_filters.npy", 2 * filters)
  np.testing.assert_allclose(
    load_model(str(copy)).log_mel(noise(), 16000), mel + 10 * np.log10(2), atol=1e-4
  )


def _edit(folder, change):
  path = os.path.join(folder, "config.json")
  with open(path, encoding="utf-8") as file:
    config = json.load(file)
  change(config)
  with open(path, "w", encoding="utf-8") as file:
    json.dump(config, file)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda c: c.clear(), "KeyError"),
    (lambda c: c["encoder"].update(kind="cnnn"), "KeyError: 'cnnn'"),
    (lambda c: c["encoder"].update(width=2**40), "encoder.width is 1099511627776"),
    (
      lambda c: c["encoder"].update(width=16),
      r"\d+ arrays are not those of the encoder in config.json, the first is",
    ),
    (
      lambda c: c["encoder"].update(depth=3),
      r"arrays are not those of the encoder .*: absent, not ",
    ),
    (lambda c: c["encoder"].update(width=2**15), "an encoder of .* bytes in"),
    (lambda c: c["encoder"].update(heads=3), "not divisible by encoder.heads 3"),
    (lambda c: c["encoder"].update(drop_path=float("nan")), "drop_path is nan"),
    (lambda c: c["encoder"].pop("max_frames"), "needs width, depth"),
    (lambda c: c["normalization"].update(low=40), "divides by nothing"),
    (lambda c: c["normalization"].update(kind="standard"), "needs mean, std"),
    (lambda c: c.update(chunk_frames=2**40), "do not fit the encoder"),
    (lambda c: c.update(chunk_frames="32"), "chunk_frames '32' do not fit"),
    (lambda c: c.update(provenance=[]), "provenance is a list"),
    (lambda c: c.update(channels=2), "channels is a int"),
    (lambda c: c.update(channels="left"), "--channels=left: choose mean, loudest, or"),
    (lambda c: c.update(frontend=[1]), "front-end is a list"),
  ],
)
def test_a_config_that_does_not_describe_the_export(encoder, tmp_path, change, message):
  copy = shutil.copytree(encoder, tmp_path / "copy")
  _edit(copy, change)
  with pytest.raises(UserError, match=message):
    folder.read(str(copy))


def test_folders_that_are_no_exports_say_what_they_are(encoder, tmp_path):
  """A run, the weights alone, and an export without them."""
  for config, remedy in (
    ({"job": "pretrain"}, r"`python -m atst_jax\.export --workdir=.* --output=…` makes one"),
    ({"job": "linear", "encoder": "e/mine"}, "give the encoder that it evaluated, e/mine, or"),
  ):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
      UserError, match=rf"is the workdir of a run \(\w+\), not an export; {remedy}"
    ):
      load_model(str(tmp_path))
  with pytest.raises(UserError, match=f"model.safetensors is a file; give the folder, {encoder}$"):
    load_model(f"{encoder}/model.safetensors")
  copy = shutil.copytree(encoder, tmp_path / "copy")
  os.remove(copy / "model.safetensors")
  with pytest.raises(UserError, match=r"copy lacks model\.safetensors; export it again"):
    load_model(str(copy))


@pytest.mark.parametrize("weight", [np.nan, -1.0, 1e38])
def test_filters_that_cannot_be(encoder, tmp_path, weight):
  """Found by fuzzing: the last overflowed in the spectrogram."""
  copy = shutil.copytree(encoder, tmp_path / "copy")
  filters = np.load(copy / "mel_filters.npy", allow_pickle=False)
  filters[100, 7] = weight
  np.save(copy / "mel_filters.npy", filters)
  with pytest.raises(UserError, match=r"mel_filters\.npy holds NaN, or weights beyond 0 to 1000"):
    folder.read(str(copy))


def test_filters_that_claim_more_than_their_file_holds(encoder, tmp_path):
  copy = shutil.copytree(encoder, tmp_path / "copy")
  data = (copy / "mel_filters.npy").read_bytes()
  for claimed, message in (
    (b"(513, 9999999999), ", "no .npy file"),
    (b"(64, 513), ", "no float32 array of shape"),
  ):
    header = data[:128].replace(b"(513, 64), ", claimed)
    (copy / "mel_filters.npy").write_bytes(
      header[: 128 - len(claimed) + 11].ljust(127) + b"\n" + data[128:]
    )
    with pytest.raises(UserError, match=f"damaged export .*({message})"):
      folder.read(str(copy))
  # found by fuzzing: numpy reads headers as Python
  for place, value in ((53, b"\xff" * 8), (10, b"((((((((")):
    broken = bytearray(data)
    broken[place : place + len(value)] = value
    (copy / "mel_filters.npy").write_bytes(broken)
    with pytest.raises(UserError, match="damaged export"):
      folder.read(str(copy))
  np.save(copy / "mel_filters.npy", np.full((513, 64), np.nan, np.float32))
  with pytest.raises(UserError, match="holds NaN"):
    folder.read(str(copy))
  np.save(copy / "mel_filters.npy", np.array([{}], object), allow_pickle=True)
  with pytest.raises(UserError, match="damaged export"):
    folder.read(str(copy))


def test_a_temporary_folder_of_somebody_else_is_left_alone(tmp_path, encoder):
  """Process ids repeat, on other hosts and in containers."""
  other = tmp_path / f"e.tmp-{os.getpid()}"
  other.mkdir()
  config, variables, _ = folder.read(encoder)
  keep = {
    key: config[key] for key in ("encoder", "normalization", "chunk_frames", "tail", "provenance")
  }
  export.write(str(tmp_path / "e"), variables, frontend=FRONTENDS["atst"], **keep)
  assert sorted(os.listdir(tmp_path)) == ["e", other.name]
  assert jax.tree.structure(folder.read(str(tmp_path / "e"))[1]) == jax.tree.structure(variables)
