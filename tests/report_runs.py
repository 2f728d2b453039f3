"""Results of evaluations as a report reads them, without an evaluation."""

import json
import os

from atst_jax.audio.frontend import FRONTENDS
from atst_jax.downstream.metrics import summary

CONDITIONS = ("Mix", "(a) 100%", "(b) 50%", "(c) 0%")
PRETRAINING = {
  "encoder": {"kind": "transformer", "width": 384, "depth": 12},
  "difference": {"weight": 0.2},
  "views": {"segments": "two", "crop_frames": 601},
}


def row(name, scores=(0.5, 0.6, 0.7), **more):
  return {"name": name, "features": name.partition(",")[0], **summary(list(scores)), **more}


def write_run(
  folder,
  protocol,
  data,
  rows,
  *,
  encoder="encoders/ours",
  params_hash="0123456789abcdef",
  pretraining=PRETRAINING,
  config=None,
  **more,
):
  """A results.json as an evaluation writes it. Returns the workdir. `data`: name or section."""
  if isinstance(data, str):
    data = {"name": data, "path": f"data/{data}", "fingerprint": "f00d"}
  results = {
    "job": {"atst": "linear", "evar": "linear"}.get(protocol, protocol),
    "protocol": protocol,
    "metric": "accuracy",
    "data": data,
    "selected_on_test": False,
    "chance": 0.02,
    "encoder": {
      "path": encoder,
      "params_hash": params_hash,
      "frontend": FRONTENDS["atst"].to_json(),
      "provenance": {"step": 39000, "config": pretraining}
      if pretraining
      else {"converted_from": "x"},
    },
    "config": {"seeds": 3, **(config or {})},
    "versions": {"atst_jax": "1"},
    "rows": rows,
    **more,
  }
  os.makedirs(folder)
  with open(os.path.join(folder, "results.json"), "w", encoding="utf-8") as file:
    json.dump(results, file)
  return str(folder)


def finetuned(folder, rate, valid, score=0.3, **config):
  config = {
    "optimizer": {"base_lr": rate, "momentum": 0.9},
    "data": {"path": str(folder), "fingerprint": "f00d"},
    **{key: {} for key in ("compute", "mesh", "log", "checkpoint")},
    "guard": {"step_seconds": 900.0},
    "encoder": str(folder),
    "platform": "auto",
    "seeds": 1,
    **config,
  }
  rows = [
    row("pre-trained, best", [score], valid=valid),
    row("pre-trained, last", [score - 0.1], valid=valid),
  ]
  return write_run(folder, "finetune", "audioset", rows, config=config, metric="mAP")
