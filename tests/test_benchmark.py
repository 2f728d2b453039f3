"""The benchmark of the preparation: it measures what it says, on the same files."""

import json

import numpy as np
import soundfile

from atst_jax.benchmark import main
from atst_jax.frontend import FRONTENDS
from data_pipeline.speed import bare_loop


def test_prepare(tmp_path, capsys):
  """Seconds are nobody's promise here: that the numbers fit together is."""
  rng = np.random.default_rng(0)
  for i in range(6):
    soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, (22050, 2)), 22050)
  (tmp_path / "bad.wav").write_text("text")
  assert main(["prepare", f"--input={tmp_path}", "--seconds=0.05", "--repeats=1", "--workers=2", "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert result["files"] == 6 and abs(result["hours"] - 6 / 3600) < 1e-6
  share = result["clips_per_second"] / result["bare_clips_per_second"]
  assert abs(result["share_of_bare_loop"] - share) < 1e-6 and 0 < share < 2
  assert abs(result["hours_per_core_minute"] - result["clips_per_second"] / 60) < 1e-6  # clips of 1 s
  assert result["pool_clips_per_second"] > 0 and 50 < result["worker_megabytes"] < 1000
  paths = [str(tmp_path / f"{i}.wav") for i in range(6)]
  assert abs(bare_loop(paths, FRONTENDS["atst"], None) - 6) < 1e-3
  assert main(["prepare", f"--input={tmp_path}", "--files=0"]) == 2
  assert main(["prepare", f"--input={tmp_path / 'absent'}"]) == 2
  assert "does not exist" in capsys.readouterr().err
