"""Where metrics go: log lines, JSON lines, TensorBoard, trackers, a progress bar. A failing one never stops a run."""

import json
import logging
import os
import sys
import time

from atst_jax import storage
from atst_jax.errors import plain

log = logging.getLogger("atst_jax")


class _StandardError(logging.StreamHandler):
  """Writes to what is standard error at that moment."""

  stream = property(lambda self: sys.stderr, lambda self, _: None)


class _Plain(logging.Formatter):
  """Names that a message holds cannot write lines of their own."""

  def format(self, record):
    return plain(super().format(record))


def set_up(level: int = logging.INFO) -> None:
  """Readable lines on standard error, from a level on; of other libraries only warnings."""
  handler = _StandardError()
  handler.setFormatter(_Plain("%(asctime)s %(message)s", "%H:%M:%S"))
  log.handlers[:] = [handler]
  log.setLevel(level)
  log.propagate = False


def is_quiet() -> bool:
  """Whether only warnings, errors and results are wanted (`--verbosity=quiet`)."""
  return log.level >= logging.WARNING


class MetricWriter:
  """Appends metrics to `workdir/metrics.jsonl`, TensorBoard and `trackers.chosen`; on resume, drops from the first two
  what lies beyond the restored step. `measured` tells whether that step's online evaluation was written before."""

  def __init__(self, workdir, *, start_step=0, enabled=True, trackers=()):
    self._file = self._board = None
    self._trackers, self.measured = trackers, False
    self._enabled, self._warned = enabled, set()
    self._path = os.path.join(workdir, "metrics.jsonl")
    if enabled:
      self._guard("metrics.jsonl", lambda: self._open(start_step))
      self._guard("TensorBoard", lambda: self._open_board(workdir, start_step))

  def _open(self, start_step):
    kept = [r for r in read_metrics(self._path) if r["step"] <= start_step and start_step]
    self.measured = any(r["step"] == start_step and "online_seconds" in r for r in kept)
    storage.write_text(self._path, "".join(json.dumps(r) + "\n" for r in kept))
    self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)

  def _open_board(self, workdir, start_step):
    from tensorboardX import SummaryWriter

    self._board = SummaryWriter(os.path.join(workdir, "tensorboard"), purge_step=start_step + 1)

  def _guard(self, name, action):
    try:
      action()
    except Exception as error:  # a full disk or a removed folder must not end a training run
      if name not in self._warned:
        self._warned.add(name)
        log.warning("logging to %s failed (%s: %s); training goes on without it", name, type(error).__name__, error)

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes numbers under a step. NaN and infinities become null in the JSON lines."""
    now = time.time()
    if self._file:
      finite = {k: (v if abs(v) < float("inf") else None) for k, v in metrics.items()}
      line = json.dumps({"step": step, "time": round(now, 3), **finite})
      self._guard("metrics.jsonl", lambda: (self._file.write(line + "\n"), self._file.flush()))
    if self._board:
      self._guard("TensorBoard", lambda: [self._board.add_scalar(k, v, step) for k, v in metrics.items()])
    for tracker in self._trackers:
      self._guard(tracker.name, lambda tracker=tracker: tracker.write(step, now, metrics))

  def close(self):
    """Closes the file, TensorBoard and the trackers; what fails is warned of, not raised."""
    targets = [("metrics.jsonl", self._file), ("TensorBoard", self._board), *((t.name, t) for t in self._trackers)]
    for name, target in targets:
      if target:
        self._guard(name, target.close)


def read_metrics(path) -> list[dict]:
  """The records of a metrics.jsonl; a last line cut short by a crash is left out."""
  if not os.path.exists(path):
    return []
  records = []
  with open(path, encoding="utf-8") as file:
    for line in file:
      try:
        records.append(json.loads(line))
      except json.JSONDecodeError:
        break
  return records


def progress_bar(total, initial, unit):
  """A tqdm bar on a terminal, nothing elsewhere or where quiet is wanted."""
  from tqdm import tqdm

  disable = is_quiet() or not sys.stderr.isatty()
  return tqdm(total=total, initial=initial, unit=unit, disable=disable, dynamic_ncols=True)
