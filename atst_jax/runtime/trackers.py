"""Experiment trackers: Weights & Biases and MLflow, each behind `write(step, metrics)` and
`close()`.

Both are optional (pip install -e .[wandb], .[mlflow]) and work without a network:
WANDB_MODE=offline keeps a run in the workdir until `wandb sync`, and MLflow writes into `mlflow.db`
of the workdir unless MLFLOW_TRACKING_URI names a server. The id of a run is kept in the workdir, so
that a continued run goes on in the same one. Training never waits for a tracker, which has a thread
of its own.
"""

import functools
import importlib.util
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable

from atst_jax.util import storage
from atst_jax.util.config import flatten
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

WAITING = 1000  # records, at most, in a tracker's queue
PARAM_LENGTH = 500  # characters of a value that every version of MLflow's stores takes
CLOSE_SECONDS = 60  # that a run's end waits for a tracker


def check(names: dict) -> None:
  """Raises UserError for an invalid project or experiment, or if its tracker is not installed.

  Args:
    names: {"wandb": project or None, "mlflow": experiment or None}.
  """
  for key, name in ((key, names[key]) for key in TRACKERS if names[key] is not None):
    if not re.fullmatch(r"[^/\\#?%:\s][^/\\#?%:]{0,127}", name):
      raise UserError(
        f"--config.log.{key}={name!r}: must be 1 to 128 characters, none of / \\ # ? % :"
      )
    if importlib.util.find_spec(key) is None:
      raise UserError(
        f"--config.log.{key}={name}: {TRACKERS[key][0]} is not installed; pip install -e .[{key}], "
        "or leave the key out"
      )


def kept_id(workdir: str, name: str, make) -> tuple[str, bool]:
  """The id of a workdir's run, and whether it is new; `make()` makes it the first time."""
  path = os.path.join(workdir, f"{name}_run_id")
  if storage.is_file(path):
    return storage.read_text(path).strip(), False
  id = make()
  storage.write_text(path, id + "\n")
  return id, True


class WeightsAndBiases:
  """A run of a W&B project. A step may come twice (a run goes on from an earlier checkpoint), so
  the step is a metric, and the axis of all others."""

  def __init__(self, workdir: str, project: str, config: dict):
    import wandb

    id, _ = kept_id(workdir, "wandb", lambda: secrets.token_hex(4))
    settings = wandb.Settings(init_timeout=60, login_timeout=30, silent=True)
    self._run = wandb.init(
      project=project,
      id=id,
      resume="allow",
      name=os.path.basename(os.path.abspath(workdir)),
      dir=workdir,
      config=config,
      allow_val_change=True,
      settings=settings,
    )
    self._run.define_metric("step", hidden=True)
    self._run.define_metric("*", step_metric="step")

  def write(self, step: int, now: float, metrics: dict[str, float]) -> None:
    """Logs the metrics at a step, with W&B's own clock."""
    del now
    self._run.log({"step": step, **metrics})

  def close(self) -> None:
    """Waits until everything is uploaded."""
    self._run.finish()


class MLflow:
  """A run of an MLflow experiment, by the client, which has no global state."""

  def __init__(self, workdir: str, experiment: str, config: dict):
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    self._metric = Metric
    store = f"sqlite:///{os.path.abspath(workdir)}/mlflow.db"
    self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or store)

    def begin():
      found = self._client.get_experiment_by_name(experiment)
      id = found.experiment_id if found else self._client.create_experiment(experiment)
      return self._client.create_run(
        id, run_name=os.path.basename(os.path.abspath(workdir))
      ).info.run_id

    self._id, new = kept_id(workdir, "mlflow", begin)
    self._client.update_run(self._id, status="RUNNING")
    if not new:
      kept = self._client.get_run(self._id).info.experiment_id
      if (known := self._client.get_experiment(kept).name) != experiment:
        log.warning(
          "--config.log.mlflow=%s: the run goes on in %r, where it began; without the file "
          "mlflow_run_id of its workdir it begins another",
          experiment,
          known,
        )
    if new:
      params = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in flatten(config).items()]
      for first in range(0, len(params), 100):  # of one call, at most
        self._client.log_batch(self._id, params=params[first : first + 100])

  def write(self, step: int, now: float, metrics: dict[str, float]) -> None:
    """Logs the metrics at a step; `now` in seconds since 1970."""
    found = [self._metric(key, value, round(1000 * now), step) for key, value in metrics.items()]
    self._client.log_batch(self._id, metrics=found)

  def close(self) -> None:
    """Marks the run as finished."""
    self._client.set_terminated(self._id)


class Tracker:
  """A tracker in a thread, where it is also opened. Every call raises errors of the thread since
  the last call."""

  def __init__(self, name: str, make: Callable):
    self.name, self._make = name, make
    self._waiting: queue.Queue = queue.Queue(WAITING)
    self._error: Exception | None = None
    self._thread = threading.Thread(target=self._work, name=name, daemon=True)
    self._thread.start()

  def _work(self):
    target = None
    try:
      target = self._make()
      while (record := self._waiting.get()) is not None:
        target.write(*record)
    except Exception as error:  # reported by the next call
      self._error = error
    finally:
      if target is not None:
        try:
          target.close()
        except Exception as error:
          self._error = self._error or error

  def _raise(self):
    if self._error:
      raise self._error

  def write(self, step: int, now: float, metrics: dict[str, float]) -> None:
    """Leaves the metrics to the thread. Raises queue.Full if it is far behind."""
    self._raise()
    self._waiting.put_nowait((step, now, metrics))

  def close(self) -> None:
    """Waits CLOSE_SECONDS at most until all is written."""
    self._raise()
    self._waiting.put(None, timeout=CLOSE_SECONDS)
    self._thread.join(CLOSE_SECONDS)
    if self._thread.is_alive():
      raise TimeoutError(f"not done after {CLOSE_SECONDS} s")
    self._raise()


# The keys are also the packages' names.
TRACKERS = {"wandb": ("Weights & Biases", WeightsAndBiases), "mlflow": ("MLflow", MLflow)}


def names(section) -> dict:
  """{"wandb": project or None, "mlflow": experiment or None} of a config's `log` section."""
  return {key: section[key] for key in TRACKERS}


def chosen(names: dict, workdir: str, config: dict) -> list[Tracker]:
  """The trackers of a config, opened.

  Args:
    names: as in `check`.
    workdir: for their runs' ids, and their files without a network.
    config: resolved, as JSON.
  """
  return [
    Tracker(title, functools.partial(kind, workdir, names[key], config))
    for key, (title, kind) in TRACKERS.items()
    if names[key] is not None
  ]
