"""Annotations beside recordings: selection tables of Raven and labels of Audacity."""

import pytest

from atst_jax.util.errors import UserError
from data_pipeline.sources.inputs import list_sources
from tests.benchmark_sets import touch

RAVEN = """Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tSpecies
1\tWaveform 1\t1\t0.5\t1.25\t0.0\tDog
1\tSpectrogram 1\t1\t0.5\t1.25\t0.0\tDog
2\tSpectrogram 1\t1\t1.5\t2.5\t0.0\t
3\tSpectrogram 1\t1\t0.5\t1.25\t0.0\tCat
"""


OF_FILES = """Selection\tBegin Path\tFile Offset (s)\tBegin Time (s)\tEnd Time (s)\tCommon Name
1\tC:\\field\\one.flac\t0.5\t10.5\t11.5\tDog
2\t/field/two.wav\t1\t21\t22.5\tCat
"""


LABELS = "0.500000\t1.250000\tdog\n\\\t100\t200\n1.5\t2.5\t\n\n2\t3\tcat\n"


def listed(path, **options):
  listing = list_sources(str(path), **options)
  spans = [(source.id, source.labels, source.line) for source in listing.sources]
  return listing, spans


def test_selections_of_raven(tmp_path):
  recordings = tmp_path / "recordings"
  touch(recordings, "day/one.flac", "two.wav")
  table = tmp_path / "one.Table.1.selections.txt"
  table.write_text(RAVEN)
  listing, spans = listed(table, root=str(recordings))
  assert spans == [("day/one.flac#0.5-1.25", ("Dog", "Cat"), 2), ("day/one.flac#1.5-2.5", (), 4)]
  assert listing.kind == "raven" and listing.multi_label
  assert [note.partition(": ")[2] for note in listing.notes] == [
    "1 annotations stand twice and count once",
    "annotations of the same times are one clip with several labels",
    "1 recordings have no annotation and are left out",
  ]
  table.write_text(OF_FILES)
  _, spans = listed(table, root=str(recordings), layout="raven")
  assert spans == [("day/one.flac#0.5-1.5", ("Dog",), 2), ("two.wav#1-2.5", ("Cat",), 3)]
  for change, match in (
    (OF_FILES.replace("two.wav", "three.wav"), r"line 3: no recordings are called 'three\.wav'"),
    (OF_FILES.replace("\t21\t", "\t\t"), r"line 3: 'Begin Time \(s\)' and .* must be given"),
    (OF_FILES.replace("\t21\t", "\tsoon\t"), r"line 3: the time 'soon' is not"),
  ):
    table.write_text(change)
    with pytest.raises(UserError, match=match):
      listed(table, root=str(recordings))
  with pytest.raises(UserError, match=r"--label_column=Specie: .*did you mean 'Species'"):
    table.write_text(RAVEN)
    listed(table, root=str(recordings), label_column="Specie")


def test_labels_of_audacity_beside_their_recordings(tmp_path):
  root = tmp_path / "in"
  touch(root, "day/one.flac", "two.wav")
  (root / "day" / "one.txt").write_text(LABELS)
  (root / "notes.txt").write_text("nothing of the kind\n")
  listing, spans = listed(root, layout="audacity")
  assert spans == [
    ("day/one.flac#0.5-1.25", ("dog",), 1),
    ("day/one.flac#1.5-2.5", (), 3),
    ("day/one.flac#2-3", ("cat",), 5),
  ]
  assert {source.group for source in listing.sources} == {"day/one.flac"}
  assert listed(root / "day" / "one.txt")[1] == [
    (id.replace("day/", ""), *others) for id, *others in spans
  ]
  (root / "day" / "one.txt").write_text(LABELS + "2 3 cat\n")
  with pytest.raises(UserError, match=r"one\.txt line 6: '2 3 cat' is not START, END and LABEL"):
    listed(root, layout="audacity")
  (root / "three.txt").write_text(LABELS)
  with pytest.raises(UserError, match=r"no recording under .* has the table's name"):
    listed(root / "three.txt")


def test_a_recording_whose_table_is_empty_is_all_rest(tmp_path):
  touch(tmp_path, "a.wav", "b.wav", "c.wav", "a.txt")
  (tmp_path / "b.txt").write_text("1\t1.5\tdog\n")
  listing, spans = listed(tmp_path, layout="audacity")
  assert spans == [("b.wav#1-1.5", ("dog",), 1)]
  assert [note.partition(": ")[2] for note in listing.notes] == [
    "1 recordings have no annotation and are left out",
    "1 recordings have an empty table and are left out; --rest takes them",
  ]
  listing, spans = listed(tmp_path, layout="audacity", rest=True)
  assert [id for id, *_ in spans] == ["a.wav", "b.wav#0-1", "b.wav#1-1.5", "b.wav#1.5-"]
  assert [source.group for source in listing.sources] == ["a.wav", "b.wav", "b.wav", "b.wav"]
  assert len(listing.notes) == 1  # of c.wav, which has no table
  (tmp_path / "b.txt").unlink()
  with pytest.raises(UserError, match=r"no annotation in it; .*--rest makes clips of"):
    listed(tmp_path, layout="audacity")
  assert [id for id, *_ in listed(tmp_path, layout="audacity", rest=True)[1]] == ["a.wav"]


def test_a_table_of_two_recordings_is_asked_about(tmp_path):
  touch(tmp_path, "day/one.wav", "night/one.wav", "one.1.wav")
  (tmp_path / "one.txt").write_text("1\t1.5\tdog\n")
  told = r"one\.txt line 1: 2 recordings have the table's name, day/one\.wav and night/one\.wav"
  with pytest.raises(UserError, match=told):
    listed(tmp_path, layout="audacity")
  (tmp_path / "one.txt").write_text("")
  with pytest.raises(UserError, match="2 recordings have the table's name"):
    listed(tmp_path, layout="audacity", rest=True)
  (tmp_path / "one.txt").write_text("1\t1.5\tdog\n")
  (tmp_path / "one.flac").touch()  # beside the table
  assert listed(tmp_path, layout="audacity")[1] == [("one.flac#1-1.5", ("dog",), 1)]
  (tmp_path / "one.mp3").touch()
  with pytest.raises(UserError, match=r"name, one\.(flac and one\.mp3|mp3 and one\.flac)"):
    listed(tmp_path, layout="audacity")
