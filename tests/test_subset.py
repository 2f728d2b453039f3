"""--subset: nested, whole in the other splits, with the classes of all files."""

import os

import numpy as np
import pytest

from atst_jax.util.errors import UserError
from data_pipeline import prepare
from data_pipeline.sources.files import subset
from data_pipeline.sources.inputs import list_sources
from tests.benchmark_sets import AUDIOSET, write_files
from tests.preparing import write_inline


def test_subset_is_nested_and_leaves_other_splits(tmp_path):
  """A smaller subset is part of a larger one; evaluation clips stay."""
  for i in range(40):
    (tmp_path / f"{i % 10}_speaker_{i}.wav").touch()
  ids = lambda n: {s.id for s in list_sources(str(tmp_path), layout="fsdd", number=n).sources}
  assert len(ids(10)) == 10 and ids(10) < ids(25) < ids(0) and len(ids(0)) == 40
  listing = list_sources(write_files(tmp_path / "audioset", AUDIOSET), layout="audioset")
  kept = subset(listing, 1)
  there = [s for s in kept.sources if os.path.isfile(s.path)]
  assert sorted(s.split for s in there) == ["test", "train"]
  assert {s.id for s in listing.sources} - {s.id for s in kept.sources} != set()
  with pytest.raises(UserError, match="--subset=3: of 3 training files listed 2 are there"):
    subset(listing, 3)


def test_a_new_class_in_the_input_of_a_subset_is_another_plan(tmp_path, monkeypatch, capsys):
  """Labels are numbered over the classes of all files, so a class that the subset does not hold
  would shift them."""
  import soundfile

  def add(label, number):
    (tmp_path / "in" / label).mkdir(parents=True, exist_ok=True)
    soundfile.write(tmp_path / "in" / label / f"{number}.wav", np.full(16000, 0.1), 16000)

  for i in range(12):
    add("bc"[i % 2], i)
  flags = [
    f"--input={tmp_path / 'in'}",
    f"--output={tmp_path / 'out'}",
    "--frontend=atst",
    "--subset=6",
  ]
  write_inline(monkeypatch)
  assert prepare.main(flags) == 0
  kept = {source.id for source in list_sources(str(tmp_path / "in"), number=6).sources}
  for i in range(100):
    add("a", i)
    if {source.id for source in list_sources(str(tmp_path / "in"), number=6).sources} == kept:
      break
    (tmp_path / "in" / "a" / f"{i}.wav").unlink()
  capsys.readouterr()
  assert prepare.main(flags) == 2 and "was prepared with classes" in capsys.readouterr().err
