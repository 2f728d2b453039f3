"""New sounds to labels: the head of an export, thresholds, the command and its files."""

import csv
import dataclasses
import functools
import json
import os
import shutil

import jax
import numpy as np
import pytest
import soundfile
from evaluation import write_encoder
from preparing import run as prepare
from preparing import write_inline

from atst_jax.artifacts import export, folder, vectors
from atst_jax.artifacts.classifiers import thresholds
from atst_jax.artifacts.classifiers.head import Head, folded
from atst_jax.artifacts.classifiers.scoring import clip_of, head_of, score
from atst_jax.artifacts.model import load_model
from atst_jax.audio.decode import load_audio
from atst_jax.data.dataset import Dataset
from atst_jax.predict import labels_of, main, predict, predict_windows, thresholds_of
from atst_jax.prediction import job, rows
from atst_jax.util.errors import UserError
from data_pipeline.sources.inputs import list_sources

LABELS = ("ant", "bee, wild", "cat")
HEAD = Head(
  labels=LABELS,
  multi_label=True,
  activation="sigmoid",
  thresholds=(0.5, 0.4, 0.6),
  blocks=2,
  max_frames=101,
  crop="center",
  fill_frames=None,
  fill_db=None,
  about={"source": "a test"},
)


def write_classifier(output, encoder, **changes):
  """An export of the encoder with a drawn head, standardised so that labels come and go."""
  config, variables, _ = folder.read(str(encoder))
  head = dataclasses.replace(HEAD, **changes)
  rng = np.random.default_rng(1)
  size = 16 * head.blocks  # twice the tiny encoder's width
  weights = folded(
    rng.normal(0, 0.5, (size, 3)), rng.normal(0, 1, 3), rng.normal(0, 0.1, size), np.full(size, 0.5)
  )
  kept = {key: config[key] for key in ("encoder", "normalization", "chunk_frames", "tail")}
  export.write(
    str(output),
    {**variables, "head": weights},
    head=head,
    frontend=load_model(str(encoder)).frontend,
    provenance={"step": 1},
    **kept,
  )
  return str(output)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with an encoder, a classifier, and recordings: two sound ones, one damaged, one too
  short."""
  place = tmp_path_factory.mktemp("predict")
  write_encoder(place / "encoder")
  write_classifier(place / "classifier", place / "encoder")
  (place / "sounds" / "a").mkdir(parents=True)
  rng = np.random.default_rng(0)
  for name, samples in (("a/one", 30_000), ("two", 11_000), ("three", 9_000), ("short", 100)):
    soundfile.write(place / "sounds" / f"{name}.wav", rng.normal(0, 0.1, samples), 16000)
  (place / "sounds" / "damaged.wav").write_bytes(b"RIFF and nothing more")
  return place


@pytest.fixture(scope="module")
def model(place):
  return load_model(str(place / "classifier"))


@pytest.fixture(scope="module", autouse=True)
def opened_once():
  """Commands share models, and with them what is compiled."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("atst_jax.predict.load_model", functools.cache(load_model))
    yield


def command(place, output, *flags, sounds="sounds", code=0):
  """Runs the command and reads a CSV."""
  output = place / output
  arguments = [f"--model={place / 'classifier'}", f"--input={place / sounds}", "--workers=2"]
  assert main([*arguments, f"--output={output}", *flags]) == code
  if code or output.suffix != ".csv":
    return output
  with open(output, encoding="utf-8") as file:
    return list(csv.DictReader(file))


def _table(found):
  """{(id, start): {label: probability}}."""
  table: dict = {}
  for row in found:
    table.setdefault((row["id"], row["start"]), {})[row["label"]] = float(row["probability"])
  return table


@pytest.mark.parametrize("precision", [None, 0.7])
def test_thresholds_are_the_best_of_all(precision):
  """Against every threshold there is, with ties."""
  rng = np.random.default_rng(3)
  scores, targets = rng.integers(0, 8, (40, 4)) / 8, rng.integers(0, 2, (40, 4))
  targets[:, 3] = 0
  scores[:, 2], targets[:5, 2] = np.arange(40), 0  # the likeliest are right half of the time
  found = thresholds.choose(scores, targets, precision)
  assert found.without_clips == [3] and found.values[3] == 0.5
  for label in range(3):
    hits = targets[:, label].astype(bool)

    def measure(threshold, hits=hits, label=label):
      taken = scores[:, label] >= threshold
      share = (taken & hits).sum() / max(taken.sum(), 1)
      return 2 * (taken & hits).sum() / (taken.sum() + hits.sum()), share, taken.sum()

    every = [measure(value) for value in np.unique(scores[:, label])]
    f1, share, taken = measure(found.values[label])
    if precision is None:
      assert f1 == max(one[0] for one in every) and found.rule == "best F1"
    elif label in found.short:
      assert share == max(one[1] for one in every) < precision
    else:
      assert share >= precision and taken == max(one[2] for one in every if one[1] >= precision)


def test_a_head_travels_with_its_export(place, model, tmp_path):
  """The card, Orbax, another export, the encoder's hash; a head that was changed is found out."""
  assert labels_of(model) == LABELS and thresholds_of(model).tolist() == pytest.approx(
    HEAD.thresholds
  )
  assert head_of(model) == HEAD
  assert model.config["params_hash"] == load_model(str(place / "encoder")).config["params_hash"]
  export.export_again(
    str(place / "classifier"), str(tmp_path / "again"), artifacts=("params", "card")
  )
  again = load_model(str(tmp_path / "again"))
  np.testing.assert_array_equal(
    again.variables["head"]["kernel"], model.variables["head"]["kernel"]
  )
  card = (tmp_path / "again" / "README.md").read_text()
  assert "audio-classification" in card and "`bee, wild`" in card and "3 labels, several" in card
  config = json.loads((tmp_path / "again" / "config.json").read_text())
  for key, value in (
    ("labels", ["a", "a", "b"]),
    ("thresholds", [0.1]),
    ("activation", "eval"),
    ("blocks", 3),
    ("max_frames", 10**9),
    ("fill_frames", 5000),
    ("params_hash", "0"),
  ):
    changed = {**config, "head": {**config["head"], key: value}}
    (tmp_path / "again" / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=f"head.{key}|params_hash"):
      load_model(str(tmp_path / "again"))
  del config["head"]["params_hash"]
  (tmp_path / "again" / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="params_hash"):
    load_model(str(tmp_path / "again"))


def test_a_file_is_heard_as_its_clip_in_prepared_shards(place, model, tmp_path, monkeypatch):
  """To the bit; so scores are those of the evaluation."""
  write_inline(monkeypatch)
  output = tmp_path / "data"
  assert prepare(f"--input={place / 'sounds'}", f"--output={output}", "--frontend=atst") == 0
  clips = {
    clip.id: clip.mel.astype(np.float32) for clip in Dataset.load(str(output)).clips("train")
  }
  assert len(clips) == 3
  for id, mel in clips.items():
    audio = load_audio(str(place / "sounds" / id), 16000)
    heard = clip_of(HEAD, model.mel(audio, 16000, whole=True))
    np.testing.assert_array_equal(heard, clip_of(HEAD, mel))


def test_predict_is_the_head_of_the_central_part(model):
  audio = np.random.default_rng(4).normal(0, 0.1, 40_000).astype(np.float32)
  mel = model.mel(audio, 16000, whole=True)
  assert len(mel) == 251 > HEAD.max_frames
  mel = mel[75:176].astype(np.float16).astype(np.float32)
  weights = model.variables["head"]
  expected = model.embed([mel], num_blocks=2) @ weights["kernel"] + weights["bias"]
  found = predict([audio], model, sample_rate=16000)
  np.testing.assert_allclose(found, 1 / (1 + np.exp(-expected)), atol=1e-6)
  assert found.shape == (1, 3) and found.dtype == np.float32
  times, windows = predict_windows(audio, model, 16000, window=1, hop=0.5)
  assert times.tolist() == [[0, 1], [0.5, 1.5], [1, 2], [1.5, 2.5]]
  for (start, end), window in zip(times, windows, strict=True):
    part = audio[round(16000 * start) : round(16000 * end)]
    np.testing.assert_allclose(window, predict([part], model, 16000)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["traced", "onnx", pytest.param("jax", marks=pytest.mark.slow)])
def test_programs_hold_the_head(place, model, tmp_path, kind):
  """Of a sound of one chunk they say what `predict` does; the file says what the labels are."""
  for name in ("onnx", "onnxruntime") if kind == "onnx" else ():
    pytest.importorskip(name, reason=f"{name} is not installed: pip install -e .[onnx]")
  if kind == "traced":
    program = functools.partial(jax.jit(model.outputs), model.variables)
  else:
    artifacts = ("safetensors", kind)
    export.export_again(str(place / "classifier"), str(tmp_path / "again"), artifacts=artifacts)
    program = export.PROGRAMS[kind].load(str(tmp_path / "again" / f"encoder.{kind}"))
  audio = np.random.default_rng(5).normal(0, 0.1, 4000).astype(np.float32)
  mel = clip_of(HEAD, model.mel(audio, 16000))
  padded = np.pad(mel, ((0, 3), (0, 0)))[None]
  found = program(padded, np.array([len(mel)], np.int32), mel.max()[None])
  expected = predict([audio], model, 16000)
  np.testing.assert_allclose(found["probabilities"], expected, atol=1e-4)
  np.testing.assert_allclose(found["logits"], score(model, [mel]), atol=1e-3)
  scene = model.embed([mel], num_blocks=1)
  np.testing.assert_allclose(found["scene"], scene, rtol=1e-3, atol=1e-4)


def test_shorter_sounds_are_filled_and_longer_ones_cut_at_their_start():
  head = dataclasses.replace(HEAD, crop="start", fill_frames=101, fill_db=-90.0)
  mel = np.random.default_rng(0).normal(-30, 5, (150, 64)).astype(np.float32)
  np.testing.assert_allclose(clip_of(head, mel), mel[:101], atol=0.02)
  short = clip_of(head, mel[:7])
  assert short.shape == (101, 64) and (short[7:] == -90).all()


@pytest.mark.parametrize(
  "multi_label, selection, told",
  [
    (True, (None, None), [2, 0]),  # 0.45 is below the threshold 0.5 of the second
    (False, (None, None), [2]),
    (True, (2, None), [2, 1]),
    (True, (None, 0.42), [2, 1]),
    (True, (1, 0.95), []),
  ],
)
def test_which_labels_are_told(multi_label, selection, told):
  head = dataclasses.replace(HEAD, multi_label=multi_label, thresholds=(0.3, 0.5, 0.6))
  probabilities = np.array([0.4, 0.45, 0.9])
  logits = np.log(probabilities / (1 - probabilities))
  every = rows.Selection(np.arange(3), *selection)
  assert rows.select(head, every, logits, probabilities) == told
  one = every._replace(labels=np.array([0]))
  expected = [0] if 0 in told or selection[0] else []
  assert rows.select(head, one, logits, probabilities) == (
    expected if selection != (1, 0.95) else []
  )


def test_a_folder_becomes_a_table(place, model, capsys):
  """All labels of all sounds, and what could not be read, counted."""
  found = _table(command(place, "all.csv", "--min=0"))
  assert {id for id, _ in found} == {"a/one.wav", "two.wav", "three.wav"}
  told = capsys.readouterr()
  assert "left out damaged.wav: " in told.err and "left out short.wav: " in told.err
  assert "3 sounds, 1 longer than 1 s, of which the central 1 s were heard" in told.out
  assert "2 left out" in told.out
  for (id, _), labels in found.items():
    expected = predict([load_audio(str(place / "sounds" / id), 16000)], model, 16000)[0]
    assert [labels[name] for name in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)
  command(place, "all.csv", code=2)
  assert "exists; remove it" in capsys.readouterr().err
  chosen = command(place, "some.csv", "--labels=cat;bee, wild", "--top=1")
  assert len(chosen) == 3 and {row["label"] for row in chosen} <= {"cat", "bee, wild"}
  assert all(float(row["threshold"]) in (0.4, 0.6) for row in chosen)


def test_windows_and_segments_are_parts_of_the_recording(place, model, capsys):
  audio = load_audio(str(place / "sounds" / "a" / "one.wav"), 16000)
  found = command(place, "windows.csv", "--window=0.8", "--hop=0.5", "--min=0")
  found = {start: labels for (id, start), labels in _table(found).items() if id == "a/one.wav"}
  times, expected = predict_windows(audio, model, 16000, window=0.8, hop=0.5)
  assert [float(start) for start in found] == times[:, 0].tolist() == [0, 0.5, 1, 1.5]
  for labels, row in zip(found.values(), expected, strict=True):
    assert [labels[name] for name in LABELS] == pytest.approx(row.tolist(), abs=1e-5)
  (place / "segments.csv").write_text(
    "path,start,end\nsounds/a/one.wav,0.25,1\nsounds/a/one.wav,0.5,9\nsounds/two.wav,,\n"
  )
  found = command(place, "segments_out.csv", "--min=0", sounds="segments.csv")
  assert "beyond_end" in capsys.readouterr().err
  ends = {row["id"]: (row["start"], row["end"]) for row in found}
  assert ends == {"sounds/a/one.wav#0.25-1": ("0.25", "1.0"), "sounds/two.wav": ("0.0", "0.68")}
  row = _table(found)["sounds/a/one.wav#0.25-1", "0.25"]
  expected = predict([audio[4000:16000]], model, 16000)[0].tolist()
  assert [row[name] for name in LABELS] == pytest.approx(expected, abs=1e-5)


def test_other_forms_are_read_by_prepare(place):
  """A table of Raven and labels of Audacity come back as the same segments."""
  flags = ("--window=0.5", "--top=1")
  expected = command(place, "forms.csv", *flags)
  with open(command(place, "forms.jsonl", *flags), encoding="utf-8") as file:
    lines = [json.loads(line) for line in file]
  assert [(x["id"], x["start"], x["label"]) for x in lines] == [
    (x["id"], float(x["start"]), x["label"]) for x in expected
  ]
  raven = command(place, "forms.selections.txt", *flags)
  listed = list_sources(str(raven), root=str(place / "sounds")).sources
  told = {(s.path.split("sounds/")[1], s.start, s.labels) for s in listed}
  assert told == {(x["id"], float(x["start"]), (x["label"],)) for x in expected}
  one = command(place, "a.txt", *flags, sounds="sounds/a/one.wav")
  shutil.copy(place / "sounds" / "a" / "one.wav", place / "a.wav")
  segments = list_sources(str(one), root=str(place)).sources
  assert len(segments) == 4 and segments[1].start == 0.5
  os.remove(place / "a.wav")


def test_an_interrupted_job_goes_on(place, monkeypatch, capsys):
  """What was computed is taken from OUTPUT.part, and the file is the same."""
  monkeypatch.setattr(vectors, "PIECE_FILES", 2)
  whole = (place / "whole.csv", command(place, "whole.csv", "--min=0"))[0].read_bytes()
  calls, real = [], job.score

  def stop(model, clips):
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return real(model, clips)

  monkeypatch.setattr(job, "score", stop)
  command(place, "stopped.csv", "--min=0", code=75)
  assert "run the same command again" in capsys.readouterr().err
  monkeypatch.setattr(job, "score", lambda *args: (calls.append(1), real(*args))[1])
  command(place, "stopped.csv", "--min=0")
  assert (place / "stopped.csv").read_bytes() == whole and len(calls) == 4
  assert not (place / "stopped.csv.part").exists()


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--labels=ant,dog"], "does not know 'dog'"),
    (["--window=0.001"], "--window=0.001: must be"),
    (["--window=5"], "hears 1 s of a sound"),
    (["--hop=1"], "give --window"),
    (["--top=0"], "at least 1"),
    (["--min=2"], "between 0 and 1"),
    (["--output=x.wav"], "must end with .csv"),
    (["--output=x.txt"], "are of one recording"),
    (["--model=ENCODER"], "an encoder without a classifier"),
    (["--input=nowhere"], "nowhere does not exist"),
  ],
)
def test_a_mistake_is_one_sentence(place, capsys, monkeypatch, flags, message):
  monkeypatch.chdir(place)
  flags = [flag.replace("ENCODER", "encoder") for flag in flags]
  arguments = ["--model=classifier", "--input=sounds", "--output=no.csv", *flags]
  assert main(arguments) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("error:") == 1 and "Traceback" not in error
  assert not (place / "no.csv").exists()


def test_python_refuses_too(place, model):
  encoder = load_model(str(place / "encoder"))
  audio = np.zeros(8000, np.float32)
  for function in (lambda: predict([audio], encoder, 16000), lambda: score(encoder, [])):
    with pytest.raises(UserError, match="without a classifier"):
      function()
  with pytest.raises(UserError, match="pass \\[audio\\]"):
    predict(audio, model, 16000)
  with pytest.raises(UserError, match="one sound"):
    predict_windows(audio[None], model, 16000, window=0.5, hop=0.5)
