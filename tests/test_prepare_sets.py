"""Preparation of whole sets of real sound, and of a file of ten hours."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from preparing import run

from atst_jax.data.dataset import Dataset


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "clips", "folds"), [("esc10", 400, 5), ("fsdd", 3000, 6)])
def test_shared_sets(shared, tmp_path, layout, clips, folds):
  output = tmp_path / "out"
  assert (
    run(
      f"--input={shared / 'data' / layout}",
      f"--output={output}",
      f"--layout={layout}",
      "--frontend=atst",
      "--workers=2",
    )
    == 0
  )
  dataset = Dataset.load(str(output))
  manifest = dataset.manifest
  assert dataset.num_clips("train") == clips
  assert manifest["rejects"] == []
  assert len(manifest["folds"]) == folds
  assert set(manifest["splits"]["train"]["class_counts"].values()) == {clips // 10}
  counts = [shard.num_clips for shard in dataset.shards("train")]
  assert len(counts) == 16 and max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
  ("layout", "rate", "folds"), [("esc10", "44100", [1, 2, 3, 4, 5]), ("fsdd", "8000", [*range(6)])]
)
def test_a_part_of_the_shared_sets(shared, tmp_path, inline, layout, rate, folds):
  source = shared / "data" / layout
  for path in [p for p in sorted(source.rglob("*")) if p.suffix in (".ogg", ".flac")][
    :: 8 if layout == "esc10" else 40
  ]:
    os.makedirs((tmp_path / path.relative_to(shared / "data")).parent, exist_ok=True)
    shutil.copy(path, tmp_path / path.relative_to(shared / "data"))
  flags = ["--frontend=atst", f"--layout={layout}"]
  assert run(f"--input={tmp_path / layout}", f"--output={tmp_path / 'out'}", *flags) == 0
  dataset = Dataset.load(str(tmp_path / "out"))
  manifest = dataset.manifest
  assert (
    manifest["rejects"] == [] and manifest["folds"] == folds and len(manifest["label_names"]) == 10
  )
  assert manifest["counts"]["sample_rates"] == {rate: dataset.num_clips("train")}
  for clip in dataset.clips("train"):
    name = dataset.label_names[clip.labels[0]]
    if layout == "fsdd":
      assert clip.id.split("_")[:2] == [name, manifest["fold_names"][clip.fold]]
    else:
      assert clip.id.startswith(f"{name}/{clip.fold}-") and abs(len(clip.mel) - 501) < 20


@pytest.mark.slow
def test_ten_hours(tmp_path):
  """One file of ten hours in a new process: a clip a minute, in less than 1 GB whatever a worker
  holds."""
  rng = np.random.default_rng(0)
  minute = rng.uniform(-0.3, 0.3, (60 * 44100, 2)).astype(np.float32)
  (tmp_path / "in").mkdir()
  with soundfile.SoundFile(tmp_path / "in" / "day.flac", "w", 44100, 2) as file:
    for _ in range(600):
      file.write(minute)
  started = time.perf_counter()
  command = [
    sys.executable,
    "-m",
    "data_pipeline.prepare",
    f"--input={tmp_path}/in",
    f"--output={tmp_path}/out",
  ]
  # From a process without other children, so that the largest is one of this job's.
  code = (
    "import resource, subprocess, sys\n"
    "subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr)\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, *command, "--frontend=atst"],
    check=True,
    text=True,
    stdout=subprocess.PIPE,
    cwd=pathlib.Path(__file__).parents[1],
  )
  megabytes = int(done.stdout) / 1024
  print(
    f"ten hours in {time.perf_counter() - started:.0f} s, {megabytes:.0f} MB in the largest process"
  )
  dataset = Dataset.load(str(tmp_path / "out"))
  assert dataset.num_clips("train") == 600 and megabytes < 1000
