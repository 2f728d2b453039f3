"""Shards written by Apache Beam, on this machine or a cluster; the bytes are those of the process
pool.

Needs pip install -e .[beam]. A unit of work is a whole shard, so that nothing is shuffled but the
names of shards; every worker must see the input and the output folder under the same names.
"""

import dataclasses
import json
import os

from atst_jax.data.dataset import write_json
from atst_jax.util import storage
from atst_jax.util.errors import UserError

from ..sources.files import Source
from .shard import Settings, ShardTask, write_task

RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner")


def store_task(task: ShardTask, work: str) -> str:
  """Writes a task into the work folder: the graph of a pipeline is too small for the names of two
  million files."""
  path = os.path.join(work, f"{task.file}.task")
  write_json(
    path,
    {
      "file": task.file,
      "split": task.split,
      "sources": [dataclasses.astuple(s) for s in task.sources],
    },
  )
  return path


def load_task(path: str) -> ShardTask:
  """The task that `store_task` wrote there. Raises OSError."""
  values = json.loads(storage.read_text(path))
  sources = (
    Source(where, id, tuple(labels), *rest) for where, id, labels, *rest in values["sources"]
  )
  return ShardTask(values["file"], values["split"], tuple(sources))


def write_tasks(
  tasks: list[ShardTask], settings: Settings, *, runner: str, options: list[str]
) -> None:
  """Writes all shards.

  Args:
    runner: of RUNNERS.
    options: pipeline options as on a command line, passed through.

  Raises:
    UserError: Beam is not installed, refuses the options, or the pipeline failed; finished shards
      stay.
  """
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UserError(f"--runner={runner} needs Apache Beam: pip install -e .[beam]") from error

  class Write(beam.DoFn):
    def setup(self):
      import threadpoolctl

      # For good: sums in matrix products come in one order, as in the pool. A limit that ended with
      # a shard would end for the other threads of the worker too.
      threadpoolctl.threadpool_limits(1)

    def process(self, path):
      write_task(load_task(path), settings, lambda files, clips: None)

  paths = [store_task(task, settings.work) for task in tasks]
  try:
    with beam.Pipeline(runner=runner, options=PipelineOptions(options)) as pipeline:
      _ = pipeline | beam.Create(paths) | beam.Reshuffle() | beam.ParDo(Write())
  except (Exception, SystemExit) as error:  # whatever a runner raises
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
    raise UserError(
      f"--runner={runner}: the pipeline failed ({reason}); run the same command again"
    ) from error
  finally:
    for path in paths:
      storage.remove(path)
