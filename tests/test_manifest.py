"""A manifest: what its columns say, tables as people have them, and the refusal of what will not
do."""

import pytest

from atst_jax.util.errors import UserError
from data_pipeline.sources.files import Source
from data_pipeline.sources.inputs import list_sources
from tests.benchmark_sets import touch


def manifest(tmp_path, text, name="m.csv"):
  (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  return str(tmp_path / name)


def refused(tmp_path, text, match, **kwargs):
  with pytest.raises(UserError, match=match):
    list_sources(manifest(tmp_path, text), **kwargs)


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
  # ids of one's own: rows of one file could else be parted
  listing = list_sources(manifest(tmp_path, "path,id\na.wav,0\na.wav,1\nb.wav,2\n"))
  assert [source.group for source in listing.sources] == ["a.wav", "a.wav", ""]
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
      r"m\.csv line 3: the path '/etc/passwd' is absolute .*; make it relative .* as 1 other ",
    ),
    ("path\n/etc/passwd\n", r"line 2: .* is absolute .*set --root=/etc, the folder"),
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
    ("path,split\na.wav,train\nb.wav,tset\n", r"line 3: split 'tset': did you mean 'test'\?"),
    ("path,split\na.wav,tran\nb.wav,tran\n", r"line 2: split 'tran': did you mean 'train'\?"),
    ("path,split\na.wav,Vaildation\n", r"split 'Vaildation': did you mean 'validation'\?"),
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


def test_splits_of_other_names_are_noted(tmp_path):
  """Those that go on from a known name are no slips."""
  splits = lambda *names: list_sources(
    manifest(tmp_path, "path,split\n" + "".join(f"{i}.wav,{n}\n" for i, n in enumerate(names)))
  )
  known = splits("training", "testing")
  assert [source.split for source in known.sources] == ["train", "test"]
  assert [note.partition(": ")[2] for note in known.notes] == [
    "of the splits, testing is test, training is train"
  ]
  names = ["Test_b", "holdout", "rest", "test2", "testA", "train_clean", "trainval"]
  others = splits(*names)
  assert [source.split for source in others.sources] == names
  assert others.notes[0].endswith(
    f"splits are {', '.join(names)}; evaluations read train, valid and test"
  )


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
    "its splits are dev_a, test, valid; evaluations read train, valid and test",
  ]
  several = list_sources(path, label_separator=",")
  assert several.label_names == ["barking", "cat", "dog"] and several.multi_label
  absolute = manifest(tmp_path, f"path\n{tmp_path}/audio/a.wav\n{tmp_path}/b/b.wav\n", "n.csv")
  with pytest.raises(UserError, match=f"line 3: .*set --root={tmp_path}, the folder that all 2 "):
    list_sources(absolute, root=str(tmp_path / "audio"))
  assert list_sources(absolute).sources[0].id == "audio/a.wav"
  two = manifest(tmp_path, "path,label\na.wav,dog\nb.wav,Dog\n", "two.csv")
  assert list_sources(two, exact_labels=True).label_names == ["Dog", "dog"]
