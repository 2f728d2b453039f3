"""Finds the data pipeline: beside this package in a checkout, inside it in a wheel."""

import importlib
import pathlib
import types


def pipeline(name: str) -> types.ModuleType:
  """The module `data_pipeline.NAME`. A wheel holds it as `atst_jax.data_pipeline.NAME`."""
  root = pathlib.Path(__file__).parents[2]
  inside = "" if (root / "data_pipeline").is_dir() else "atst_jax."
  return importlib.import_module(f"{inside}data_pipeline.{name}")
