"""What the training does when a run goes wrong: goes back to a checkpoint, or ends with what is
needed to see why."""

import contextlib
import os
from collections.abc import Callable

import jax
import numpy as np

from atst_jax.pretraining.guard import go_on
from atst_jax.runtime.checkpoint import Checkpoints
from atst_jax.util import storage
from atst_jax.util.logs import log

NAMED = 5  # clips in a message


class Recovery:
  """Watches the metrics of a run's steps and brings the run back when they are bad (`guard`).

  The run goes back to the newest sound checkpoint, or the initial state if there is none yet, and
  on with the data that come after the bad steps: the window between is not seen again. Sound
  checkpoints are those of the regular period that were not saved in the middle of bad steps
  (`is_sound`). So where a run goes back to does not depend on when it was stopped.
  """

  def __init__(
    self,
    workdir: str,
    *,
    checkpoints: Checkpoints,
    abstract_state,
    fresh: Callable,
    read: Callable,
    outputs: int,
    patience: int,
    rollbacks: int,
    collapse: str,
    collapse_steps: int,
    narrow: float,
    judged: str = "teacher",
    skipped: int = 0,
  ):
    """
    Args:
      abstract_state: shapes and shardings of the state.
      fresh: () -> the initial state.
      read: (start_step=…, with_ids=True) -> iterator of this process's batches.
      outputs: numbers that are compared, of every clip.
      patience: bad steps in a row, until the run goes back.
      rollbacks: how often at most it goes back.
      collapse: "warn" or "stop", after `collapse_steps` steps with collapsed outputs.
      narrow: share of the outputs. After as many steps with a smaller participation ratio a warning
        says so, once until it recovers.
      judged: whose outputs are looked at (`guard.judge`).
      skipped: steps without an update so far, of an earlier process.
    """
    self._workdir, self._checkpoints, self._abstract_state = workdir, checkpoints, abstract_state
    self._fresh, self._read, self._outputs = fresh, read, outputs
    self._patience, self._rollbacks = patience, rollbacks
    self._collapse, self._collapse_steps = collapse, collapse_steps
    self._narrow, self._judged = narrow, judged
    self._skipped, self._warned, self._narrow_steps = skipped, False, 0

  def needed(self, step: int, metrics) -> bool:
    """Whether the run has to go back after this finished step.

    Raises FloatingPointError if its outputs have collapsed and it is to be stopped then.
    """
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
    if collapsed < self._collapse_steps:
      self._warned = False
    else:
      self._tell_collapse(step, metrics, collapsed)
    self._watch_participation(step, float(metrics[f"rank_{self._judged}"]))
    return bad >= self._patience

  def is_sound(self, metrics) -> bool:
    """Whether a run may go back to the state after this step: it is in no row of bad steps, nor of
    collapsed ones that could end the run."""
    collapsed = self._collapse == "stop" and int(metrics["collapsed"]) > 0
    return int(metrics["bad"]) == 0 and not collapsed

  def _watch_participation(self, step: int, ratio: float) -> None:
    """Outputs may be well spread and still vary along a few of their axes alone. Training does not
    depend on the count, which starts anew with the process."""
    self._narrow_steps = self._narrow_steps + 1 if ratio < self._narrow * self._outputs else 0
    if self._narrow_steps == self._collapse_steps:
      log.warning(
        "step %d: for %d steps the %s's outputs have varied along few axes: participation "
        "ratio %.1f of %d; look at the spectrum of the vectors (config.online, or a linear "
        "evaluation), and compare with random parameters",
        step,
        self._narrow_steps,
        self._judged,
        ratio,
        self._outputs,
      )

  def _tell_collapse(self, step, metrics, collapsed):
    """Warns once, or raises FloatingPointError."""
    std, rank = (float(metrics[f"{name}_{self._judged}"]) for name in ("std", "rank"))
    message = (
      f"step {step}: the {self._judged}'s outputs have been collapsed for {collapsed} steps: std "
      f"{std:.4f} (evenly spread ones have {self._outputs**-0.5:.4f}), rank {rank:.2f} of "
      f"{self._outputs}"
    )
    if self._collapse == "stop":
      slower = "a higher teacher.decay_start or " if self._judged == "teacher" else ""
      raise FloatingPointError(f"{message}; {slower}a lower optimizer.base_lr may help")
    if not self._warned:
      self._warned = True
      log.warning("%s", message)

  def go_back(self, step: int, metrics):
    """The state from which the run goes on at `step`.

    Raises FloatingPointError if it has gone back too often, after writing the first bad batch.
    """
    rollbacks, bad = int(metrics["rollbacks"]), max(int(metrics["bad"]), 1)
    told = (
      f"steps {step - bad + 1} to {step} were bad (loss {float(metrics['loss']):.4g}, gradient "
      f"{float(metrics['grad_norm']):.4g}, {float(metrics['deviation']):.1f} deviations above the "
      f"usual loss); the first one's clips: {self._dump(step, bad, metrics)}"
    )
    if rollbacks >= self._rollbacks:
      raise FloatingPointError(
        f"{told}. The run went back {rollbacks} times before; a lower optimizer.base_lr or a "
        "longer warm-up may help, or a higher guard.rollbacks. Checkpoints are whole"
      )
    self._checkpoints.wait()
    state = self._checkpoints.restore(self._abstract_state, sound_only=True)
    if state is None:
      state = self._fresh()
    log.warning(
      "%s. Going back to the state of step %d, and on with the data after step %d (%d of %d times)",
      told,
      int(state.step),
      step,
      rollbacks + 1,
      self._rollbacks,
    )
    return go_on(state, step, rollbacks + 1)

  def _dump(self, step, bad, metrics) -> str:
    """Writes this process's rows of the first bad batch and the last metrics; returns ids and the
    file's name."""
    with contextlib.closing(self._read(start_step=step - bad, with_ids=True)) as source:
      batch = next(source)
    ids = [id.decode(errors="replace") for id in batch.pop("id")]
    path = os.path.join(
      self._workdir, f"bad_batch_{step - bad + 1}_process_{jax.process_index()}.npz"
    )
    try:
      os.makedirs(self._workdir, exist_ok=True)
      with storage.writing(path) as file:
        numbers: dict = {f"metric_{name}": np.asarray(value) for name, value in metrics.items()}
        np.savez(file, **batch, id=np.array(ids), step=step - bad + 1, **numbers)
    except OSError as error:
      path = f"not written: {error.strerror}"
    return (
      f"{', '.join(ids[:NAMED])}{f', … {len(ids)} in all' if len(ids) > NAMED else ''} ({path})"
    )
