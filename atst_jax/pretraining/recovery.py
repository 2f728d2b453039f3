"""What the training does when a run goes wrong: goes back to a checkpoint, or ends with what is
needed to see why."""

import contextlib
import os

import jax
import numpy as np
from ml_collections import ConfigDict

from atst_jax.data.dataset import Dataset
from atst_jax.pretraining import recipe
from atst_jax.pretraining.guard import go_on
from atst_jax.runtime.checkpoint import Checkpoints
from atst_jax.util import storage
from atst_jax.util.logs import log

INIT_STREAM = 2**32 - 1  # folded into the seed for the initial parameters; steps count from 0
NAMED = 5  # clips in a message


def fresh_state(config: ConfigDict, program: recipe.Program):
  """The state before the first step, a function of the seed."""
  return program.init(jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM))


class Recovery:
  """Watches the metrics of a run's steps and brings the run back when they are bad (`guard`).

  The run goes back to the newest sound checkpoint, or the initial state if there is none yet, and
  on with the data that come after the bad steps: the window between is not seen again. Sound
  checkpoints are those of the regular period that were not saved in the middle of bad steps. So
  where a run goes back to does not depend on when it was stopped.
  """

  def __init__(
    self,
    config: ConfigDict,
    dataset: Dataset | None,
    workdir: str,
    rows,
    program: recipe.Program,
    checkpoints: Checkpoints,
  ):
    self.config, self.dataset, self.workdir, self.rows = config, dataset, workdir, rows
    self.program, self.checkpoints = program, checkpoints
    self._skipped, self._warned = 0, False

  def needed(self, step: int, metrics) -> bool:
    """Whether the run has to go back after this finished step.

    Raises FloatingPointError if its outputs have collapsed and it is to be stopped then.
    """
    guard = self.config.guard
    skipped, bad, collapsed = (int(metrics[name]) for name in ("skipped", "bad", "collapsed"))
    if skipped > self._skipped and bad:  # not those that a rollback undid
      log.warning(
        "step %d was skipped: loss %.4g, gradient %.4g; %d steps so far",
        step,
        metrics["loss"],
        metrics["grad_norm"],
        skipped,
      )
    self._skipped = skipped
    if collapsed < guard.collapse_steps:
      self._warned = False
    elif guard.collapse == "stop" or not self._warned:
      self._warned = True
      std, rank, width = (
        float(metrics["std_teacher"]),
        float(metrics["rank_teacher"]),
        self.config.heads.out,
      )
      message = (
        f"step {step}: the teacher's outputs have been collapsed for {collapsed} steps: std {std:.4f} (evenly "
        f"spread ones have {width**-0.5:.4f}), rank {rank:.2f} of {width}"
      )
      if guard.collapse == "stop":
        raise FloatingPointError(
          f"{message}; a higher teacher.decay_start or a lower optimizer.base_lr may help"
        )
      log.warning("%s", message)
    return bad >= guard.patience

  def go_back(self, step: int, metrics):
    """The state from which the run goes on at `step`.

    Raises FloatingPointError if it has gone back too often, after writing the first bad batch.
    """
    rollbacks, bad = int(metrics["rollbacks"]), max(int(metrics["bad"]), 1)
    told = (
      f"steps {step - bad + 1} to {step} were bad (loss {float(metrics['loss']):.4g}, gradient "
      f"{float(metrics['grad_norm']):.4g}, {float(metrics['deviation']):.1f} deviations above the usual loss); "
      f"the first one's clips: {self._dump(step, bad, metrics)}"
    )
    if rollbacks >= self.config.guard.rollbacks:
      raise FloatingPointError(
        f"{told}. The run went back {rollbacks} times before; a lower optimizer.base_lr or a "
        "longer warm-up may help, or a higher guard.rollbacks. Checkpoints are whole"
      )
    self.checkpoints.wait()
    state = self.checkpoints.restore(self.program.state, sound_only=True)
    if state is None:
      state = fresh_state(self.config, self.program)
    log.warning(
      "%s. Going back to the state of step %d, and on with the data after step %d (%d of %d times)",
      told,
      int(state.step),
      step,
      rollbacks + 1,
      self.config.guard.rollbacks,
    )
    return go_on(state, step, rollbacks + 1)

  def _dump(self, step, bad, metrics) -> str:
    """Writes this process's rows of the first bad batch and the last metrics; returns ids and the
    file's name."""
    source = recipe.batches(
      self.config, self.dataset, start_step=step - bad, rows=self.rows, with_ids=True
    )
    with contextlib.closing(source):
      batch = next(source)
    ids = [id.decode(errors="replace") for id in batch.pop("id")]
    path = os.path.join(
      self.workdir, f"bad_batch_{step - bad + 1}_process_{jax.process_index()}.npz"
    )
    try:
      os.makedirs(self.workdir, exist_ok=True)
      with storage.writing(path) as file:
        numbers: dict = {f"metric_{name}": np.asarray(value) for name, value in metrics.items()}
        np.savez(file, **batch, id=np.array(ids), step=step - bad + 1, **numbers)
    except OSError as error:
      path = f"not written: {error.strerror}"
    return (
      f"{', '.join(ids[:NAMED])}{f', … {len(ids)} in all' if len(ids) > NAMED else ''} ({path})"
    )
