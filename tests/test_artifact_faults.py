"""Commands that use an export, where a name, a length or an export is odd: what they say, and that
they go on."""

import functools
import io
import json
import math
import os

import numpy as np
import pytest
import soundfile

from atst_jax import embed, predict, search
from atst_jax.artifacts import export, folder, model_card
from atst_jax.artifacts.batches import tail_of
from atst_jax.artifacts.classifiers.card_section import card_section
from atst_jax.artifacts.classifiers.scoring import head_of
from atst_jax.artifacts.collection import flags, pieces, sounds, vectors
from atst_jax.artifacts.collection import job as embedding
from atst_jax.artifacts.collection.listening import Listener
from atst_jax.artifacts.model import Model, load_model
from atst_jax.artifacts.programs import onnx_graph
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.models.audiontt import AudioNTT
from atst_jax.prediction import job, rows
from atst_jax.prediction.sounds import Part, Recording, check_length
from atst_jax.util.errors import UserError
from tests.classifiers import write_classifier
from tests.evaluation import noise, write_encoder

ODD = os.fsdecode(b"b\xff.wav")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """An encoder and a classifier whose frames are not centred, and two recordings."""
  place = tmp_path_factory.mktemp("odd")
  write_encoder(place / "encoder", frontend="cola")
  write_encoder(place / "cnn", kind="cnn")
  write_classifier(place / "classifier", place / "encoder")
  (place / "sounds").mkdir()
  soundfile.write(place / "sounds" / "long.wav", noise(1.5), 16000)
  soundfile.write(place / "sounds" / "short.wav", noise(0.03), 16000)
  return place


@pytest.fixture(scope="module")
def classifier(place):
  return load_model(str(place / "classifier"))


def test_a_recording_too_short_for_one_window_is_left_out(place, classifier):
  """Of as many samples as the front-end needs, and fewer than the encoder does."""
  path, asked = str(place / "sounds" / "short.wav"), sounds.Rows(sounds.WINDOWS, 0.5, 0.5)
  assert classifier.frontend.min_samples < 480 < classifier.min_samples
  (found,) = sounds.file_windows(classifier, Listener(16000, "mean"), path, asked)
  assert found.mel == "a clip of 1 frames; this encoder needs at least 4"


def test_folders_named_as_splits_are_folders(tmp_path):
  """`embed` and `predict` know no splits and no classes: nothing that only `prepare` cares for is
  refused, in a table neither."""
  names = ["New York/a.wav", "newyork/a.wav", "other/a.wav", "test/a.wav", "train/a.wav"]
  for name in names:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
  assert [id for id, _ in flags.files_of(str(tmp_path))] == names
  assert [one.parts[0].id for one in predict._recordings(str(tmp_path))] == names
  table = tmp_path / "table.csv"
  table.write_text('path,label\ntrain/a.wav,"bee, wild"\ntest/a.wav,Bee\nother/a.wav,bee\n')
  for found in (flags.files_of(str(table)), predict._recordings(str(table))):
    assert len(found) == 3


def test_a_path_in_a_table_of_raven_is_found_again():
  path = "/a  b/ two  spaces.wav"
  file, row = io.StringIO(), rows.Row(path, "x", 0.0, 1.0, "a  label", 0.5, None)
  odd = row._replace(path="/a\tb\n.wav")
  rows.write("x.selections.txt", file, [row, odd], frontend=FRONTENDS["atst"], paths=[path, odd[0]])
  first, *lines = (line.split("\t") for line in file.getvalue().splitlines())
  told = [(line[first.index("Begin Path")], line[first.index("Annotation")]) for line in lines]
  assert told == [(path, "a label"), ("/a b .wav", "a label")]


def test_a_name_that_is_not_utf8_is_escaped(place, classifier, tmp_path, monkeypatch):
  """As ids of folders are: in every form of output, and in the reasons of what is left out."""
  monkeypatch.setattr(predict, "load_model", lambda *_, **__: classifier)
  (tmp_path / "in").mkdir()
  odd = str(tmp_path / "in" / ODD)
  with open(place / "sounds" / "long.wav", "rb") as file, open(odd, "wb") as copy:
    copy.write(file.read())
  (tmp_path / "in" / f"broken{ODD}").write_text("no audio")
  asked = ["--model=any", "--workers=1", "--min=0"]
  sources = {"x.csv": odd, "x.selections.txt": odd, "y.jsonl": str(tmp_path / "in")}
  for name, source in sources.items():
    assert predict.main([*asked, f"--input={source}", f"--output={tmp_path}/{name}"]) == 0
    assert r"b\xff.wav" in (tmp_path / name).read_text(encoding="utf-8").replace("\\\\", "\\")
  (left_out,) = json.loads((tmp_path / "y.jsonl.json").read_text(encoding="utf-8"))["rejected"]
  assert left_out[0] == r"brokenb\xff.wav"
  assert flags.files_of(odd) == [(r"b\xff.wav", odd)]
  usable = embedding._Usable(["x"], iter([[sounds.Sound(f"no {ODD}")]]), lambda: None)
  assert not list(usable) and usable.rejected == [("x", r"no b\xff.wav")]


def test_the_end_of_a_whole_file_is_its_last_sample(place, classifier, tmp_path, monkeypatch):
  """Where frames are not centred, too; and what a classifier hears is as long as its frames."""
  monkeypatch.setattr(predict, "load_model", lambda *_, **__: classifier)
  output = tmp_path / "x.jsonl"
  asked = [f"--input={place}/sounds/long.wav", f"--output={output}", "--workers=1", "--top=1"]
  assert predict.main(["--model=any", *asked]) == 0
  assert json.loads(output.read_text())["end"] == 1.5
  head, tally = head_of(classifier), job.Tally(sounds=1, cropped=1)
  settings = job.Settings(rows.Selection(np.arange(3), None, None), None)
  assert "longer than 1.025 s" in job._told(classifier, head, tally, settings)
  check_length(classifier, head, 1.025, 1.0)
  with pytest.raises(UserError, match=r"hears 1\.025 s of a sound"):
    check_length(classifier, head, 1.05, 1.0)
  card = card_section("x", classifier.config, classifier.frontend, [])
  assert "longer than 1.02 s the central" in card


def test_two_exports_of_one_encoder_are_one_job(place, classifier, tmp_path, monkeypatch):
  """Whenever their programs were written; vectors do not depend on a head, either."""
  names, plan = [], pieces.plan
  monkeypatch.setattr(pieces, "plan", lambda *a, **k: names.append(plan(*a, **k)) or names[-1])
  config, path = classifier.config, str(place / "sounds" / "long.wav")
  recording = Recording(path, (Part("x", 0.0, math.inf),))
  settings = job.Settings(rows.Selection(np.arange(3), None, None), None)
  options = {"workers": 1, "dry_run": True}
  for programs in ({}, {"programs": {"jax": {"date": "2026-01-01"}}}):
    model = Model({**config, **programs}, classifier.variables, None)
    job.predict_files(model, [recording], str(tmp_path / "x.csv"), settings, **options)
  embed_files = functools.partial(
    embedding.embed_files, options={"num_blocks": 1, "tail": "drop"}, workers=1, dry_run=True
  )
  for changes in ({}, {"programs": {"jax": {"date": "2026-01-01"}}}, {"head": None}):
    model = Model({**config, **changes}, classifier.variables, None)
    embed_files(model, [("x", path)], str(tmp_path / "v.npz"))
  predicted, embedded = names[:2], names[2:]
  assert len({work.job for work in predicted}) == len({work.job for work in embedded}) == 1


def test_a_page_of_nothing_is_refused(tmp_path, capsys):
  block = vectors.Block(["a.wav"], None, np.ones((1, 3), np.float32))
  vectors.save_piece(str(tmp_path / "piece.npz"), vectors.Piece([block], []))
  about = {"job": "j", "params_hash": "h", "dimensions": 3, "rows": "files"}
  path = str(tmp_path / "v.npz")
  vectors.write_npz(path, [str(tmp_path / "piece.npz")], about)
  (tmp_path / "a.wav").touch()
  asked = [f"--vectors={path}", "--query=a.wav", f"--input={tmp_path}"]
  assert search.main([*asked, f"--page={tmp_path}/found.html"]) == 2
  error = capsys.readouterr().err
  assert "v.npz holds no other vector to show" in error and error.count("\n") == 1


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_weights_of_a_run_that_broke_are_refused(place, classifier, tmp_path, broken):
  """Told before anything is written; those of a head, too."""
  config, variables, _ = folder.read(str(place / "classifier"))
  kept = {key: config[key] for key in folder.EMBEDDING} | {"provenance": {}}
  kept["head"] = head_of(classifier)
  for part in ("params", "head"):
    leaf, values = next(iter(variables[part].items()))
    while isinstance(values, dict):
      leaf, values = next(iter(values.items()))
    before, values.flat[0] = values.flat[0], broken
    with pytest.raises(UserError, match=rf"not finite \({part}/.*{leaf}\).*an earlier --step"):
      export.write(str(tmp_path / "e"), variables, frontend=FRONTENDS["cola"], **kept)
    values.flat[0] = before
  assert not os.listdir(tmp_path)


def test_the_released_rule_is_of_the_transformer_alone(place, tmp_path, monkeypatch, capsys):
  """Asked for, it is refused; an export that names it is read with what it meant."""
  monkeypatch.setattr(AudioNTT, "context", None)  # chunks are averaged, as of most encoders
  asked = [f"--encoder={place}/cnn", f"--input={place}/sounds", f"--output={tmp_path}/v.npz"]
  assert embed.main([*asked, "--tail=released"]) == 2
  assert "--tail=released is of ATST's transformer; take drop" in capsys.readouterr().err
  told = (place / "cnn" / "config.json").read_text()
  (place / "cnn" / "config.json").write_text(told.replace('"weighted"', '"released"'))
  model = load_model(str(place / "cnn"))
  assert model.config["tail"] == "drop"
  with pytest.raises(UserError, match="tail=released is of ATST's transformer"):
    model.embed([], tail="released")
  assert Model({**model.config, "tail": "released"}, model.variables, None).embed([]).shape[0] == 0
  assert tail_of("released", load_model(str(place / "encoder")).encoder) == "released"


def test_an_export_says_how_several_channels_become_one(classifier):
  """Where it is not their mean: in the card; in the metadata of a graph in any case."""
  about = {"license": "unknown", "results": [], "artifacts": ["card"]}
  for channels in ("loudest", "mean"):
    config = {**classifier.config, "channels": channels}
    card = model_card.card("x", config, classifier.variables, **about)
    assert ("| channels | of several: loudest |" in card) == (channels == "loudest")
    assert "| channels |" in card or channels == "mean"
  assert "channels" in onnx_graph.TOLD
  onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -e .[onnx]")
  model = Model({**classifier.config, "channels": "2"}, classifier.variables, None)
  graph = onnx.load_from_string(onnx_graph.build(model))
  assert {one.key: one.value for one in graph.metadata_props}["channels"] == '"2"'
