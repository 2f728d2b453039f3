"""`predict`: recordings, segments and windows to files of labels."""

import csv
import dataclasses
import functools
import json
import os
import shutil

import numpy as np
import pytest
import soundfile

from atst_jax.artifacts import export
from atst_jax.artifacts.collection import pieces
from atst_jax.artifacts.model import Model, load_model
from atst_jax.audio.decode import load_audio
from atst_jax.predict import main, predict, predict_windows, thresholds_of
from atst_jax.prediction import job, rows, sounds
from atst_jax.util.errors import UserError
from data_pipeline.sources.inputs import list_sources
from tests.classifiers import HEAD, LABELS, write_place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return write_place(tmp_path_factory.mktemp("predict"))


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
  thresholds = (0.3, 0.5, 0.6) if multi_label else None
  head = dataclasses.replace(HEAD, multi_label=multi_label, thresholds=thresholds)
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
  account = json.loads((place / "all.csv.json").read_text())
  assert account["params_hash"] == model.config["params_hash"] and account["dtype"] == "float32"
  assert [id for id, _ in account["rejected"]] == ["damaged.wav", "short.wav"]
  command(place, "all.csv", "--min=0")  # the same command finds nothing to do
  assert "all.csv: is complete, nothing to do" in capsys.readouterr().out
  command(place, "all.csv", code=2)
  assert "is not what this command makes; remove it" in capsys.readouterr().err
  with open(place / "all.csv", "a", encoding="utf-8") as file:  # a person has written into it
    file.write("x\n")
  command(place, "all.csv", "--min=0", code=2)
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
  assert ends == {"sounds/a/one.wav#0.25-1": ("0.25", "1.0"), "sounds/two.wav": ("0.0", "0.688")}
  row = _table(found)["sounds/a/one.wav#0.25-1", "0.25"]
  expected = predict([audio[4000:16000]], model, 16000)[0].tolist()
  assert [row[name] for name in LABELS] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("flags", [(), ("--window=0.5", "--hop=0.25")])
def test_long_segments_are_read_on_their_own(place, flags, monkeypatch, capsys):
  """They are never held as samples, and give the rows of those that are. Of Vorbis, too, where
  nothing is sought."""
  audio = load_audio(str(place / "sounds" / "a" / "one.wav"), 16000)
  (place / "long").mkdir(exist_ok=True)
  soundfile.write(place / "long" / "x.wav", np.tile(audio, 3), 16000, subtype="FLOAT")
  soundfile.write(place / "long" / "x.ogg", np.tile(audio, 3), 16000)
  (place / "long.csv").write_text(
    "path,start,end\nlong/x.wav,2.25,4.5\nlong/x.wav,5,99\nlong/x.ogg,1.5,\n"
  )
  name = f"long{len(flags)}"
  expected = command(place, f"{name}.csv", "--min=0", *flags, sounds="long.csv")
  assert "x.wav#5-99: beyond_end (it ends at 99 s, the file at 5.62 s)" in capsys.readouterr().err
  monkeypatch.setattr(sounds, "HELD_SECONDS", 0.0)
  monkeypatch.setattr(sounds, "read_segments", lambda *_, **__: pytest.fail("held"))
  found = command(place, f"{name}_streamed.csv", "--min=0", *flags, sounds="long.csv")
  assert "x.wav#5-99: beyond_end (it ends at 99 s, the file at 5.62 s)" in capsys.readouterr().err
  assert len(found) == len(expected) >= 6
  assert _table(found).keys() == _table(expected).keys()
  for key, labels in _table(found).items():
    assert labels == pytest.approx(_table(expected)[key], abs=1e-5)


def test_processes_share_the_recordings_and_types_may_be_chosen(place, monkeypatch, capsys):
  """Each computes its share, the last one joins; the same bytes as of one process. In bfloat16
  probabilities are near, and not the same."""
  monkeypatch.setattr(pieces, "PIECE_FILES", 1)
  flags = ("--min=0", "--dtype=bfloat16")
  rough = _table(command(place, "rough.csv", *flags))
  share = lambda number: command(
    place, "shared.csv", *flags, "--num_processes=2", f"--process_id={number}"
  )
  with pytest.raises(FileNotFoundError):
    share(1)
  assert "process 1 of 2 has done its share; 3 of 5 pieces are left" in capsys.readouterr().out
  share(0)
  assert (place / "shared.csv").read_bytes() == (place / "rough.csv").read_bytes()
  share(1)
  assert "nothing to do" in capsys.readouterr().out and not (place / "shared.csv.part").exists()
  exact = _table(command(place, "exact.csv", "--min=0"))
  apart = [
    abs(value - exact[key][name]) for key, row in rough.items() for name, value in row.items()
  ]
  assert rough.keys() == exact.keys() and 1e-5 < max(apart) < 0.1


def test_one_label_for_each_sound_has_no_threshold(place, model, monkeypatch):
  """The likeliest is told, in every form."""
  weights = model.variables
  head = dataclasses.replace(HEAD, multi_label=False, thresholds=None, activation="softmax")
  config = {**model.config, "head": head.to_json() | {"params_hash": "h"}}
  monkeypatch.setattr("atst_jax.predict.load_model", lambda *_, **__: Model(config, weights, None))
  found = command(place, "one.csv")
  assert [row["threshold"] for row in found] == [""] * 3 and {row["label"] for row in found} <= {
    *LABELS
  }
  with open(command(place, "one.selections.txt"), encoding="utf-8") as file:
    assert [line.rstrip("\n").split("\t")[-1] for line in file] == ["Threshold", "", "", ""]
  with open(command(place, "one.jsonl"), encoding="utf-8") as file:
    assert [json.loads(line)["threshold"] for line in file] == [None] * 3
  with pytest.raises(UserError, match="it gives each sound its likeliest label"):
    thresholds_of(Model(config, weights, None))


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
  monkeypatch.setattr(pieces, "PIECE_FILES", 2)
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
    (["--encoder=classifier"], "the flag is --model here"),
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


@pytest.mark.parametrize("held", [60.0, 0.0])
def test_channels_become_one_as_in_the_training_set(place, model, held, monkeypatch, capsys):
  """Of whole files, and of segments that are held or read on their own; those that cancel each
  other in the mean are told by name, as is another scale."""
  monkeypatch.setattr(sounds, "HELD_SECONDS", held)
  (place / "stereo").mkdir(exist_ok=True)
  sound = load_audio(str(place / "sounds" / "two.wav"), 16000)
  two = np.stack([0.5 * sound, -0.5 * sound], 1)
  soundfile.write(place / "stereo" / "two.wav", two, 16000, subtype="FLOAT")
  soundfile.write(place / "stereo" / "loud.wav", 32768 * sound, 16000, subtype="FLOAT")
  (place / "stereo.csv").write_text(
    "path,start,end\nstereo/two.wav,,\nstereo/two.wav,0.1,0.5\nstereo/loud.wav,0,0.5\n"
  )
  name, flags = f"stereo{held:g}", ("--min=0", "--labels=ant")
  found = command(place, f"{name}.csv", *flags, "--channels=loudest", sounds="stereo.csv")
  told = capsys.readouterr().err
  assert "1 files whose samples go far beyond full scale" in told and "loud.wav: up to " in told
  assert "cancel" not in told
  expected = predict([0.5 * sound, 0.5 * sound[1600:8000]], model, 16000)[:, 0]
  values = {row["id"]: float(row["probability"]) for row in found}
  assert values["stereo/two.wav"] == pytest.approx(expected[0], abs=1e-5)
  assert values["stereo/two.wav#0.1-0.5"] == pytest.approx(expected[1], abs=1e-5)
  assert json.loads((place / f"{name}.csv.json").read_text())["channels"] == "loudest"
  export.export_again(str(place / "classifier"), str(place / name), channels="loudest")
  again = command(place, f"{name}_own.csv", f"--model={place / name}", *flags, sounds="stereo.csv")
  assert again == found and "cancel" not in capsys.readouterr().err
  mean = command(place, f"{name}_mean.csv", *flags, sounds="stereo.csv")
  told = capsys.readouterr().err
  assert mean != found and "1 files whose channels cancel each other" in told
  assert "stereo/two.wav: 120 dB" in told


def test_sounds_without_a_label_are_counted(place, capsys):
  command(place, "none.csv", "--min=1")
  account = json.loads((place / "none.csv.json").read_text())
  assert account["unlabelled"] == account["sounds"] == 3 and "silent" not in account
  assert "3 of them without a label" in capsys.readouterr().out
