"""Helpers of the tests that prepare data."""

import functools
import pathlib
import shutil
import tempfile

import numpy as np
import soundfile
import threadpoolctl

from data_pipeline import prepare
from data_pipeline.shards import job
from data_pipeline.shards.shard import write_task


def contents(folder) -> dict[str, bytes]:
  """Relative path -> bytes of every file below a folder, but for who held its lock."""
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(pathlib.Path(folder).rglob("*"))
    if p.is_file() and p.name != ".lock"
  }


def run(*arguments) -> int:
  return prepare.main([*map(str, arguments)])


def write_inline(monkeypatch) -> None:
  """Writes shards in this process: for tests that are not about the workers."""

  def write_tasks(tasks, settings, *, workers):
    with threadpoolctl.threadpool_limits(1):  # the bytes of the workers
      for task in tasks:
        write_task(task, settings, lambda files, clips: None)

  monkeypatch.setattr(job, "write_tasks", write_tasks)


def small_set(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """(audio folder, prepared folder) of 20 short clips: a copy of what the first call made."""
  for name in ("audio", "out"):
    shutil.copytree(pathlib.Path(_small_set().name) / name, folder / name)
  return folder / "audio", folder / "out"


@functools.cache
def _small_set() -> tempfile.TemporaryDirectory:
  made = tempfile.TemporaryDirectory()
  folder, rng = pathlib.Path(made.name), np.random.default_rng(0)
  (folder / "audio").mkdir()
  for i in range(20):
    soundfile.write(folder / "audio" / f"{i}.wav", rng.uniform(-0.5, 0.5, 2000), 16000)
  assert (
    run(
      f"--input={folder / 'audio'}",
      f"--output={folder / 'out'}",
      "--frontend=atst",
      "--num_shards=5",
    )
    == 0
  )
  return made
