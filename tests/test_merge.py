"""Prepared sets joined into one."""

import json

import numpy as np
import pytest
import soundfile

from atst_jax.data.dataset import Dataset
from data_pipeline import prepare
from tests.preparing import write_inline


@pytest.fixture
def sets(tmp_path, monkeypatch):
  """Two prepared sets: classes cat and dog with folds, and classes dog and emu with a test split
  and a bad file."""
  write_inline(monkeypatch)
  rng = np.random.default_rng(0)
  for name, labels, rows in (
    ("a", ("cat", "dog"), "path,label,fold"),
    ("b", ("dog", "emu"), "path,label,split"),
  ):
    (tmp_path / name).mkdir()
    rows = [rows]
    for i in range(6):
      soundfile.write(tmp_path / name / f"{i}.wav", rng.uniform(-0.5, 0.5, 2000 + 500 * i), 16000)
      rows.append(
        f"{i}.wav,{labels[i % 2]},{i % 3 if name == 'a' else ('test' if i < 2 else 'train')}"
      )
    if name == "b":
      (tmp_path / "b" / "bad.wav").write_text("text")
      rows.append("bad.wav,emu,train")
    (tmp_path / f"{name}.csv").write_text("\n".join(rows))
    flags = [
      f"--input={tmp_path / f'{name}.csv'}",
      f"--root={tmp_path / name}",
      f"--output={tmp_path / 'out' / name}",
    ]
    assert prepare.main([*flags, "--frontend=atst", "--num_shards=2"]) == 0
  return tmp_path / "out" / "a", tmp_path / "out" / "b"


def test_merge_keeps_every_clip_under_its_labels(sets, tmp_path, capsys):
  output = tmp_path / "ab"
  assert prepare.main(["merge", *map(str, sets), f"--output={output}"]) == 0
  merged, parts = Dataset.load(str(output)), [Dataset.load(str(root)) for root in sets]
  assert merged.label_names == ["cat", "dog", "emu"] and merged.splits == ["test", "train"]
  found = {clip.id: clip for split in merged.splits for clip in merged.clips(split)}
  expected = [
    (f"{part.manifest['name']}/{clip.id}", part, clip)
    for part in parts
    for split in part.splits
    for clip in part.clips(split)
  ]
  assert len(found) == len(expected) == 12
  for id, part, clip in expected:
    np.testing.assert_array_equal(found[id].mel, clip.mel)
    assert [merged.label_names[i] for i in found[id].labels] == [
      part.label_names[i] for i in clip.labels
    ]
    assert (found[id].split, found[id].fold) == (clip.split, clip.fold)
  assert prepare.main(["verify", str(output)]) == 0
  values = np.concatenate([clip.mel.ravel() for clip in merged.clips("train")]).astype(np.float64)
  np.testing.assert_allclose(
    [merged.statistics["mean"], merged.statistics["std"]], [values.mean(), values.std()]
  )
  counts = merged.manifest["counts"]
  assert counts["listed_files"] == 13 and counts["reasons"] == {"undecodable": 1}
  assert counts["coverage"]["emu"] == {"listed": 4, "missing": 0, "rejected": 1}
  assert merged.manifest["rejects"][0]["id"] == "b/bad.wav" and (output / "report.html").exists()
  assert merged.manifest["splits"]["train"]["class_counts"] == {"cat": 3, "dog": 5, "emu": 2}


def prepared(tmp_path, name, table, *flags, seed=0):
  """A prepared set of a manifest, or of the names of files, with noise for each file."""
  rng, root = np.random.default_rng(seed), tmp_path / name
  root.mkdir()
  rows = [row.split(",") for row in table.split()]
  for file in sorted({row[0] for row in rows} - {"path"}):
    soundfile.write(root / file, rng.uniform(-0.5, 0.5, 8000), 16000)
  source = root
  if rows[0][0] == "path":
    source = tmp_path / f"{name}.csv"
    source.write_text("\n".join(table.split()))
    flags = (*flags, f"--root={root}")
  output = tmp_path / "out" / name
  flags = (f"--input={source}", f"--output={output}", f"--name={name}", *flags)
  assert prepare.main([*flags, "--frontend=atst", "--num_shards=1"]) == 0
  return str(output)


def merged(tmp_path, *roots, name="merged") -> Dataset:
  assert prepare.main(["merge", *roots, f"--output={tmp_path / name}"]) == 0
  assert prepare.main(["verify", str(tmp_path / name)]) == 0
  return Dataset.load(str(tmp_path / name))


def test_a_speaker_of_two_sets_is_one_group(tmp_path, monkeypatch, capsys):
  write_inline(monkeypatch)
  files = [
    " ".join(f"{i}_{who}_{take}.wav" for i in range(2) for who in ("eva", "theo")) for take in "01"
  ]
  roots = [
    prepared(tmp_path, name, text, "--layout=fsdd", seed=i)
    for i, (name, text) in enumerate(zip("ab", files, strict=True))
  ]
  dataset = merged(tmp_path, *roots)
  assert {(c.group, c.fold) for c in dataset.clips("train")} == {("eva", 0), ("theo", 1)}
  assert dataset.manifest["groups"] == {
    "by": "speaker",
    "number": 2,
    "parted": 0,
    "divided_by_owner": True,
  }
  assert dataset.manifest["fold_names"] == ["eva", "theo"] and dataset.manifest["folds"] == [0, 1]
  features = json.loads((tmp_path / "merged" / "features.json").read_text())
  assert "fold" in features["featuresDict"]["features"] and "remarks" not in dataset.manifest
  shown = capsys.readouterr()
  assert "groups: 2, one for each speaker; divisions keep each together" in shown.out
  assert "dropped" not in shown.err


def test_a_recording_is_another_in_another_set(tmp_path, monkeypatch):
  """So are groups of different kinds."""
  write_inline(monkeypatch)
  table = "path,start,end 1.wav,0,0.2 1.wav,0.2,0.4"
  roots = [prepared(tmp_path, name, table, seed=i) for i, name in enumerate("ab")]
  two = merged(tmp_path, *roots)
  assert {c.group for c in two.clips("train")} == {"a/1.wav", "b/1.wav"}
  roots.append(prepared(tmp_path, "c", "path,group 2.wav,a/1.wav", seed=2))
  three = merged(tmp_path, *roots, name="three")
  assert {c.group for c in three.clips("train")} == {"a/1.wav", "b/1.wav", "c/a/1.wav"}
  groups = three.manifest["groups"]
  assert groups["number"] == 3 and groups["by"] == "recording or value of `group`"


def test_a_recording_beside_named_groups_is_another_in_another_set(tmp_path, monkeypatch):
  """In a manifest that names groups of some files only."""
  write_inline(monkeypatch)
  table = "path,start,end,group 1.wav,0,0.2, 1.wav,0.2,0.4, 2.wav,0,0.2,x"
  roots = [prepared(tmp_path, name, table, seed=i) for i, name in enumerate("ab")]
  assert Dataset.load(roots[0]).manifest["groups"]["by"] == "recording or value of `group`"
  dataset = merged(tmp_path, *roots)
  assert {c.group for c in dataset.clips("train")} == {"a/1.wav", "b/1.wav", "a/x", "b/x"}
  roots.append(prepared(tmp_path, "c", "path,group 2.wav,x", seed=2))
  three = merged(tmp_path, *roots, name="three").manifest["groups"]
  assert (three["number"], three["by"]) == (5, "recording or value of `group`")


def test_a_group_that_the_merge_parts_is_told(tmp_path, monkeypatch, capsys):
  """No owner published that division, whoever made those of the sets."""
  write_inline(monkeypatch)
  roots = []
  for i, split in enumerate(("train", "test")):
    table = f"path,group,split {i}.wav,theo,{split} {i}x.wav,eva,train"
    roots.append(prepared(tmp_path, split, table, seed=i))
    path = tmp_path / "out" / split / "dataset.json"
    owned = path.read_text().replace('"divided_by_owner": false', '"divided_by_owner": true')
    path.write_text(owned)
  groups = merged(tmp_path, *roots).manifest["groups"]
  assert (groups["number"], groups["parted"], groups["divided_by_owner"]) == (2, 1, False)
  assert "1 lie in several of the set's own folds or splits" in capsys.readouterr().out


def test_a_set_without_folds_parts_no_group(tmp_path, monkeypatch):
  write_inline(monkeypatch)
  roots = [
    prepared(tmp_path, "a", "path,group,fold 1.wav,theo,1 2.wav,eva,2"),
    prepared(tmp_path, "b", "path,group 3.wav,theo", seed=1),
  ]
  dataset = merged(tmp_path, *roots)
  assert {(c.group, c.fold) for c in dataset.clips("train")} == {
    ("theo", 1),
    ("eva", 2),
    ("theo", -1),
  }
  assert dataset.manifest["groups"]["parted"] == 0 and dataset.manifest["folds"] == [1, 2]


def test_folds_that_differ_are_dropped_with_a_line(tmp_path, monkeypatch, capsys):
  write_inline(monkeypatch)
  roots = [
    prepared(tmp_path, "a", "path,fold 1.wav,1 2.wav,2"),
    prepared(tmp_path, "b", "0_eva_0.wav 1_theo_0.wav", "--layout=fsdd", seed=1),
    prepared(tmp_path, "c", "path 3.wav", seed=2),
  ]
  dataset = merged(tmp_path, *roots)
  assert {c.fold for c in dataset.clips("train")} == {-1} and not dataset.manifest["folds"]
  told = f"dropped, as those of the sets differ: {roots[0]} has 1, 2; {roots[1]} has eva, theo"
  assert told in capsys.readouterr().err


def test_clips_that_two_sets_hold_are_named(tmp_path, monkeypatch, capsys):
  write_inline(monkeypatch)
  roots = [
    prepared(tmp_path, "a", "path,split 1.wav,train 2.wav,train", seed=0),
    prepared(tmp_path, "b", "path,split x.wav,test y.wav,train", seed=0),
    prepared(tmp_path, "c", "path z.wav", seed=1),
  ]
  remarks = merged(tmp_path, *roots).manifest["remarks"]
  assert [(r["id"], r["remark"], r["detail"]) for r in remarks] == [
    ("b/x.wav", "repeated", "a/1.wav"),
    ("b/y.wav", "repeated", "a/2.wav"),
  ]
  shown = capsys.readouterr().out
  assert "2 clips sound as one of a set before" in shown and "  'b/x.wav': a/1.wav" in shown


def test_an_interrupted_merge_leaves_nothing(sets, tmp_path, monkeypatch):
  """So that the same command can be run again."""
  from data_pipeline.shards import merge as module

  output = tmp_path / "both"
  with monkeypatch.context() as patch:
    patch.setattr(
      module, "write_tfds_info", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert prepare.main(["merge", *map(str, sets), f"--output={output}"]) == 75
  assert list(output.iterdir()) == []
  assert prepare.main(["merge", *map(str, sets), f"--output={output}"]) == 0


def test_a_page_that_fails_costs_no_set(sets, tmp_path, monkeypatch, capsys):
  from data_pipeline.shards import summary

  def full(root):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(summary, "write_report", full)
  assert prepare.main(["merge", *map(str, sets), f"--output={tmp_path / 'both'}"]) == 0
  assert "no report.html: [Errno 28] No space" in capsys.readouterr().err
  assert Dataset.load(str(tmp_path / "both")).num_clips("train") == 10


def test_the_channels_of_the_sets_are_kept_where_they_agree(sets, tmp_path, capsys):
  """An export follows them (`artifacts.training_set`)."""
  for number, (one, other, kept) in enumerate(
    (("loudest", "loudest", "loudest"), ("loudest", "2", None))
  ):
    for root, channels in zip(sets, (one, other), strict=True):
      manifest = json.loads((root / "dataset.json").read_text())
      manifest["preparation"]["channels"] = channels
      (root / "dataset.json").write_text(json.dumps(manifest))
    output = tmp_path / str(number)
    assert prepare.main(["merge", *map(str, sets), f"--output={output}"]) == 0
    assert Dataset.load(str(output)).manifest["preparation"].get("channels") == kept
    told = "with --channels=2 and loudest; an encoder will take the mean"
    assert (told in capsys.readouterr().err) == (kept is None)


def test_what_cannot_be_one_is_refused(sets, tmp_path, capsys):
  a, b = map(str, sets)
  other = tmp_path / "other"
  flags = [f"--input={tmp_path / 'a'}", f"--output={other}"]
  assert prepare.main([*flags, "--frontend=byola"]) == 0
  capsys.readouterr()
  case = tmp_path / "case"
  (tmp_path / "case.csv").write_text("path,label\n0.wav,Dog\n")
  made = [f"--input={tmp_path / 'case.csv'}", f"--root={tmp_path / 'a'}", f"--output={case}"]
  assert prepare.main([*made, "--frontend=atst"]) == 0
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "file").touch()
  for arguments, message in (
    ([a, f"--output={tmp_path / 'x'}"], "two prepared sets or more"),
    ([a, str(other), f"--output={tmp_path / 'x'}"], "has the front-end 'atst'"),
    ([a, a, f"--output={tmp_path / 'x'}"], "names must differ"),
    ([a, b, f"--output={tmp_path / 'full'}"], "holds something"),
    ([a, str(case), f"--output={tmp_path / 'x'}"], "'Dog' and 'dog' differ in case"),
    ([a, str(tmp_path / "absent"), f"--output={tmp_path / 'x'}"], "is not a prepared dataset"),
  ):
    assert prepare.main(["merge", *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()
