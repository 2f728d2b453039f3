"""Listing an input: labels, folds and ids from names and manifests, and the refusal of what will
not do."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from atst_jax.audio.frontend import get_frontend
from atst_jax.util.errors import UserError
from data_pipeline.shards import plan
from data_pipeline.sources import files
from data_pipeline.sources.files import Source
from data_pipeline.sources.inputs import list_sources

ROOT = pathlib.Path(__file__).parents[1]


def touch(root, *names):
  for name in names:
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "wb").close()


def manifest(tmp_path, text, name="m.csv"):
  (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  return str(tmp_path / name)


def refused(tmp_path, text, match, **kwargs):
  with pytest.raises(UserError, match=match):
    list_sources(manifest(tmp_path, text), **kwargs)


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


def test_layouts(tmp_path):
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


def test_manifest(tmp_path):
  touch(tmp_path, "audio/a.wav")
  rows = [
    "\ufeffpath,label,fold,split,id",
    "audio/a.wav,dog,3,test,one",
    '"b\nc,d.wav",,,,',
    "./audio//z.wav,cat,0,,",
  ]
  path = manifest(tmp_path, "\r\n".join(rows))
  expected = [
    Source(str(tmp_path / "audio/z.wav"), "audio/z.wav", ("cat",), False, 0, "train"),
    Source(str(tmp_path / "b\nc,d.wav"), "b\nc,d.wav", (), False, -1, "train"),
    Source(str(tmp_path / "audio/a.wav"), "one", ("dog",), False, 3, "test"),
  ]
  assert list_sources(path).sources == expected  # existence is not its business
  rows = "path\tlabel\tid\na.wav\tdog; cat ;dog\tx\nb.wav\tcat\ty\n"
  listing = list_sources(manifest(tmp_path, rows, "m.tsv"), root=str(tmp_path / "audio"))
  assert [(s.path, s.labels) for s in listing.sources] == [
    (str(tmp_path / "audio/a.wav"), ("dog", "cat")),
    (str(tmp_path / "audio/b.wav"), ("cat",)),
  ]
  assert listing.multi_label and all(source.multi_label for source in listing.sources)
  assert listing.label_names == ["cat", "dog"]


def test_groups_of_a_manifest(tmp_path):
  listing = list_sources(manifest(tmp_path, "path,group\na.wav, theo \nb.wav,\n"))
  assert [source.group for source in listing.sources] == ["theo", ""]


def test_rows_of_one_recording_are_in_one_group(tmp_path):
  """A column that is filled in part names the group of the recording, whichever row names it."""
  groups = lambda rows: [
    source.group
    for source in list_sources(manifest(tmp_path, f"path,start,end,group\n{rows}")).sources
  ]
  assert groups("a.wav,0,1,\na.wav,1,2,theo\nb.wav,0,1,\n") == ["theo", "theo", "b.wav"]
  assert groups("a.wav,,,\na.wav,1,2,\n") == ["a.wav", "a.wav"]
  assert groups("a.wav,1,2,theo\na.wav,1,2,\n") == ["theo"]
  told = r"line 4: the group of 'a\.wav' is 'eva' here and 'theo' in line 2; give rows of one file"
  with pytest.raises(UserError, match=told):
    groups("a.wav,0,1,theo\na.wav,1,2,\na.wav,2,3,eva\n")


def test_a_manifest_may_have_more_columns(tmp_path):
  text = ",filename,fold,category,pitch,labels\n0,a.wav,3,dog,440,x\n1,b.wav,1,cat,220,y\n"
  path = manifest(tmp_path, text)
  listing = list_sources(path, path_column="filename", label_column="category")
  assert [(s.id, s.labels, s.fold) for s in listing.sources] == [
    ("a.wav", ("dog",), 3),
    ("b.wav", ("cat",), 1),
  ]
  (line,) = listing.notes
  assert line.endswith("columns that are not read: '', 'pitch', 'labels'")
  for options, match in (
    ({}, "filename: did you mean path.*--path_column=filename"),
    ({"path_column": "filename"}, "category: did you mean label.*--label_column=category"),
    ({"path_column": "file"}, "--path_column=file: .*did you mean 'filename'"),
  ):
    with pytest.raises(UserError, match=match):
      list_sources(path, **options)
  both = manifest(tmp_path, "path,label,labels\na.wav,dog,x\n")
  assert list_sources(both).label_names == ["dog"]
  with pytest.raises(UserError, match="--label_column=x only serves a manifest"):
    list_sources(str(tmp_path), label_column="x")


def test_row_order_does_not_matter(tmp_path):
  rows = [f"{i}.wav,c{i % 3},{i % 5},train\n" for i in range(30)]
  listing = list_sources(manifest(tmp_path, "path,label,fold,split\n" + "".join(rows)))
  assert (
    list_sources(manifest(tmp_path, "path,label,fold,split\n" + "".join(rows[::-1]))) == listing
  )


@pytest.mark.parametrize(
  ("text", "match"),
  [
    (
      "path\na.wav\n/etc/passwd\n",
      r"m\.csv line 3: the path '/etc/passwd' is absolute .*set --root=/etc,",
    ),
    ("path\na.wav\n\nx/../../b.wav\n", r"line 4: .*'\.\.'"),
    ('path\n"a\nb.wav"\n..\\b.wav\n', r"line 4: .*'\.\.'"),
    ("path,id\na.wav,x\nb.wav,y\nc.wav,x\n", r"line 4: id 'x' stands in line 2 already"),
    ("path,label\na.wav,x\n./a.wav,y\n", r"line 3: id 'a\.wav' stands in line 2.* by ';'"),
    ("path,fold\na.wav,1\na.wav,2\n", r"line 3: .* and differs in fold; make the `id`"),
    ("path,Class\na.wav,x\n", r"line 1: Class: did you mean label\?.*--label_column=Class"),
    ("file,label\na.wav,x\n", r"line 1: file: did you mean path\?.*--path_column=file "),
    ('path,label\na.wav,x\nb.wav,"a,b"\n', r"line 3: the label 'a,b' holds a comma"),
    ("path,label\na.wav,dog\nb.wav,Dog\n", r"classes 'Dog' and 'dog' differ in case"),
    ("path,label\na.wav,a b\nb.wav,ab\n", r"classes 'a b' and 'ab' differ.*--exact_labels"),
    ("path,split\na.wav,val\nb.wav,valid\n", r"'val' and 'valid' both mean 'valid'"),
    ("path,start\na.wav,3\n", r"line 1: a segment needs both.*--whole_files"),
    ("path,begin\na.wav,3\n", r"line 1: begin: did you mean start\? Rename"),
    ("path,start,end\na.wav,3,0:04\n", r"line 2: the time '0:04' is not a number of seconds"),
    ("path,start,end\na.wav,-3,4\n", r"line 2: the time '-3' is not"),
    ("path\nC:\\x\\a.wav\n", r"line 2: .*drive; make it relative"),
    ("path\ngs://b/x/a.wav\ngs://b/x/y/b.wav\n", r"line 2: .*set --root=gs://b/x, the folder"),
    ("path,id\na.wav,x\nb.wav,x#0001\n", r"line 3: id 'x#0001' is what a piece of line 2"),
    ("path,lable\na.wav,x\n", r"line 1: lable: did you mean label\?"),
    ("path,Labels\na.wav,x\n", r"line 1: Labels: did you mean label\?"),
    ("label,fold\nx,1\n", r"line 1: the header .* must name `path`"),
    ("path,path\nx,y\n", r"line 1: the header .* each column once"),
    ("", r"line 1: the file is empty"),
    ("path,label\n", r"m\.csv lists no file: there is no row below its header"),
    ("path,Start (s),End (s)\na.wav,0,1\n", r"Start \(s\): did you mean start\? Rename"),
    ("path,onset,duration\na.wav,0,1\n", r"onset: did you mean start\? Rename"),
    ("path,label\na.wav,x,y\n", r"line 2: 3 values, 2 columns"),
    ("path,label\na.wav\n", r"line 2: 1 values, 2 columns"),
    ("path,fold\na.wav,1\nb.wav,two\n", r"line 3: fold 'two' is not a whole number"),
    ("path,fold\na.wav,-1\n", r"line 2: fold '-1'"),
    ("path,split\na.wav,../x\n", r"line 2: split '../x'"),
    ("path,split\na.wav,all\n", r"line 2: split 'all'"),
    ("path,label\n,x\n", r"line 2: the path '' is no file name"),
    ("path\na\0.wav\n", r"line 2: the path"),
    ('path\n"a.wav\n', r"line \d: .*quote"),
    (b"path\n\xff\xfe.wav\n", r"is not UTF-8.*iconv -f WINDOWS-1252"),
    ("path\na.wav\n".encode("utf-16"), r"m\.csv is UTF-16; convert it: iconv -f UTF-16"),
  ],
)
def test_fault_20_43_manifest_faults_name_the_line(tmp_path, text, match):
  refused(tmp_path, text, match)


def test_fault_43_manifest_links_out_of_the_root(tmp_path):
  root = tmp_path / "root"
  touch(tmp_path, "secret/a.wav", "root/b.wav")
  (root / "in.wav").symlink_to("b.wav")
  (root / "folder").symlink_to("../secret")
  (root / "file.wav").symlink_to("../secret/a.wav")
  good = list_sources(manifest(tmp_path, "path\nb.wav\nin.wav\n"), root=str(root))
  assert len(good.sources) == 2
  for name in ("folder/a.wav", "file.wav"):
    refused(tmp_path, f"path\nb.wav\n{name}\n", f"line 3: '{name}' leads out of", root=str(root))
  refused(tmp_path, "path\nb.wav\n", "is not a folder", root=str(tmp_path / "absent"))


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
  with pytest.raises(UserError, match="beside them 'bus'; move it away"):
    list_sources(str(tmp_path))
  touch(tmp_path / "vehicles", "train/1.wav", "bus/2.wav")  # a train may be a class
  assert list_sources(str(tmp_path / "vehicles")).label_names == ["bus", "train"]
  shutil.rmtree(tmp_path / "vehicles")
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


def test_tables_as_people_have_them(tmp_path):
  """Separators, absolute and Windows paths, names of splits, folds from a spreadsheet, blank and
  double rows."""
  touch(tmp_path, "audio/a.wav", "audio/b.wav")
  rows = [
    "path;label;split;fold",
    f"{tmp_path}/audio/a.wav;dog, barking;val;1.0",
    "audio\\b.wav;cat;Eval;2",
    "",
    ";;;",
    "audio/b.wav;cat;Eval;2.00",
    "audio/c.wav;cat;dev_a;",
  ]
  path = manifest(tmp_path, "\r\n".join(rows))
  listing = list_sources(path, label_separator=";")
  assert [(s.id, s.labels, s.split, s.fold) for s in listing.sources] == [
    ("audio/a.wav", ("dog, barking",), "valid", 1),
    ("audio/b.wav", ("cat",), "test", 2),
    ("audio/c.wav", ("cat",), "dev_a", -1),
  ]
  assert not listing.multi_label
  assert [note.removeprefix(f"{path}: ") for note in listing.notes] == [
    "1 rows stand twice and count once",
    "of the splits, Eval is test, val is valid",
  ]
  several = list_sources(path, label_separator=",")
  assert several.label_names == ["barking", "cat", "dog"] and several.multi_label
  absolute = manifest(tmp_path, f"path\n{tmp_path}/audio/a.wav\n{tmp_path}/b/b.wav\n", "n.csv")
  with pytest.raises(UserError, match=f"line 3: .*set --root={tmp_path}, the folder that all 2 "):
    list_sources(absolute, root=str(tmp_path / "audio"))
  assert list_sources(absolute).sources[0].id == "audio/a.wav"
  two = manifest(tmp_path, "path,label\na.wav,dog\nb.wav,Dog\n", "two.csv")
  assert list_sources(two, exact_labels=True).label_names == ["Dog", "dog"]


@pytest.mark.slow
def test_half_a_million_clips_are_planned_in_a_quarter_of_a_minute_and_of_two_gigabytes():
  """A quarter of AudioSet, simulated: hashed, ordered and dealt to shards."""
  script = """
import resource, time
from atst_jax.audio.frontend import get_frontend
from data_pipeline.shards import plan
from data_pipeline.sources.files import Source
sources = [
  Source(f"/data/audio/{i % 1000:03d}/{i:011d}.wav", f"{i:011d}_30.000", ("Speech", "Music"), True)
  for i in range(500_000)
]
started = time.time()
_, missing = plan.hash_sources(sources, "/data")
tasks, _ = plan.deal(
  sources, frontend=get_frontend("atst"), seed=0, shard_mb=48, num_shards=1250
)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(len(missing), len(tasks), time.time() - started, peak)
"""
  run = subprocess.run(
    [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
  )
  missing, shards, seconds, gib = map(float, run.stdout.split())
  assert (missing, shards) == (500_000, 1250) and seconds < 15 and gib < 0.7, run.stdout


@pytest.mark.parametrize(
  ("files", "shards"), [(5, 5), (40, 16), (600, 16), (6000, 64), (50_000, 192)]
)
def test_the_number_of_shards_is_16_or_a_multiple_of_64(files, shards):
  """A tenth of a megabyte each: shards of at most 32 MB, and never more than files."""
  num_bytes = plan.mel_bytes(10.0 * files, get_frontend("atst"))
  assert plan.choose_num_shards(num_bytes, files, shard_mb=32, num_shards=0) == shards
