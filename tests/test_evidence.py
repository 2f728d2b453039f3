"""The recipe of the evidence: what it runs, what nobody may see, and the arithmetic of its
tables."""

import csv
import json
import sys

import numpy as np
import pytest

from configs import evidence as config
from tests.tiny import ROOT


@pytest.fixture(scope="module")
def evidence():
  sys.path.insert(0, str(ROOT / "launch"))
  try:
    import evidence

    yield evidence
  finally:
    sys.path.remove(str(ROOT / "launch"))


@pytest.fixture
def recordings(tmp_path):
  root = tmp_path / "recordings"
  names = [
    f"esc10/{label}/{fold}-{fold}{i}-A.ogg"
    for i, label in enumerate(("rain", "rooster"))
    for fold in range(1, 6)
  ]
  names += [f"fsdd/{digit}_jackson_{take}.flac" for digit in (0, 1) for take in (4, 5, 8, 9)]
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()
  return root


def test_what_is_tested_was_not_pretrained_on(evidence, recordings, tmp_path):
  evidence.write_manifests(recordings, tmp_path / "out")
  read = lambda name: list(
    csv.DictReader((tmp_path / "out" / f"{name}.csv").read_text(encoding="utf-8").splitlines())
  )
  trained, labelled = {row["path"] for row in read("pretrain")}, read("esc10")
  tested = {row["path"] for row in labelled if row["split"] == "test"}
  assert len(tested) == 4 and not tested & trained
  assert {row["path"] for row in labelled} - tested == {
    path for path in trained if path.startswith("esc10")
  }
  assert sum(path.startswith("fsdd") for path in trained) == 4


def test_dry_run_names_every_step_and_skips_what_is_done(
  evidence, recordings, tmp_path, capfd, monkeypatch
):
  output = tmp_path / "out"
  flags = [
    f"--recordings={recordings}",
    f"--output={output}",
    "--only=ablation",
    "--seeds=1",
    "--dry_run",
    "--config.total_steps=77",
  ]
  monkeypatch.setattr(sys, "argv", ["evidence.py", *flags])
  monkeypatch.chdir(ROOT)
  assert evidence.main() == 0
  lines = capfd.readouterr().out.splitlines()
  assert len(lines) == 3 + 4 * 3
  assert (
    sum(
      "configs/evidence.py:ablation" in line
      and "--config.seed=1" in line
      and "--config.total_steps=77" in line
      for line in lines
    )
    == 4
  )
  encoder = output / "ablation" / "segments=two_crop_frames=48_seed=1" / "encoder"
  encoder.mkdir(parents=True)
  (encoder / "config.json").touch()
  assert evidence.main() == 0
  assert len(capfd.readouterr().out.splitlines()) == len(lines) - 2


def test_what_was_trained_otherwise_is_not_taken_for_the_result(evidence, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  command = ["--config=configs/evidence.py:cnn", f"--workdir={tmp_path}"]
  evidence.agree(command, ["--config.total_steps=77"])  # nothing there yet
  (tmp_path / "config.json").write_text(
    json.dumps({"total_steps": 160, "encoder": {"hidden": 256}})
  )
  evidence.agree(command, ["--config.total_steps=160", "--config.encoder.hidden=256"])
  with pytest.raises(SystemExit, match="was trained with total_steps=160, not"):
    evidence.agree(command, ["--config.total_steps=77"])


def test_sweeps_are_every_setting_with_every_seed():
  settings = {tuple(sorted(run.items())) for run in config.SWEEPS["lambda"]}
  assert len(settings) == len(config.SWEEPS["lambda"]) == 9 and len(config.SWEEPS["views"]) == 12


def write_scores(root, name, values):
  rows = [
    {"features": "pre-trained", "name": column, "mean": value / 100}
    for column, value in values.items()
  ]
  (root / name / "bgknown").mkdir(parents=True)
  (root / name / "bgknown" / "results.json").write_text(json.dumps({"rows": rows}))


def test_tables_give_spreads_and_paired_differences(evidence, tmp_path):
  scores = {"0.0": (40, 44, 41), "0.2": (41, 46, 44)}
  for weight, values in scores.items():
    for seed, value in enumerate(values):
      write_scores(tmp_path / "cnn", f"weight={weight}_seed={seed}", {"Mix": 30, "(a) 100%": value})
  lines = evidence.tables(tmp_path, ["cnn", "transformer"], ["0", "1", "2"]).splitlines()
  assert (
    f"| weight=0.2 | pre-trained | 3 | 30.0 ± 0.0 | {np.mean(scores['0.2']):.1f} ± 2.5 |  |  |  |"
    in lines
  )
  # differences 1, 2, 3: mean 2, 95 % interval 4.303 / sqrt(3)
  assert (
    "| weight=0.2 | pre-trained | +0.0 ± 0.0 (0 of 3) | +2.0 ± 2.5 (3 of 3) |  |  |  |" in lines
  )
  assert (
    "| minus weight=0.0, by seed | features | Mix | (a) 100% | (b) 50% | (c) 0% | ESC-10 |" in lines
  )
