"""Preparation of whole sets of real sound, of a file of ten hours, and the plan of half a million
clips."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from atst_jax.audio.frontend import get_frontend
from atst_jax.data.dataset import Dataset
from data_pipeline.shards import plan
from tests.preparing import run
from tests.tiny import ROOT


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
    cwd=ROOT,
  )
  megabytes = int(done.stdout) / 1024
  print(
    f"ten hours in {time.perf_counter() - started:.0f} s, {megabytes:.0f} MB in the largest process"
  )
  dataset = Dataset.load(str(tmp_path / "out"))
  assert dataset.num_clips("train") == 600 and megabytes < 1000


@pytest.mark.slow
def test_half_a_million_clips_are_planned_in_a_quarter_of_a_minute_and_of_two_gigabytes():
  """A quarter of AudioSet, simulated: hashed, ordered and dealt to shards."""
  script = """
import time
from atst_jax.audio.frontend import get_frontend
from data_pipeline.shards import plan
from data_pipeline.shards.speed import peak_megabytes
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
print(len(missing), len(tasks), time.time() - started, peak_megabytes() / 1024)
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
