"""Preparation by Apache Beam: the same bytes as by the process pool."""

import pathlib

import numpy as np
import pytest
import soundfile

from data_pipeline import prepare

pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install -e .[beam]")


def _contents(folder) -> dict[str, bytes]:
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(pathlib.Path(folder).rglob("*"))
    if p.is_file()
  }


def test_the_direct_runner_writes_the_same_bytes(tmp_path):
  """A real pipeline; also one that continues what the pool has begun."""
  rng = np.random.default_rng(0)
  (tmp_path / "audio").mkdir()
  for i in range(20):
    soundfile.write(
      tmp_path / "audio" / f"{i}.wav", rng.uniform(-0.5, 0.5, (4000 + 137 * i, 2)), 22050
    )
  (tmp_path / "audio" / "bad.wav").write_text("text")
  common = [f"--input={tmp_path / 'audio'}", "--frontend=atst", "--num_shards=5"]
  assert prepare.main([*common, f"--output={tmp_path / 'pool'}", "--workers=2"]) == 0
  assert prepare.main([*common, f"--output={tmp_path / 'beam'}", "--runner=DirectRunner"]) == 0
  expected = _contents(tmp_path / "pool")
  assert _contents(tmp_path / "beam") == expected
  shard = tmp_path / "beam" / "train-00002-of-00005.tfrecord"
  shard.unlink()
  assert (
    prepare.main(
      [
        *common,
        f"--output={tmp_path / 'beam'}",
        "--runner=DirectRunner",
        "--beam_options=--direct_num_workers=1",
      ]
    )
    == 0
  )
  assert _contents(tmp_path / "beam") == expected
