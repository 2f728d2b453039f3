"""Listing an input: labels, folds and ids from names and manifests, and the refusal of what will
not do."""

import os
import shutil

import numpy as np
import pytest
import soundfile

from atst_jax.util.errors import UserError
from data_pipeline.sources import files
from data_pipeline.sources.inputs import list_sources
from tests.benchmark_sets import touch


def test_folder(tmp_path):
  touch(tmp_path, "b/x.wav", "a/deep/y.FLAC", "root.mp3", "b/z.aiff", "b/x.ogg")
  listing = list_sources(str(tmp_path))
  assert [(s.id, s.labels, s.fold, s.split) for s in listing.sources] == [
    ("a/deep/y.FLAC", ("a/deep",), -1, "train"),
    ("b/x.ogg", ("b",), -1, "train"),
    ("b/x.wav", ("b",), -1, "train"),
    ("b/z.aiff", ("b",), -1, "train"),
    ("root.mp3", (), -1, "train"),
  ]
  assert (
    listing.label_names == ["a/deep", "b"] and not listing.multi_label and listing.kind == "folder"
  )
  assert listing.sources[0].path == str(tmp_path / "a/deep/y.FLAC")


def test_fault_20_every_file_of_a_folder_is_accounted_for(tmp_path):
  audio = [f"a/{i}.{name}" for i, name in enumerate(("caf", "au", "w64", "m4a", "MP4", "wma"))]
  other = ["a/notes.txt", "b/LIST.TXT", "cover.jpg", "README"]
  hidden = ["__MACOSX/a/1.wav", "a/._0.caf", ".hidden/h.wav", "a/.DS_Store", ".git/x/y.txt"]
  touch(tmp_path, *audio, *other, *hidden)
  listing = list_sources(str(tmp_path))
  assert sorted(source.id for source in listing.sources) == sorted(audio)
  assert listing.label_names == ["a"]
  assert listing.skipped == {"(no ending)": 1, ".jpg": 1, ".txt": 2, "hidden": 5}
  root = tmp_path / ".hidden"  # asked for by name
  assert [source.id for source in list_sources(str(root)).sources] == ["h.wav"]


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
  touch(tmp_path, *(f"{c}/{i}.wav" for c in "abc" for i in range(12)))
  expected = list_sources(str(tmp_path))
  walk, rng = os.walk, np.random.default_rng(0)

  def shuffled(top, **kwargs):
    for folder, folders, names in sorted(walk(top, **kwargs), key=lambda _: rng.random()):
      yield folder, folders, list(rng.permutation(names))

  monkeypatch.setattr(files.os, "walk", shuffled)
  assert list_sources(str(tmp_path)) == expected


def test_fault_20_ids_survive_strange_names(tmp_path):
  names = ["ünï/ ç 語.wav", "a b/c\nd.wav", "e'\"f,g;h.wav"]
  touch(tmp_path, *names)
  open(os.path.join(os.fsencode(tmp_path), b"\xff.wav"), "wb").close()
  ids = {source.id for source in list_sources(str(tmp_path)).sources}
  assert ids == {*names, "\\xff.wav"}
  assert all(id.encode() for id in ids)
  touch(tmp_path, "\\xff.wav")  # the one name that can collide with an escape
  with pytest.raises(UserError, match="same id"):
    list_sources(str(tmp_path))


def test_fault_43_links(tmp_path):
  root, outside = tmp_path / "root", tmp_path / "outside"
  touch(root, "a/x.wav")
  touch(outside, "y.wav")
  (root / "link.wav").symlink_to("a/x.wav")
  (root / "again").symlink_to("a")
  assert [source.id for source in list_sources(str(root)).sources] == ["a/x.wav", "link.wav"]
  for name, target in (("b.wav", outside / "y.wav"), ("b", outside)):
    (root / name).symlink_to(target)
    with pytest.raises(UserError, match=f"{name} is a link out of"):
      list_sources(str(root))
    (root / name).unlink()


@pytest.mark.parametrize(
  ("arguments", "match"),
  [
    ({"path": "absent"}, "absent does not exist"),
    ({"path": "."}, "holds no audio .*wav"),
    ({"path": ".", "layout": "manifest"}, "needs a file"),
    ({"path": "f.csv", "layout": "folder"}, "needs a folder"),
    ({"path": ".", "root": "x"}, "only serves a manifest"),
  ],
)
def test_unfit_inputs(tmp_path, monkeypatch, arguments, match):
  monkeypatch.chdir(tmp_path)
  touch(tmp_path, "f.csv", "song.txt")
  with pytest.raises(UserError, match=match):
    list_sources(**arguments)


@pytest.mark.parametrize("name", ["one.wav", "one.MP3", "one", "one.csv"])
def test_a_recording_is_no_table(tmp_path, name):
  """By its ending, or its first bytes."""
  soundfile.write(tmp_path / "x.wav", np.zeros(99), 16000)
  (tmp_path / "x.wav").rename(tmp_path / name)
  with pytest.raises(UserError, match=f"{name} is a recording; give its folder, or a table that"):
    list_sources(str(tmp_path / name))


def test_shared_sets(shared):
  esc10 = list_sources(str(shared / "data" / "esc10"), layout="esc10")
  assert len(esc10.sources) == 400 and len(esc10.label_names) == 10
  assert {source.fold for source in esc10.sources} == {1, 2, 3, 4, 5}
  fsdd = list_sources(str(shared / "data" / "fsdd"), layout="fsdd")
  assert (
    len(fsdd.sources) == 3000
    and fsdd.label_names == list("0123456789")
    and len(fsdd.fold_names) == 6
  )


def test_folders_of_splits_are_no_classes(tmp_path):
  touch(
    tmp_path, "train/dog/1.wav", "train/cat/a/2.wav", "Val/dog/3.wav", "eval/cat/4.wav", "x.txt"
  )
  listing = list_sources(str(tmp_path))
  assert [(s.id, s.labels, s.split) for s in listing.sources] == [
    ("Val/dog/3.wav", ("dog",), "valid"),
    ("eval/cat/4.wav", ("cat",), "test"),
    ("train/cat/a/2.wav", ("cat/a",), "train"),
    ("train/dog/1.wav", ("dog",), "train"),
  ]
  (note,) = listing.notes
  assert "(Val is valid, eval is test, train is train); --layout=folder takes them" in note
  classes = list_sources(str(tmp_path), layout="folder")
  assert classes.label_names == ["Val/dog", "eval/cat", "train/cat/a", "train/dog"]
  assert {s.split for s in classes.sources} == {"train"} and not classes.notes
  touch(tmp_path, "bus/5.wav")
  with pytest.raises(UserError, match="beside them is 'bus'; move it away"):
    list_sources(str(tmp_path))
  touch(tmp_path / "vehicles", "train/1.wav", "bus/2.wav")  # a train may be a class
  assert list_sources(str(tmp_path / "vehicles")).label_names == ["bus", "train"]
  shutil.rmtree(tmp_path / "vehicles")
  touch(tmp_path / "held", "train/dog/1.wav", "holdout/dog/2.wav")  # but hardly a class of classes
  with pytest.raises(UserError, match="beside them is 'holdout'; move it away, call it train"):
    list_sources(str(tmp_path / "held"))
  shutil.rmtree(tmp_path / "held")
  os.unlink(tmp_path / "bus/5.wav")
  touch(tmp_path, "test/dog/6.wav")
  with pytest.raises(UserError, match="'eval' and 'test' both mean 'test'; rename one"):
    list_sources(str(tmp_path))


def test_links_out_of_the_folder_are_followed_if_asked(tmp_path):
  """Files and folders of a store; a circle ends, and every file is listed once."""
  root, store = tmp_path / "root", tmp_path / "store"
  touch(root, "a/x.wav")
  touch(store, "1/y.wav", "1/deep/z.wav", "2.wav", "1/notes.txt")
  (store / "1" / "up").symlink_to(root)
  (root / "b").symlink_to(store / "1")
  (root / "c").symlink_to(store / "1" / "deep")
  (root / "d.wav").symlink_to(store / "2.wav")
  (root / "e.wav").symlink_to(store / "2.wav")
  (root / "f.wav").symlink_to("a/x.wav")
  with pytest.raises(UserError, match=r"is a link out of .*--follow_links"):
    list_sources(str(root))
  listing = list_sources(str(root), follow_links=True)
  assert [s.id for s in listing.sources] == ["a/x.wav", "b/deep/z.wav", "b/y.wav", "d.wav"]
  assert listing.skipped == {".txt": 1, "(linked twice)": 2}
  text = "path,label\nb/y.wav,dog\nd.wav,cat\n"
  (root / "m.csv").write_text(text)
  with pytest.raises(UserError, match=r"line 2: 'b/y.wav' leads out of .*--follow_links"):
    list_sources(str(root / "m.csv"))
  assert len(list_sources(str(root / "m.csv"), follow_links=True).sources) == 2
