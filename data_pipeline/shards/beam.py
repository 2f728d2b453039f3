"""Shards written by Apache Beam, on this machine or a cluster; the bytes are those of the process
pool.

Needs pip install -e .[beam], or .[dask] for Dask. A unit of work is a whole shard, so only names of
shards are shuffled. Every worker must see the input and the output folder under the same names.
Paths are made absolute, because workers may start in another folder.
"""

import dataclasses
import json
import os
import re
import shutil
import socket

from atst_jax.data.dataset import write_json
from atst_jax.util import storage
from atst_jax.util.cli import nearest
from atst_jax.util.errors import UserError

from ..sources.files import Source
from .plan import remove_temporary
from .shard import Settings, ShardTask, write_task

# Name -> Beam's own name.
RUNNERS = {
  "DirectRunner": "DirectRunner",
  "DaskRunner": "apache_beam.runners.dask.dask_runner.DaskRunner",
  "DataflowRunner": "DataflowRunner",
  "FlinkRunner": "FlinkRunner",
  "SparkRunner": "SparkRunner",
}
BY_JAVA = ("FlinkRunner", "SparkRunner")  # only their job server knows all of their options
# Options with an address that has to answer before anything is sent.
ADDRESSES = ("job_endpoint", "dask_client_address", "flink_master", "spark_master_url")
JARS = ("flink_job_server_jar", "spark_job_server_jar")
ANSWER_SECONDS = 10.0


def store_task(task: ShardTask, work: str) -> str:
  """Writes a task into the work folder: the names of two million files do not fit into the graph of
  a pipeline."""
  path = os.path.join(work, f"{task.file}.task")
  write_json(
    path,
    {
      "file": task.file,
      "split": task.split,
      # a name may hold bytes that are not UTF-8
      "sources": [(os.fsencode(s.path).hex(), *dataclasses.astuple(s)[1:]) for s in task.sources],
    },
  )
  return path


def load_task(path: str) -> ShardTask:
  """The task that `store_task` wrote there. Raises OSError."""
  values = json.loads(storage.read_text(path))
  sources = (
    Source(os.fsdecode(bytes.fromhex(where)), id, tuple(labels), *rest)
    for where, id, labels, *rest in values["sources"]
  )
  return ShardTask(values["file"], values["split"], tuple(sources))


def check_options(options: list[str], runner: str) -> None:
  """Raises UserError for an unknown option or a bad value, and if a jar, Java or the cluster is
  missing. Nothing is read before."""
  from apache_beam.options.pipeline_options import PipelineOptions

  if runner == "DaskRunner":
    _import_dask()  # its options are known then

  def refuse(message: str):
    raise UserError(f"--beam_options: {message}")

  def take(parser) -> None:
    parser.error = refuse
    parsed, unknown = parser.parse_known_args(options)
    known = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    for word in unknown:
      near = nearest(word.split("=")[0], known, cutoff=0.8)
      if near or runner not in BY_JAVA:
        refuse(f"unknown option {word}{near}")
    _check_cluster(vars(parsed) | {"dask_client_address": getattr(parsed, "address", None)}, runner)

  PipelineOptions(options).get_all_options(add_extra_args_fn=take)


def _check_cluster(values: dict, runner: str) -> None:
  """Raises UserError if a jar or Java is missing, or an address does not answer."""
  for key in JARS:
    jar = values.get(key)
    if jar and "://" not in jar and not os.path.isfile(jar):
      raise UserError(f"--{key}={jar} is not there; name the job server's jar, or leave it out")
  own = values.get("job_endpoint") or values.get("flink_submit_uber_jar")
  java = os.path.join(os.environ.get("JAVA_HOME", ""), "bin", "java")
  if runner in BY_JAVA and not own and not shutil.which("java") and not os.path.isfile(java):
    raise UserError(
      f"--runner={runner} starts a job server, which needs Java; install Java 11 or newer, or name "
      "a job server that runs by --beam_options=--job_endpoint=HOST:PORT"
    )
  for key in ADDRESSES:
    address = values.get(key) or ""
    where = re.search(r"([\w.-]+):(\d+)/?$", address)
    if not where:
      continue  # `[auto]`, `local[4]`
    try:
      socket.create_connection((where[1], int(where[2])), ANSWER_SECONDS).close()
    except OSError as error:
      raise UserError(
        f"--{key}={address} does not answer ({error.strerror or error}); start it, or mend the "
        "address"
      ) from error


def _import_dask() -> None:
  try:
    import dask.distributed  # noqa: F401
    from apache_beam.runners.dask import dask_runner  # noqa: F401
  except ImportError as error:
    raise UserError("--runner=DaskRunner needs Dask: pip install -e .[dask]") from error


def _remedy(reason: str) -> str:
  """The remedy for a runner's failure."""
  if "jar" in reason:
    return "give the job server's jar by --beam_options=--flink_job_server_jar=FILE"
  if re.search(r"(?i)\bjava\b", reason):
    return "install Java 11 or newer"
  if re.search(r"(?i)timed out|unavailable|refused|failed to connect|deadline", reason):
    return "the cluster does not answer: see that it runs and that its address is right"
  return "finished shards stay; run the same command again"


def absolute_tasks(tasks: list[ShardTask], settings: Settings) -> tuple[list[ShardTask], Settings]:
  """The same work with absolute paths."""
  moved = [
    dataclasses.replace(
      task,
      sources=tuple(
        dataclasses.replace(source, path=storage.absolute(source.path)) for source in task.sources
      ),
    )
    for task in tasks
  ]
  output, work = storage.absolute(settings.output), storage.absolute(settings.work)
  return moved, dataclasses.replace(settings, output=output, work=work)


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
  check_options(options, runner)
  tasks, settings = absolute_tasks(tasks, settings)
  if runner == "DaskRunner" and not any(re.match("--dask_(n|.*_)?partition", o) for o in options):
    options = [*options, f"--dask_npartitions={len(tasks)}"]  # one shard for each

  class Write(beam.DoFn):
    def setup(self):
      import threadpoolctl

      # One thread, so that sums in matrix products come in one order, as in the pool. The limit is
      # never lifted: other threads of the worker need it too.
      threadpoolctl.threadpool_limits(1)

    def process(self, path):
      write_task(load_task(path), settings, lambda files, clips: None)

  paths = [store_task(task, settings.work) for task in tasks]
  pipeline = beam.Pipeline(runner=RUNNERS[runner], options=PipelineOptions(options))
  names = pipeline | beam.Create(paths)
  if runner != "DaskRunner":  # Dask has one partition for each shard already
    names = names | beam.Reshuffle()
  _ = names | beam.ParDo(Write())
  result = None
  try:
    result = pipeline.run()
    result.wait_until_finish()
    for folder in (settings.output, settings.work):  # of workers that were lost
      remove_temporary(folder)
  except (Exception, SystemExit) as error:  # whatever a runner raises
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    raise UserError(
      f"--runner={runner}: the pipeline failed ({reason}); {_remedy(reason)}"
    ) from error
  finally:
    if client := getattr(result, "client", None):  # of Dask, and the cluster that it made
      client.close()
    for path in paths:
      storage.remove(path)
