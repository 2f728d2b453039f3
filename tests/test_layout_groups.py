"""Clips of one recording, speaker or take lie in one part of a division."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from atst_jax.downstream.splits import make_splits
from atst_jax.util.errors import UserError
from data_pipeline.mixing.recordings import list_recordings
from data_pipeline.sources.inputs import list_sources
from data_pipeline.sources.owner_lists import split_of
from tests.benchmark_sets import table, write_files


def _divided(listing, groups=None, **options):
  """The divisions of a listing's files, as an evaluation draws them."""
  sources, names = listing.sources, listing.label_names
  return make_splits(
    ids=[s.id for s in sources],
    groups=[s.group for s in sources] if groups is None else groups,
    targets=np.array([[name in s.labels for name in names] for s in sources], int),
    folds=[s.fold for s in sources],
    splits=[s.split for s in sources],
    label_names=names,
    seed=0,
    owned=listing.divided_by_owner,
    **{"way": "auto", "num_folds": 5, "hold_out": "tenth", **options},
  )


def _parted(listing, split) -> set[str]:
  """Groups both of the training and of the validation clips."""
  train, valid = ({listing.sources[i].group for i in part} for part in split[:2])
  return train & valid


def test_no_slice_of_a_recording_is_on_both_sides_of_a_drawn_division(tmp_path):
  """A listing of UrbanSound8K's shape: some slices of each recording, all in one fold."""
  rng = np.random.default_rng(0)
  rows = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
  for recording in range(300):
    fold, label = recording % 10 + 1, recording // 10 % 10
    for number in range(rng.integers(1, 12)):
      name = f"{1000 + recording}-{label}-0-{number}.wav"
      rows.append(f"{name},{1000 + recording},0,4,1,{fold},{label},class {label}")
  files = {"metadata/UrbanSound8K.csv": table(*rows)}
  listing = list_sources(write_files(tmp_path, files), layout="urbansound8k")
  for options in ({}, {"way": "random"}, {"way": "random", "hold_out": "fold"}):
    for split in _divided(listing, **options):
      assert len(split.valid) and not _parted(listing, split)
  by_file = _divided(listing, groups=[""] * len(listing.sources))
  assert all(_parted(listing, split) for split in by_file)  # how it was


def test_groups_that_an_owner_parts_stay_as_published(tmp_path, warnings):
  """NSynth's validation and test share instruments: one line, but no division that is drawn."""
  notes = {"train": range(40), "valid": range(40, 60), "test": range(50, 70)}
  files = {}
  for split, numbers in notes.items():
    examples = {
      f"{family}_acoustic_{n:03d}-{pitch:03d}-100": {"instrument_family_str": family}
      for n in numbers
      for family in ("bass", "flute")
      for pitch in ((60, 61) if split != "test" else (62,))
    }
    files[f"nsynth-{split}/examples.json"] = json.dumps(examples)
  listing = list_sources(write_files(tmp_path, files), layout="nsynth")
  ((train, valid, test),) = _divided(listing)
  assert (len(train), len(valid), len(test)) == (160, 80, 40)
  (line,) = warnings
  assert "20 groups lie in several parts as the set's owner published them" in line
  for split in _divided(listing, way="random"):
    assert not _parted(listing, split)
  assert len(warnings) == 1
  manual = dataclasses.replace(listing, divided_by_owner=False)
  with pytest.raises(UserError, match="leaks: 20 groups in more than one part"):
    _divided(manual)


def test_divisions_that_are_drawn_here_are_not_an_owners(tmp_path):
  """A leak in them would be ours, and is refused like one in a manifest."""
  files = {
    f"AudioWAV/{1000 + i}_DFA_{label}_XX.wav": "" for i in range(40) for label in ("ANG", "SAD")
  }
  listing = list_sources(write_files(tmp_path, files), layout="crema_d")
  assert not listing.divided_by_owner and listing.grouped_by == "actor"


def test_recordings_that_are_mixed_are_divided_by_speakers(tmp_path):
  """Each of 40 speakers says every word: about 12 of them are drawn, once, and not anew for every
  word."""
  rows = ["path,label,group"]
  rows += [f"{word}/{i}.wav,{word},speaker {i}" for word in "abcdefgh" for i in range(40)]
  path = pathlib.Path(write_files(tmp_path, {"list.csv": table(*rows)})) / "list.csv"
  for row in rows[1:]:
    file = tmp_path / row.split(",")[0]
    file.parent.mkdir(exist_ok=True)
    file.write_text("x")
  found = list_recordings(
    str(path), flag="foreground", layout="", classes=[], classes_flag="", eval_fold=-1, seed=0
  )
  speakers = {
    split: {source.group for sources in classes.values() for source in sources}
    for split, classes in found.by_class.items()
  }
  assert {split: len(found) for split, found in speakers.items()} == {
    "train": 29,
    "valid": 3,
    "test": 8,
  }
  assert len(set.union(*speakers.values())) == 40


def test_groups_are_split_whole_and_near_their_shares():
  shares = {"train": 0.7, "valid": 0.1, "test": 0.2}
  drawn = [split_of(f"actor {i}", shares) for i in range(5000)]
  assert drawn == [split_of(f"actor {i}", shares) for i in range(5000)]
  for split, share in shares.items():
    assert abs(drawn.count(split) / 5000 - share) < 0.02
