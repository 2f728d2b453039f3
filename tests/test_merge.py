"""Prepared sets joined into one."""

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
