"""The benchmark data sets as their owners ship them, each in miniature: files, labels, folds and
splits."""

import os
import pathlib

import numpy as np
import pytest

from atst_jax.data.dataset import Dataset
from atst_jax.util.errors import UserError
from data_pipeline import prepare
from data_pipeline.sources.inputs import LAYOUTS, list_sources
from tests.benchmark_sets import AUDIOSET, CASES, ESC50, GROUPS, touch, write_files
from tests.preparing import write_inline
from tests.tiny import ROOT


def test_every_layout_is_tested():
  assert set(CASES) == set(LAYOUTS) - {"folder", "manifest", "raven", "audacity"}
  page = (ROOT / "data_pipeline" / "README.md").read_text()
  assert all(f"`{name}`" in page for name in CASES)


@pytest.mark.parametrize("layout", CASES)
def test_layout(tmp_path, layout):
  files, expected = CASES[layout]
  listing = list_sources(write_files(tmp_path, files), layout=layout)
  found = {s.id: (s.labels, s.fold, s.split, os.path.isfile(s.path)) for s in listing.sources}
  assert found == expected and listing.kind == layout
  groups = [s.group for s in listing.sources]
  assert groups == GROUPS.get(layout, [""] * len(expected))
  assert bool(listing.grouped_by) == (layout in GROUPS)
  assert listing.multi_label == (layout in ("fsd50k", "audioset"))


@pytest.mark.parametrize("layout", sorted(set(CASES) - {"fsdd", "surge", "voxforge"}))
def test_what_a_layout_lacks_is_named(tmp_path, layout):
  """Another folder: one sentence with what is missing."""
  (tmp_path / "sound.wav").touch()
  with pytest.raises(UserError, match=f"{layout}|esc50"):
    list_sources(str(tmp_path), layout=layout)


def test_files_that_a_list_names_in_vain_have_a_remedy_of_the_layout(tmp_path, capsys):
  """--root is refused for an owner's layout, and offered for a manifest."""
  root = write_files(tmp_path / "esc", {"meta/esc50.csv": ESC50["ESC-50-master/meta/esc50.csv"]})
  flags = [f"--output={tmp_path / 'out'}", "--frontend=atst"]
  assert prepare.main([f"--input={root}", "--layout=esc50", *flags]) == 2
  error = capsys.readouterr().err
  assert "README.md says where --layout=esc50 expects them" in error and "--root" not in error
  (tmp_path / "list.csv").write_text("path\na.wav\n")
  assert prepare.main([f"--input={tmp_path / 'list.csv'}", *flags]) == 2
  assert "set --root to the folder its paths start from" in capsys.readouterr().err
  (tmp_path / "links").mkdir()
  (tmp_path / "links" / "a.wav").symlink_to("nowhere")
  assert prepare.main([f"--input={tmp_path / 'links'}", *flags]) == 2
  assert "links/a.wav; it is a link that leads nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["esc50", "esc10"])
def test_a_list_with_other_separators_is_what_is_wrong(tmp_path, layout):
  table = ESC50["ESC-50-master/meta/esc50.csv"].replace(",", ";")
  root = write_files(tmp_path, {"meta/esc50.csv": table})
  with pytest.raises(UserError, match=r"esc50\.csv: no column filename"):
    list_sources(root, layout=layout)


def test_fault_43_lists_that_lead_out_of_the_folder_are_refused(tmp_path):
  root = tmp_path / "esc"
  table = ESC50["ESC-50-master/meta/esc50.csv"].replace("2-7-B-14.wav", "../../../secret.wav")
  write_files(root, {"meta/esc50.csv": table})
  with pytest.raises(UserError, match=r"secret.wav' lies outside"):
    list_sources(str(root), layout="esc50")
  write_files(
    root, {"meta/esc50.csv": ESC50["ESC-50-master/meta/esc50.csv"], "audio/2-7-B-14.wav": ""}
  )
  (tmp_path / "elsewhere.wav").touch()
  (root / "audio" / "1-100032-A-0.wav").symlink_to(tmp_path / "elsewhere.wav")
  with pytest.raises(UserError, match="lies outside"):
    list_sources(str(root), layout="esc50")


def test_fault_43_linked_folders_that_lead_out_are_refused(tmp_path):
  root = tmp_path / "esc"
  write_files(root, {"meta/esc50.csv": ESC50["ESC-50-master/meta/esc50.csv"]})
  (tmp_path / "elsewhere").mkdir()
  (root / "audio").symlink_to(tmp_path / "elsewhere")
  with pytest.raises(UserError, match="lies outside"):
    list_sources(str(root), layout="esc50")


@pytest.mark.parametrize(
  "name, old, new, layout",
  [
    (
      "balanced_train_segments.csv",
      "abcdefghijk, 7.500, 17.500",
      "../secret/x, 7.500, 17.500",
      "audioset",
    ),
    (
      "balanced_train_segments.csv",
      'abcdefghijk, 7.500, 17.500, "/m/05zppz"',
      "abcdefghijk, 7.500",
      "audioset",
    ),
    ("balanced_train_segments.csv", "7.500", "soon", "audioset"),
    ("ESC-50-master/meta/esc50.csv", "0.wav,1,0,dog", "0.wav,one,0,dog", "esc50"),
    ("nsynth-train/examples.json", "instrument_family_str", "family", "nsynth"),
    ("nsynth-train/examples.json", "{", "", "nsynth"),
  ],
)
def test_lists_that_do_not_read_are_refused(tmp_path, name, old, new, layout):
  files = dict(CASES[layout][0])
  files[name] = files[name].replace(old, new)
  with pytest.raises(UserError, match=r"does not read as its owners write it|unknown video"):
    list_sources(write_files(tmp_path, files), layout=layout)


@pytest.mark.parametrize(
  "stem",
  [
    "abcdefghijk",
    "Yabcdefghijk",
    "abcdefghijk_7.5",
    "abcdefghijk_7.500_17.500",
    "abcdefghijk_7.5-17.5",
    "Yabcdefghijk_7.500",
  ],
)
def test_names_that_downloaders_give(tmp_path, stem):
  listing = list_sources(
    write_files(tmp_path, {**AUDIOSET, f"clips/{stem}.m4a.wav": "", f"clips/{stem}.wav": ""}),
    layout="audioset",
  )
  assert {s.id: os.path.basename(s.path) for s in listing.sources}[
    "abcdefghijk_7.500"
  ] == f"{stem}.wav"


def test_names_in_milliseconds(tmp_path):
  """As downloaders write them: int(1000 * seconds)."""
  files = {**AUDIOSET, "clips/abcdefghijk_7500_17500.wav": "", "clips/zero0000000_0_10000.wav": ""}
  name = "balanced_train_segments.csv"
  files[name] += 'zero0000000, 0.000, 10.000, "/m/05zppz"\n'
  listing = list_sources(write_files(tmp_path, files), layout="audioset")
  found = {s.id: os.path.basename(s.path) for s in listing.sources}
  assert found["abcdefghijk_7.500"] == "abcdefghijk_7500_17500.wav"
  assert found["zero0000000_0.000"] == "zero0000000_0_10000.wav"


def test_fault_23_audioset_with_clips_missing_on_disk(tmp_path, monkeypatch, capsys):
  """Prepared from what is there; the coverage of every class stands in dataset.json."""
  import soundfile

  root = pathlib.Path(write_files(tmp_path / "audioset", AUDIOSET))
  for name in AUDIOSET:
    if name.endswith((".wav", ".flac")):
      soundfile.write(root / name, np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
  flags = [
    f"--input={root}",
    f"--output={tmp_path / 'out'}",
    "--layout=audioset",
    "--frontend=atst",
  ]
  write_inline(monkeypatch)
  assert prepare.main(flags) == 0
  dataset = Dataset.load(str(tmp_path / "out"))
  assert (
    dataset.num_clips("train") == 2
    and dataset.num_clips("test") == 1
    and dataset.manifest["multi_label"]
  )
  coverage = dataset.manifest["counts"]["coverage"]
  assert coverage["Male speech, man"] == {"listed": 2, "missing": 1, "rejected": 0}
  assert coverage["Speech"] == {"listed": 3, "missing": 0, "rejected": 0}
  assert "Male speech, man 1 of 2" in capsys.readouterr().out
  assert prepare.main([flag.replace("/out", "/part") for flag in flags] + ["--subset=1"]) == 0
  part = Dataset.load(str(tmp_path / "part"))
  assert (
    part.num_clips("train") == part.num_clips("test") == 1
    and part.manifest["label_names"] == dataset.manifest["label_names"]
  )
  for name, row in part.manifest["counts"]["coverage"].items():
    assert (
      row["listed"] == coverage[name]["listed"] and row["missing"] == coverage[name]["missing"]
    ), name
  assert sum(row.get("not_drawn", 0) for row in part.manifest["counts"]["coverage"].values()) > 0


def test_labels_and_folds_from_names_alone(tmp_path):
  touch(tmp_path / "esc", "dog/1-100-A.ogg", "dog/5-7-B.ogg", "rain/2-9-A.wav")
  assert [
    (s.labels, s.fold) for s in list_sources(str(tmp_path / "esc"), layout="esc10").sources
  ] == [(("dog",), 1), (("dog",), 5), (("rain",), 2)]
  touch(tmp_path / "fsdd", "0_theo_1.flac", "9_ann_0.flac", "3_theo_12.flac")
  listing = list_sources(str(tmp_path / "fsdd"), layout="fsdd")
  assert [(s.id, s.labels, s.fold) for s in listing.sources] == [
    ("0_theo_1.flac", ("0",), 1),
    ("3_theo_12.flac", ("3",), 1),
    ("9_ann_0.flac", ("9",), 0),
  ]
  assert listing.fold_names == ["ann", "theo"]
  touch(tmp_path / "fsdd", "theo.flac")
  with pytest.raises(
    UserError, match=r"theo.flac is not named like DIGIT_SPEAKER_INDEX.flac.*--layout=folder"
  ):
    list_sources(str(tmp_path / "fsdd"), layout="fsdd")
