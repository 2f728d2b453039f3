"""The benchmark data sets as their owners ship them, each in miniature: files, labels, folds and
splits."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest

from atst_jax.data.dataset import Dataset
from atst_jax.downstream.splits import make_splits
from atst_jax.util.errors import UserError
from data_pipeline import prepare
from data_pipeline.mixing.recordings import list_recordings
from data_pipeline.sources.files import subset
from data_pipeline.sources.inputs import LAYOUTS, list_sources
from data_pipeline.sources.owner_lists import split_of
from tests.preparing import write_inline

ROOT = pathlib.Path(__file__).parents[1]


def _write(root, files: dict[str, str]):
  for name, text in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return str(root)


def _table(*rows: str) -> str:
  return "\n".join(rows) + "\n"


ESC50 = {
  "ESC-50-master/meta/esc50.csv": _table(
    "filename,fold,target,category,esc10,src_file,take",
    "1-100032-A-0.wav,1,0,dog,True,100032,A",
    "5-9032-A-0.wav,5,0,dog,True,9032,A",
    "2-7-B-14.wav,2,14,chirping_birds,False,7,B",
  ),
  "ESC-50-master/audio/1-100032-A-0.wav": "",
  "ESC-50-master/audio/2-7-B-14.wav": "",
}
NSYNTH = {
  f"nsynth-{split}/examples.json": json.dumps(
    {
      f"{family}_acoustic_00{n}-060-100": {"instrument_family_str": family}
      for n, family in enumerate(families)
    }
  )
  for split, families in (("train", ["bass", "flute"]), ("valid", ["bass"]), ("test", ["organ"]))
}
AUDIOSET = {
  "class_labels_indices.csv": _table(
    "index,mid,display_name", "0,/m/09x0r,Speech", '1,/m/05zppz,"Male speech, man"'
  ),
  "balanced_train_segments.csv": _table(
    "# Segments csv created Sun Mar  5 10:54:31 2017",
    "# num_ytids=2",
    "# YTID, start_seconds, end_seconds, labels",
    '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/05zppz"',
    'Y1234567890, 0.000, 10.000, "/m/09x0r"',
    'abcdefghijk, 7.500, 17.500, "/m/05zppz"',
  ),
  "eval_segments.csv": _table("# comment", '_0123456789, 5.000, 13.000, "/m/09x0r"'),
  "audio/--PJHxphWEs_30.000.wav": "",
  "audio/YY1234567890.wav": "",
  "eval/_0123456789_5000_13000.flac": "",
  "more/--PJHxphWEs_30.000.wav": "",
}

# layout -> (files, the expected {id: (labels, fold, split, whether the file is there)})
CASES = {
  "esc50": (
    ESC50,
    {
      "ESC-50-master/audio/1-100032-A-0.wav": (("dog",), 1, "train", True),
      "ESC-50-master/audio/5-9032-A-0.wav": (("dog",), 5, "train", False),
      "ESC-50-master/audio/2-7-B-14.wav": (("chirping_birds",), 2, "train", True),
    },
  ),
  "esc10": (
    ESC50,
    {
      "ESC-50-master/audio/1-100032-A-0.wav": (("dog",), 1, "train", True),
      "ESC-50-master/audio/5-9032-A-0.wav": (("dog",), 5, "train", False),
    },
  ),
  "fsdd": (
    {"7_jackson_32.wav": "", "0_theo_1.wav": ""},
    {"7_jackson_32.wav": (("7",), 0, "train", True), "0_theo_1.wav": (("0",), 1, "train", True)},
  ),
  "urbansound8k": (
    {
      "metadata/UrbanSound8K.csv": _table(
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        "100032-3-0-0.wav,100032,0.0,0.3,1,5,3,dog_bark",
        "7-1-0-0.wav,7,0,4,1,10,1,car_horn",
      ),
      "audio/fold5/100032-3-0-0.wav": "",
    },
    {
      "audio/fold5/100032-3-0-0.wav": (("dog_bark",), 5, "train", True),
      "audio/fold10/7-1-0-0.wav": (("car_horn",), 10, "train", False),
    },
  ),
  "speech_commands": (
    {
      "validation_list.txt": _table("yes/a_nohash_0.wav"),
      "testing_list.txt": _table("no/b_nohash_0.wav", "no/gone.wav"),
      "yes/a_nohash_0.wav": "",
      "yes/c_nohash_1.wav": "",
      "no/b_nohash_0.wav": "",
      "_background_noise_/white.wav": "",
    },
    {
      "yes/a_nohash_0.wav": (("yes",), -1, "valid", True),
      "yes/c_nohash_1.wav": (("yes",), -1, "train", True),
      "no/b_nohash_0.wav": (("no",), -1, "test", True),
      "no/gone.wav": (("no",), -1, "test", False),
    },
  ),
  "voxceleb1": (
    {
      "iden_split.txt": _table(
        "1 id10001/1zcIwhmdeo4/00001.wav", "2 id10002/x/00002.wav", "3 id10001/y/00003.wav"
      ),
      "wav/id10001/1zcIwhmdeo4/00001.wav": "",
    },
    {
      "wav/id10001/1zcIwhmdeo4/00001.wav": (("id10001",), -1, "train", True),
      "wav/id10002/x/00002.wav": (("id10002",), -1, "valid", False),
      "wav/id10001/y/00003.wav": (("id10001",), -1, "test", False),
    },
  ),
  "nsynth": (
    {**NSYNTH, "nsynth-train/audio/bass_acoustic_000-060-100.wav": ""},
    {
      "nsynth-train/audio/bass_acoustic_000-060-100.wav": (("bass",), -1, "train", True),
      "nsynth-train/audio/flute_acoustic_001-060-100.wav": (("flute",), -1, "train", False),
      "nsynth-valid/audio/bass_acoustic_000-060-100.wav": (("bass",), -1, "valid", False),
      "nsynth-test/audio/organ_acoustic_000-060-100.wav": (("organ",), -1, "test", False),
    },
  ),
  "gtzan": (
    {
      "train_filtered.txt": _table("blues/blues.00029.wav"),
      "valid_filtered.txt": _table("rock/rock.00001.wav"),
      "test_filtered.txt": _table("blues/blues.00002.wav"),
      "genres/blues/blues.00029.wav": "",
      "genres/rock/rock.00001.wav": "",
      "genres/rock/rock.00099.wav": "",
    },
    {
      "genres/blues/blues.00029.wav": (("blues",), -1, "train", True),
      "genres/rock/rock.00001.wav": (("rock",), -1, "valid", True),
      "genres/blues/blues.00002.wav": (("blues",), -1, "test", False),
    },
  ),
  "crema_d": (
    {"AudioWAV/1001_DFA_ANG_XX.wav": "", "AudioWAV/1001_IEO_SAD_HI.wav": ""},
    {
      "AudioWAV/1001_DFA_ANG_XX.wav": (
        ("ANG",),
        -1,
        split_of("crema_d 1001", {"train": 0.7, "valid": 0.1, "test": 0.2}),
        True,
      ),
      "AudioWAV/1001_IEO_SAD_HI.wav": (
        ("SAD",),
        -1,
        split_of("crema_d 1001", {"train": 0.7, "valid": 0.1, "test": 0.2}),
        True,
      ),
    },
  ),
  "voxforge": (
    {"de/anna-20080320-rgz/wav/de7-58.wav": ""},
    {
      "de/anna-20080320-rgz/wav/de7-58.wav": (
        ("de",),
        -1,
        split_of("voxforge de/anna", {"train": 0.7, "valid": 0.15, "test": 0.15}),
        True,
      )
    },
  ),
  "surge": (
    {"presets/Basses/Attacky/21.ogg": ""},
    {
      "presets/Basses/Attacky/21.ogg": (
        ("21",),
        -1,
        split_of("surge presets/Basses/Attacky", {"train": 0.81, "valid": 0.095, "test": 0.095}),
        True,
      )
    },
  ),
  "fsd50k": (
    {
      "FSD50K.ground_truth/dev.csv": _table(
        "fname,labels,mids,split",
        '64760,"Electric_guitar,Guitar",/m/02sgy,train',
        "7,Bark,/m/0bt9lr,val",
      ),
      "FSD50K.ground_truth/eval.csv": _table("fname,labels,mids", "37199,Bark,/m/0bt9lr"),
      "FSD50K.dev_audio/64760.wav": "",
    },
    {
      "FSD50K.dev_audio/64760.wav": (("Electric_guitar", "Guitar"), -1, "train", True),
      "FSD50K.dev_audio/7.wav": (("Bark",), -1, "valid", False),
      "FSD50K.eval_audio/37199.wav": (("Bark",), -1, "test", False),
    },
  ),
  "audioset": (
    AUDIOSET,
    {
      "--PJHxphWEs_30.000": (("Speech", "Male speech, man"), -1, "train", True),
      "Y1234567890_0.000": (("Speech",), -1, "train", True),
      "abcdefghijk_7.500": (("Male speech, man",), -1, "train", False),
      "_0123456789_5.000": (("Speech",), -1, "test", True),
    },
  ),
}


GROUPS = {
  "crema_d": ["1001", "1001"],
  "esc10": ["100032", "9032"],
  "esc50": ["100032", "7", "9032"],
  "fsdd": ["theo", "jackson"],
  "nsynth": ["organ_acoustic_000", "bass_acoustic_000", "flute_acoustic_001", "bass_acoustic_000"],
  "speech_commands": ["b", "gone", "a", "c"],
  "surge": ["presets/Basses/Attacky"],
  "urbansound8k": ["7", "100032"],
  "voxceleb1": ["1zcIwhmdeo4", "y", "x"],
  "voxforge": ["de/anna"],
}  # in the order of ids; clips of the others are recordings of their own


def test_every_layout_is_tested():
  assert set(CASES) == set(LAYOUTS) - {"folder", "manifest", "raven", "audacity"}
  page = (ROOT / "data_pipeline" / "README.md").read_text()
  assert all(f"`{name}`" in page for name in CASES)


@pytest.mark.parametrize("layout", CASES)
def test_layout(tmp_path, layout):
  files, expected = CASES[layout]
  listing = list_sources(_write(tmp_path, files), layout=layout)
  found = {s.id: (s.labels, s.fold, s.split, os.path.isfile(s.path)) for s in listing.sources}
  assert found == expected and listing.kind == layout
  groups = [s.group for s in listing.sources]
  assert groups == GROUPS.get(layout, [""] * len(expected))
  assert bool(listing.grouped_by) == (layout in GROUPS)
  assert listing.multi_label == (layout in ("fsd50k", "audioset"))


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
  files = {"metadata/UrbanSound8K.csv": _table(*rows)}
  listing = list_sources(_write(tmp_path, files), layout="urbansound8k")
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
  listing = list_sources(_write(tmp_path, files), layout="nsynth")
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
  listing = list_sources(_write(tmp_path, files), layout="crema_d")
  assert not listing.divided_by_owner and listing.grouped_by == "actor"


def test_recordings_that_are_mixed_are_divided_by_speakers(tmp_path):
  """Each of 40 speakers says every word: about 12 of them are drawn, once, and not anew for every
  word."""
  rows = ["path,label,group"]
  rows += [f"{word}/{i}.wav,{word},speaker {i}" for word in "abcdefgh" for i in range(40)]
  path = pathlib.Path(_write(tmp_path, {"list.csv": _table(*rows)})) / "list.csv"
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


@pytest.mark.parametrize("layout", sorted(set(CASES) - {"fsdd", "surge", "voxforge"}))
def test_what_a_layout_lacks_is_named(tmp_path, layout):
  """Another folder: one sentence with what is missing."""
  (tmp_path / "sound.wav").touch()
  with pytest.raises(UserError, match=f"{layout}|esc50"):
    list_sources(str(tmp_path), layout=layout)


def test_fault_43_lists_that_lead_out_of_the_folder_are_refused(tmp_path):
  root = tmp_path / "esc"
  table = ESC50["ESC-50-master/meta/esc50.csv"].replace("2-7-B-14.wav", "../../../secret.wav")
  _write(root, {"meta/esc50.csv": table})
  with pytest.raises(UserError, match=r"secret.wav' lies outside"):
    list_sources(str(root), layout="esc50")
  _write(root, {"meta/esc50.csv": ESC50["ESC-50-master/meta/esc50.csv"], "audio/2-7-B-14.wav": ""})
  (tmp_path / "elsewhere.wav").touch()
  (root / "audio" / "1-100032-A-0.wav").symlink_to(tmp_path / "elsewhere.wav")
  with pytest.raises(UserError, match="lies outside"):
    list_sources(str(root), layout="esc50")


def test_fault_43_linked_folders_that_lead_out_are_refused(tmp_path):
  root = tmp_path / "esc"
  _write(root, {"meta/esc50.csv": ESC50["ESC-50-master/meta/esc50.csv"]})
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
    list_sources(_write(tmp_path, files), layout=layout)


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
    _write(tmp_path, {**AUDIOSET, f"clips/{stem}.m4a.wav": "", f"clips/{stem}.wav": ""}),
    layout="audioset",
  )
  assert {s.id: os.path.basename(s.path) for s in listing.sources}[
    "abcdefghijk_7.500"
  ] == f"{stem}.wav"


def test_groups_are_split_whole_and_near_their_shares():
  shares = {"train": 0.7, "valid": 0.1, "test": 0.2}
  drawn = [split_of(f"actor {i}", shares) for i in range(5000)]
  assert drawn == [split_of(f"actor {i}", shares) for i in range(5000)]
  for split, share in shares.items():
    assert abs(drawn.count(split) / 5000 - share) < 0.02


def test_subset_is_nested_and_leaves_other_splits(tmp_path):
  """A smaller subset is part of a larger one; evaluation clips stay."""
  for i in range(40):
    (tmp_path / f"{i % 10}_speaker_{i}.wav").touch()
  ids = lambda n: {s.id for s in list_sources(str(tmp_path), layout="fsdd", number=n).sources}
  assert len(ids(10)) == 10 and ids(10) < ids(25) < ids(0) and len(ids(0)) == 40
  listing = list_sources(_write(tmp_path / "audioset", AUDIOSET), layout="audioset")
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


def test_fault_23_audioset_with_clips_missing_on_disk(tmp_path, monkeypatch, capsys):
  """Prepared from what is there; the coverage of every class stands in dataset.json."""
  import soundfile

  root = pathlib.Path(_write(tmp_path / "audioset", AUDIOSET))
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
