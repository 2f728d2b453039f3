"""Pictures: drawn from real records and views, and written whole."""

import dataclasses
import functools
import itertools
import types
import warnings
from unittest import mock

import jax
import numpy as np
import pytest

from atst_jax.artifacts.model import load_model
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.data.dataset import Dataset
from atst_jax.figures import curves, few_labels, maps, pictures, view_sheet
from atst_jax.method.normalization import nepers_per_unit
from atst_jax.method.views import make_views
from atst_jax.pretraining.checks import is_ragged
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests.evaluation import make_clips, write_clips, write_encoder
from tests.pages import pixels, records
from tests.tiny import tiny_config


def test_training_curve_bridges_values_that_were_nan(tmp_path):
  found = records(30)
  found[7]["loss"] = found[8]["std_student"] = None
  found = [{**found[0], "loss": None}, *found[1:]]
  curves.training_curve(found, str(tmp_path / "curve.png"), outputs=8)
  curves.training_curve([{**found[0], "loss": None}], str(tmp_path / "gone.png"), outputs=8)
  pixels(tmp_path / "curve.png")


def test_a_curve_of_an_objective_without_a_teacher(tmp_path):
  """One line of spread, terms by their names, and no axis of a teacher's decay."""
  found = [
    {"step": i, "loss": 2.0, "loss_one": 1.0, "loss_two": 1.0, "std_student": 0.3}
    | {"learning_rate": 1e-3, "clips_per_second": 9.0}
    for i in (1, 2)
  ]
  with mock.patch.object(curves, "save") as save:
    curves.training_curve(found, str(tmp_path / "curve.png"), outputs=8)
  axes = save.call_args.args[0].axes
  assert len(axes) == 4 and axes[0].get_ylabel() == "loss"
  named = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in axes[:2]]
  assert named == [["total", "one", "two"], ["student", "1/√8, evenly spread"]]


@pytest.mark.parametrize("found", [[], [{"step": 0, "online_seconds": 1.0}]])
def test_training_curve_without_records_is_refused(tmp_path, found):
  """The online evaluation writes one before the first step."""
  with pytest.raises(UserError, match="no metrics to plot yet"):
    curves.training_curve(found, str(tmp_path / "curve.png"), outputs=8)


def test_a_single_record_is_seen(tmp_path):
  with mock.patch.object(curves, "save") as save:
    curves.training_curve(records(1), str(tmp_path / "curve.png"), outputs=8)
  for axis in save.call_args.args[0].axes:
    assert any(line.get_marker() == "." for line in axis.lines), axis.get_title()


def test_smoothing_is_a_centred_mean():
  values = np.arange(120.0)
  assert curves._smooth(values)[60] == 60 and curves._smooth(values)[0] == 2.0  # of 0 to 4
  values[60] = np.nan
  assert curves._smooth(values)[60] == 60


def resolved(**overrides):
  return configs.to_json(tiny_config(**overrides))


def clips(lengths, *, frames=64):
  mel = np.random.default_rng(0).normal(-30, 15, (len(lengths), frames, 64)).astype(np.float16)
  return {"mel": mel, "length": np.array(lengths, np.int32)}


def test_the_sheet_shows_what_make_views_drew():
  config, batch = resolved(views__group="4"), clips([64, 50, 40, 64])
  drawn = view_sheet.draw(config, None, batch, seed=3)
  key, _ = jax.random.split(jax.random.key(3))
  compute = jax.jit(functools.partial(make_views, ragged=False, apart=True, **config["views"]))
  views, length, expected = compute(key, batch["mel"], batch["length"])
  assert length is None
  np.testing.assert_allclose(drawn["views"], views, atol=1e-5)
  np.testing.assert_array_equal(drawn["box"], expected["box"])
  np.testing.assert_array_equal(drawn["length"], np.full((4, 2), 32))
  # λ > 0: the mixture's energy is γ of the next clip's and 1 - γ of the own.
  scale = nepers_per_unit(**config["views"]["normalization"])
  gamma = drawn["gamma"][:, 0, None, None]
  power = np.exp(scale * drawn["views"][:, 0])
  energy = gamma * np.roll(power, -1, 0) + (1 - gamma) * power
  np.testing.assert_allclose(drawn["mixtures"][:, 0], np.log(energy) / scale, atol=1e-4)
  assert (drawn["gamma"] >= 0.4).all() and (drawn["gamma"] <= 0.6).all()


def test_a_sheet_of_short_clips_is_written(tmp_path):
  """Their views have lengths of their own."""
  path = str(tmp_path / "views.png")
  dataset = types.SimpleNamespace(min_frames=lambda split: 9)
  view_sheet.view_sheet(resolved(), dataset, clips((20, 64, 9, 31)), path, 0)
  pixels(path)


@pytest.mark.parametrize(
  ("shortest", "padding", "ragged"),
  [(20, "mask", True), (32, "mask", False), (20, "silence", False)],
)
def test_views_are_drawn_as_training_makes_them(monkeypatch, shortest, padding, ragged):
  """The shortest clip of the whole set decides whether lengths are tracked, not that of a batch."""

  class Drawn(Exception):
    pass

  def make(*_, ragged, **__):
    raise Drawn(ragged)

  monkeypatch.setattr(view_sheet, "make_views", make)
  config = tiny_config(views__padding=padding)
  dataset = types.SimpleNamespace(min_frames=lambda split: shortest)
  assert is_ragged(config, dataset) == ragged
  with pytest.raises(Drawn, match=str(ragged)):
    view_sheet.draw(configs.to_json(config), dataset, clips((64, 50)), seed=0)


def test_frequency_axis_is_in_hertz():
  places, names = pictures.frequency_ticks(FRONTENDS["atst"])
  assert names == ["125", "250", "500", "1k", "2k", "4k"]
  assert (np.diff(places) > 1).all() and places[0] > 0 and places[-1] < 63
  # HTK: mel = 2595·log10(1 + f / 700), 66 points from 60 to 7800 Hz, the first and last are no
  # centres.
  mel = lambda hz: 2595 * np.log10(1 + hz / 700)
  np.testing.assert_allclose(
    places[3], (mel(1000) - mel(60)) / (mel(7800) - mel(60)) * 65 - 1, atol=0.02
  )


def test_embedding_map_is_written(tmp_path):
  rng = np.random.default_rng(0)
  labels = np.arange(60) % 35
  points = maps.project(rng.normal(size=(60, 12)) + 5 * rng.normal(size=(35, 12))[labels])
  names = [f"class {i}" for i in range(35)]
  maps.embedding_map(points, labels, names, str(tmp_path / "map.png"), title="a title")
  pixels(tmp_path / "map.png")
  with pytest.raises(UserError, match="3 clips make no map"):
    maps.project(np.ones((3, 2)))


@pytest.mark.parametrize("classes", [2, 35, 200])
def test_classes_are_told_apart(classes):
  """By colour and marker together, as long as there are enough of them; labels need not start at
  0."""
  styles = maps.class_styles(np.arange(classes) + 7)
  assert list(styles) == list(range(7, 7 + classes)) and len(set(styles.values())) == classes
  assert styles[7][0] == ("#0072B2" if classes <= 35 else "#30123b")
  if classes > 35:  # colours beside each other in a rainbow are too alike
    assert all(one[1] != other[1] for one, other in itertools.pairwise(styles.values()))


def legend_of(labels, names, path, **more):
  """(figure, legend) of a map of points; drawn, and not warned about."""
  points = np.random.default_rng(0).normal(size=(len(labels), 2))
  with mock.patch.object(maps, "save") as save, warnings.catch_warnings():
    warnings.simplefilter("error")
    maps.embedding_map(points, labels, names, path, **more)
    figure = save.call_args.args[0]
    pictures.save(figure, path, figure.dpi)  # laid out for these pixels
  return figure, figure.legends[0]


def test_names_on_a_map_are_drawn_as_they_are(tmp_path):
  """Also those that matplotlib would take for mathematics, or leave out; a long one is cut."""
  names, path = ["_silence_", "$\\frac{$", "cash $5", "x" * 200 + "end"], str(tmp_path / "map.png")
  figure, legend = legend_of(np.arange(40) % 4, names, path, title="a$^$/" + 200 * "y")
  shown = [text.get_text().replace(r"\$", "$").strip() for text in legend.get_texts()]
  assert shown[:3] == names[:3] and shown[3].endswith("xend") and len(shown[3]) == maps.LABEL
  assert figure.bbox.contains(*legend.get_window_extent().min)
  left, _, width, _ = figure.axes[0].title.get_window_extent().bounds
  assert left >= 0 and left + width <= figure.bbox.width


def test_a_map_of_very_many_classes_names_those_with_the_most_clips(tmp_path):
  labels = np.concatenate([np.arange(527), np.arange(200, 300)])
  names = [f"Domestic sounds, home sounds {i}" for i in range(527)]
  figure, legend = legend_of(labels, names, str(tmp_path / "map.png"))
  shown = [text.get_text() for text in legend.get_texts()]
  assert len(shown) == maps.ROWS * maps.COLUMNS
  assert {name[-3:] for name in names[200:300]} <= {name[-3:] for name in shown}
  assert legend.get_title().get_text() == "those of 527 with the most clips"
  box = legend.get_window_extent()
  assert figure.bbox.containsx(box.x0) and figure.bbox.containsy(box.y0)
  assert figure.axes[0].get_window_extent().x1 <= box.x0 and pixels(tmp_path / "map.png").any()


@pytest.mark.parametrize(("draws", "what"), [(1, "one draw"), (3, "interval over 3 draws")])
def test_the_title_of_few_labels(tmp_path, draws, what):
  row = {"features": "mel", "clips_per_class": 1, "mean": 0.5, "ci95": None}
  results = {
    "rows": [row],
    "chance": 0.1,
    "metric": "accuracy",
    "data": {"name": "$x^{$" + 99 * "n"},
  }
  with mock.patch.object(few_labels, "save") as save:
    few_labels.few_labels_curve(
      results | {"config": {"few": {"draws": draws}}}, str(tmp_path / "few.png")
    )
  figure = save.call_args.args[0]
  pictures.save(figure, str(tmp_path / "few.png"), figure.dpi)
  assert what in figure.axes[0].get_title()
  left, _, width, _ = figure.axes[0].title.get_window_extent().bounds
  assert left >= 0 and left + width <= figure.bbox.width


def test_a_map_draws_at_most_max_points(tmp_path, monkeypatch):
  """Labelled clips alone, drawn evenly, with the mels that belong to them."""
  monkeypatch.setattr(maps, "MAX_POINTS", 5)
  monkeypatch.setattr(maps, "project", lambda features: features[:, :2])
  data = [
    dataclasses.replace(clip, labels=() if i % 2 else clip.labels)
    for i, clip in enumerate(make_clips(20))
  ]
  dataset = Dataset.load(write_clips(tmp_path / "data", data))
  model = load_model(write_encoder(tmp_path / "encoder"))
  clips, labels, points = maps.labelled(model, dataset, name="encoder")
  assert len(clips) == len(labels) == len(points) == 5
  every = {clip.id: clip for clip in data if clip.labels}
  for clip, label, point in zip(clips, labels, points, strict=True):
    assert (clip.mel == every[clip.id].mel).all() and label == every[clip.id].labels[0]
    np.testing.assert_allclose(point, model.embed([clip.mel], num_blocks=1)[0, :2], atol=1e-5)
  with pytest.raises(UserError, match="expects 'byola'"):
    maps.labelled(
      load_model(write_encoder(tmp_path / "other", frontend="byola")), dataset, name="encoder"
    )


def test_online_scores_are_drawn_beside_the_others(tmp_path):
  """Their records hold nothing else, and leave no gaps in the other curves."""
  online = [
    {
      "step": s,
      "online_ridge_map": 0.4,
      "online_knn_map": None,
      "online_mel_map": 0.3,
      "online_effective_rank": 9.0,
      "online_seconds": 1.0,
    }
    for s in (0, 600, 1190)
  ]
  found = sorted(records(120) + online, key=lambda r: r["step"])
  curves.training_curve(found, str(tmp_path / "with.png"), outputs=8)
  curves.training_curve(records(120), str(tmp_path / "without.png"), outputs=8)
  assert pixels(tmp_path / "with.png").shape[0] > 1.3 * pixels(tmp_path / "without.png").shape[0]
