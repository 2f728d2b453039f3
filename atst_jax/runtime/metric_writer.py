"""Metrics of a run: JSON lines in the workdir, TensorBoard, trackers. Their failures do not stop a
run."""

import json
import os
import time

from atst_jax.util import storage
from atst_jax.util.logs import log


class MetricWriter:
  """Appends metrics to `workdir/metrics.jsonl`, TensorBoard and `trackers.chosen`. On resume, drops
  records after the restored step from the first two. `measured` tells whether that step's online
  evaluation was written before."""

  def __init__(self, workdir, *, start_step=0, enabled=True, trackers=()):
    self._file = self._board = None
    self._trackers, self.measured = trackers, False
    self._warned = set()
    self._path = os.path.join(workdir, "metrics.jsonl")
    if enabled:
      self._guard("metrics.jsonl", lambda: self._open(start_step))
      self._guard("TensorBoard", lambda: self._open_board(workdir, start_step))

  def _open(self, start_step):
    kept = [r for r in read_metrics(self._path) if r["step"] <= start_step and start_step]
    self.measured = any(r["step"] == start_step and "online_seconds" in r for r in kept)
    storage.write_text(self._path, "".join(json.dumps(r) + "\n" for r in kept))
    self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115

  def _open_board(self, workdir, start_step):
    from tensorboardX import SummaryWriter

    self._board = SummaryWriter(os.path.join(workdir, "tensorboard"), purge_step=start_step + 1)

  def _guard(self, name, action):
    try:
      action()
    except Exception as error:  # a full disk or a removed folder must not end a training run
      if name not in self._warned:
        self._warned.add(name)
        log.warning(
          "logging to %s failed (%s: %s); training goes on without it",
          name,
          type(error).__name__,
          error,
        )

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes numbers under a step. NaN and infinities become null in the JSON lines."""
    now = time.time()
    if self._file:
      finite = {k: (v if abs(v) < float("inf") else None) for k, v in metrics.items()}
      line = json.dumps({"step": step, "time": round(now, 3), **finite})
      self._guard("metrics.jsonl", lambda: (self._file.write(line + "\n"), self._file.flush()))
    if self._board:
      self._guard(
        "TensorBoard", lambda: [self._board.add_scalar(k, v, step) for k, v in metrics.items()]
      )
    for tracker in self._trackers:
      self._guard(tracker.name, lambda tracker=tracker: tracker.write(step, now, metrics))

  def close(self):
    """Closes the file, TensorBoard and the trackers; a failure is only a warning."""
    targets = [
      ("metrics.jsonl", self._file),
      ("TensorBoard", self._board),
      *((t.name, t) for t in self._trackers),
    ]
    for name, target in targets:
      if target:
        self._guard(name, target.close)


def read_metrics(path) -> list[dict]:
  """The records of a metrics.jsonl, without a last line that a crash cut short."""
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
