"""Log lines and the progress bar on a terminal, and without one."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest

from atst_jax.pretraining.loop import Report
from atst_jax.runtime.metric_writer import MetricWriter
from atst_jax.util import logs

KEYS = ("loss", "learning_rate", "weight_decay", "ema_decay", "grad_norm")
METRICS = dict.fromkeys((*KEYS, "std_student", "std_teacher"), np.float32(0.5))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_takes_the_place_of_the_steps_lines(tmp_path, monkeypatch, terminal):
  """The metrics are written either way, and other lines do not break into the bar."""
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
  logs.set_up()
  with contextlib.closing(MetricWriter(str(tmp_path))) as writer:
    report = Report(writer, 0, total_steps=4, batch_size=2, every_steps=2)
    report(2, METRICS)
    logs.log.info("another line")
    report(4, METRICS)
    report.bar.close()
  shown = sys.stderr.getvalue()
  records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [record["step"] for record in records] == [2, 4]
  assert ("4/4" in shown and "loss=0.5000" in shown) == terminal
  assert ("step 4/4 loss 0.5000" in shown) != terminal
  (line,) = [line for line in shown.splitlines() if "another line" in line]
  assert "step" not in line
