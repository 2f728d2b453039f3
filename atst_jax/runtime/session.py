"""The services of a training job, opened and closed in one place."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

import jax

from atst_jax.runtime import trackers
from atst_jax.runtime.checkpoint import Checkpoints, checkpoint_folder
from atst_jax.runtime.devices import naming_memory
from atst_jax.runtime.metric_writer import MetricWriter
from atst_jax.runtime.preemption import StopRequest
from atst_jax.runtime.trees import try_out
from atst_jax.runtime.watchdog import Watchdog
from atst_jax.runtime.workdir import keep_config, note_saved, own, record_start
from atst_jax.util.logs import log


@dataclasses.dataclass
class Session:
  """A running job: `stop` says whether it has to end; it reports its progress to `watchdog`."""

  workdir: str
  folder: str  # of the checkpoints
  config: dict
  places: tuple[str, ...]  # folders of the config, besides the checkpoints
  changes: list[str]  # "key: old -> new" since the config of the run's checkpoints
  stop: StopRequest
  watchdog: Watchdog

  def checkpoints(self, name: str = "", *, keep: int, keep_every: int = 2**31) -> Checkpoints:
    """The checkpoints of the job, or of its run `name`; the caller closes them.

    The workdir keeps the config of the existing checkpoints until the first new save, and then
    holds this job's, and a note that there are checkpoints.
    """

    def first_saved(step: int) -> None:
      keep_config(self.places, self.config)
      note_saved(self.workdir, step)

    return Checkpoints(
      os.path.join(self.folder, name),
      keep=keep,
      keep_every=keep_every,
      config=self.config,
      first_saved=first_saved,
    )

  def writer(self, step: int, name: str = "", tracked: dict | None = None) -> MetricWriter:
    """A writer of metrics after `step`; only process 0 writes. The caller closes it.

    Args:
      step: from which the run goes on.
      name: of a run of the job, which has a folder of its own.
      tracked: the `names` and `config` of `trackers.chosen`, if the job has trackers.
    """
    folder = os.path.join(self.workdir, name)
    if jax.process_index():
      return MetricWriter(folder, start_step=step, enabled=False)
    os.makedirs(folder, exist_ok=True)
    found = trackers.chosen(workdir=folder, **tracked) if tracked else []
    return MetricWriter(folder, start_step=step, trackers=found)

  def note_start(self, step: int) -> None:
    """Adds a line about this start to the workdir, from process 0; a failure is only a warning."""
    if jax.process_index() == 0:
      try:
        record_start(self.workdir, step, self.changes)
      except OSError as error:
        log.warning("%s: the start cannot be noted (%s)", self.workdir, error.strerror)


def keep_programs(workdir: str) -> None:
  """Keeps compiled programs in the workdir, so that a continued run need not compile again;
  JAX_COMPILATION_CACHE_DIR names another folder. Programs for CPUs are not kept: each fits one kind
  of CPU only."""
  if jax.default_backend() != "cpu" and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # made at run time
    jax.config.update("jax_compilation_cache_dir", os.path.join(workdir, "compiled"))


@contextlib.contextmanager
def open_session(
  workdir: str,
  *,
  folder: str | None,
  config: dict,
  ignore: tuple[str, ...],
  named: tuple[str, ...],
  allow_changes: bool,
  stored: Callable[[], dict | None],
  step_seconds: float,
  start_seconds: float,
  memory: dict,
) -> Iterator[Session]:
  """Owns the workdir, answers signals (from `stop.begin()` on; before it they end the job at once),
  watches for a stall, and explains a lack of memory.

  Args:
    folder: of the checkpoints, if not in the workdir.
    config, ignore, named, allow_changes, stored: of `workdir.own`.
    step_seconds, start_seconds: limits of the watchdog.
    memory: the arguments of `naming_memory`.

  Raises:
    UserError: another process owns the workdir, it has another config, checkpoints cannot be kept
      in its folder, or memory is short.
  """
  stop = StopRequest(distributed=jax.process_count() > 1)
  owned = own(
    workdir, folder, config, ignore=ignore, named=named, allow_changes=allow_changes, stored=stored
  )
  watchdog = Watchdog(
    workdir, index=jax.process_index(), step_seconds=step_seconds, start_seconds=start_seconds
  )
  with stop, owned as changes, watchdog, naming_memory(**memory):
    keep_programs(workdir)
    place = checkpoint_folder(workdir, folder)
    try_out(place)
    places = (folder, workdir) if folder else (workdir,)
    yield Session(workdir, place, config, places, changes, stop, watchdog)
