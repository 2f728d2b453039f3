"""Shards written by Apache Beam, on this machine or a cluster; the bytes are those of the process pool.

Needs pip install -e .[beam]. A unit of work is a whole shard, so that nothing is shuffled but the list of shards; every
worker must see the input and the output folder under the same names.
"""

from atst_jax.errors import UserError
from data_pipeline.shards import Settings, ShardTask, write_task

RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner")


def _write(task: ShardTask, settings: Settings) -> str:
  import threadpoolctl

  with threadpoolctl.threadpool_limits(1):  # sums in matrix products come in one order, as in the pool
    write_task(task, settings, lambda files, clips: None)
  return task.file


def write_tasks(tasks: list[ShardTask], settings: Settings, *, runner: str, options: list[str]) -> None:
  """Writes all shards.

  Args:
    runner: of RUNNERS.
    options: pipeline options as on a command line, passed through.

  Raises:
    UserError: Beam is not installed, or refuses the options.
  """
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UserError(f"--runner={runner} needs Apache Beam: pip install -e .[beam]") from error
  try:
    parsed = PipelineOptions(options)
    pipeline = beam.Pipeline(runner=runner, options=parsed)
  except (ValueError, SystemExit) as error:
    raise UserError(f"--beam_options={' '.join(options)}: {error}") from error
  with pipeline:
    _ = pipeline | beam.Create(tasks) | beam.Reshuffle() | beam.Map(_write, settings)
