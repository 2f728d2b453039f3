"""Finished rows of an evaluation are kept in its workdir, so that a job that was stopped need not
repeat them."""

import hashlib
import json
import os
from collections.abc import Callable
from typing import TypeVar

from ml_collections import ConfigDict

import atst_jax
from atst_jax.data.dataset import write_json
from atst_jax.util import config as configs
from atst_jax.util.logs import log

Row = TypeVar("Row", dict, list[dict])


def finished(workdir: str, config: ConfigDict, name: str, compute: Callable[[], Row]) -> Row:
  """`compute()`, or what it returned before for the same name under the same config and version;
  JSON.

  Args:
    config: resolved, so that it holds the hashes of encoder and data.
    name: of the row, unique in the evaluation.
  """
  key = json.dumps([configs.to_json(config), name, atst_jax.__version__], sort_keys=True)
  path = os.path.join(workdir, "rows", f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json")
  try:
    with open(path, encoding="utf-8") as file:
      row = json.load(file)["row"]
    log.info("%s: read from %s", name, path)
    return row
  except (FileNotFoundError, json.JSONDecodeError, KeyError):
    pass
  row = json.loads(json.dumps(compute()))
  os.makedirs(os.path.dirname(path), exist_ok=True)
  write_json(path, {"name": name, "row": row})
  return row
