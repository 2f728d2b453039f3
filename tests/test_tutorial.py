"""The tutorial's cells run in order, in small."""

import json

import numpy as np
import pytest

from tests.preparing import write_inline
from tests.tiny import ROOT

NOTEBOOK = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
TINY = """
clips_per_class = 4
steps = 2
overrides = ["--config.encoder.width=16", "--config.encoder.depth=1", "--config.heads.hidden=32",
             "--config.heads.out=8",
             "--config.views.crop_frames=64", "--config.encoder.max_frames=64",
             "--config.data.clip_frames=128",
             "--config.log.every_steps=1", "--config.difference.weight=0", "--config.batch_size=16",
             "--config.views.group=2"]
"""


@pytest.fixture
def pyplot(monkeypatch):
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  yield plt
  plt.close("all")


def test_the_tutorial_runs(tmp_path, monkeypatch, pyplot, one_device):
  """Only the cell tagged `parameters` is another one."""
  monkeypatch.chdir(ROOT / "docs")
  monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(tmp_path))
  write_inline(monkeypatch)
  names, small = {"__name__": "tutorial"}, 0
  for cell in NOTEBOOK["cells"]:
    if cell["cell_type"] == "code":
      parameters = "parameters" in cell["metadata"].get("tags", ())
      small += parameters
      exec(compile(TINY if parameters else "".join(cell["source"]), cell["id"], "exec"), names)
  assert small == 1 and names["vectors"].shape == (40, 32) and np.isfinite(names["vectors"]).all()
  assert len(names["results"]["rows"]) == 3 and len(pyplot.get_fignums()) == 4


def test_the_tutorial_holds_no_outputs():
  assert not [
    cell["id"] for cell in NOTEBOOK["cells"] if cell.get("outputs") or cell.get("execution_count")
  ]
