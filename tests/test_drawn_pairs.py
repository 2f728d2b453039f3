"""Draws of pairs at the edge of what can be asked for."""

import pytest

from atst_jax.audio.frontend import FRONTENDS
from data_pipeline import pairs
from tests.scene_sounds import write_scene_sounds


@pytest.fixture(scope="module")
def draw(tmp_path_factory):
  sounds = write_scene_sounds(tmp_path_factory.mktemp("sounds"))
  flags = [
    f"--foreground={sounds / 'events'}",
    "--foreground_layout=esc10",
    f"--background={sounds / 'weather'}",
    "--output=out",
    "--frontend=atst",
    "--train_pairs=40",
    "--valid_pairs=4",
    "--test_pairs=0",
  ]
  return lambda *more: pairs._pairs(pairs._parser().parse([*flags, *more]), FRONTENDS["atst"])


def test_a_step_of_exactly_one_decibel_is_said(draw):
  """Of floats such a step is often 0.9999999999999996: the pair had no sentence, and its table
  ended in a traceback when all clips were mixed."""
  found = draw("--level_change=1,1")
  assert len(found) == 88 and all(pair.text and pair.changes for pair in found)


def test_scenes_of_fewer_backgrounds_are_told(draw, capsys):
  """Of 12 recordings two validate and two are tested."""
  draw("--backgrounds=2")
  assert not capsys.readouterr().err
  found, told = draw("--backgrounds=5"), capsys.readouterr().err
  assert "the split valid has fewer recordings of rain (2), wind (2)" in told
  assert "split train" not in told and "split test" not in told
  count = lambda pair: sum(part.background for part in pair.query.parts)
  assert {(p.query.split, count(p)) for p in found} == {("train", 5), ("valid", 2)}
