"""Probes as exported classifiers: what is written once, and what is said the second time."""

import json
import os

import numpy as np
import pytest

from atst_jax import export
from atst_jax.artifacts.classifiers import scoring
from atst_jax.artifacts.classifiers.scoring import head_of
from atst_jax.artifacts.model import load_model
from atst_jax.data.dataset import Dataset
from atst_jax.downstream.linear import job
from atst_jax.downstream.linear.exporting import take
from atst_jax.util.config import load_with_overrides
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log
from tests.evaluation import (
  evaluate,
  make_clips,
  model_of,
  resolved,
  write_clips,
  write_encoder,
  write_model,
)
from tests.finetuning import run as finetuned
from tests.finetuning import split_clips


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
  """An evaluation with one label for each sound, whose probe was exported: (folder, its flags)."""
  folder = tmp_path_factory.mktemp("probe")
  encoder = write_encoder(folder / "encoder")
  data = write_clips(folder / "data", make_clips(18, folds=2))
  flags = {"protocol": "exact", "seeds": "1", "export": str(folder / "classifier")}
  evaluate(encoder, data, folder / "run", **flags)
  return folder, (encoder, data, folder / "run"), flags


def test_one_label_has_no_thresholds_and_takes_no_precision(probe):
  folder, places, flags = probe
  head = head_of(load_model(str(folder / "classifier")))
  assert head.thresholds is None and "thresholds" not in head.about
  card = (folder / "classifier" / "README.md").read_text()
  assert "Of these the likeliest is given." in card and "hreshold" not in card
  with pytest.raises(UserError, match=r"export_precision=0\.9: chooses thresholds, and where"):
    evaluate(*places, **flags, export_precision="0.9")
  # an export of an earlier version had thresholds that nothing used
  path = folder / "classifier" / "config.json"
  config = json.loads(path.read_text())
  (folder / "old").mkdir()
  for name in os.listdir(folder / "classifier"):
    os.link(folder / "classifier" / name, folder / "old" / name)
  os.unlink(folder / "old" / "config.json")
  config["head"]["thresholds"] = [0.5] * 3
  (folder / "old" / "config.json").write_text(json.dumps(config))
  assert head_of(load_model(str(folder / "old"))) == head


@pytest.mark.parametrize("flag", ["export_precision=0.9", "export_clips=all"])
@pytest.mark.parametrize("variant", ["paper", "evar"])
def test_what_is_of_a_classifier_needs_one(flag, variant):
  flags = [f"--config.{flag}"]
  config = load_with_overrides(f"configs/linear.py:{variant}", flags)
  with pytest.raises(UserError, match=f"{flag} is of the classifier that --config.export=FOLDER"):
    take(config)
  settings, rest = take(load_with_overrides(f"configs/linear.py:{variant}", ["--config.export=x"]))
  assert settings.clips == ("all" if variant == "paper" else "division")
  assert not [key for key in rest if key.startswith("export")]


def test_the_same_evaluation_finds_its_classifier_there(probe, monkeypatch):
  """It says so and writes nothing; another one, or a folder of something else, is refused before
  anything is computed."""
  folder, (encoder, data, workdir), flags = probe
  before = os.stat(folder / "classifier" / "config.json").st_mtime_ns
  said = []
  with monkeypatch.context() as patch:
    patch.setattr(log, "info", lambda text, *values: said.append(text % values))
    evaluate(encoder, data, workdir, **flags)
  assert any("holds this evaluation's classifier, nothing to do" in line for line in said)
  assert os.stat(folder / "classifier" / "config.json").st_mtime_ns == before
  told = job.describe(resolved(encoder, data, **flags), str(workdir))
  assert told[-1].endswith("classifier, is there already")
  monkeypatch.setattr(job.evaluation, "frozen", lambda *_, **__: pytest.fail("computed"))
  for change in ({"export_clips": "division"}, {"export": encoder}, {"export": data}):
    with pytest.raises(UserError, match="exists and is not the classifier of this evaluation"):
      evaluate(encoder, data, workdir, **{**flags, **change})


def test_a_classifier_hears_what_its_evaluation_heard(probe, capsys):
  folder, _, _ = probe
  flags = [f"--encoder={folder / 'classifier'}", f"--output={folder / 'no'}"]
  for length in ("whole", "2"):
    assert export.main([*flags, f"--length={length}"]) == 2
    error = capsys.readouterr().err
    assert f"--length={length}: a classifier hears of a longer sound what its" in error
  assert not (folder / "no").exists()


def test_the_card_says_what_programs_leave_to_their_caller(probe, capsys):
  """Cropping and filling; and what weights of 8 bits cost, as it was measured."""
  pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: .[onnx]")
  pytest.importorskip("onnx", reason="onnx is not installed: .[onnx]")
  folder, _, _ = probe
  flags = [f"--encoder={folder / 'classifier'}", f"--output={folder / 'small'}"]
  assert export.main([*flags, "--artifacts=safetensors,card,onnx_int8"]) == 0
  card = (folder / "small" / "README.md").read_text()
  frames = head_of(load_model(str(folder / "small"))).max_frames
  assert "`encoder_int8.onnx` give what the head says of the log-mel as it comes. Cut" in card
  assert f"its central {frames} frames, and round it to float16" in card
  assert "Longer than a chunk of 32 frames" in card
  (line,) = [line for line in card.splitlines() if "a quarter of the bytes" in line]
  assert "vectors differ by" in line and "of 8 sounds have the same likeliest label" in line
  assert np.isfinite(float(line.split("differ by ")[1].split(" %")[0]))


def test_whole_clips_are_exported_as_whole_clips(tmp_path):
  """Of kinds that were trained on them in one pass, though vectors of sounds are of chunks."""
  model = model_of("conformer.py:small")  # chunks of 32 frames; clips have 20 to 80
  encoder = write_model(tmp_path / "encoder", model)
  data = write_clips(tmp_path / "data", split_clips(30))
  _, results = finetuned(encoder, data, tmp_path / "run", epochs="1", warmup_epochs="0")
  flags = [f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'classifier'}"]
  assert export.main(flags) == 0
  exported = load_model(str(tmp_path / "classifier"))
  assert exported.chunk_frames == head_of(exported).max_frames > model.chunk_frames
  mels = [clip.mel.astype(np.float32) for clip in Dataset.load(data).clips("test")]
  found = scoring.score(exported, mels)
  with np.load(tmp_path / "run" / results["rows"][0]["test"]["file"]) as arrays:
    np.testing.assert_array_equal(found.argmax(1), arrays["predicted"][0])
  with pytest.raises(UserError, match="tail=keep is for ATST's transformer"):
    finetuned(encoder, data, tmp_path / "no", tail="keep")
