"""Pre-training that goes on from the weights of an exported encoder.

Student and teacher, if there is one, begin with the encoder of an export, ours or converted. Heads,
optimizer and schedules begin anew. What an encoder expects of its input stays with its weights:
front-end, normalisation and sizes must be the same.
"""

import functools
import os
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from atst_jax.artifacts import folder
from atst_jax.audio.frontend import FrontEnd, get_frontend
from atst_jax.method.train_step import TrainState
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

# Keys of `encoder` that do not decide what its weights are.
FREE = ("drop_path", "dropout", "max_frames")


def read_config(path: str) -> dict:
  """The config.json of an export, in today's form. Raises UserError."""
  file = os.path.join(path, folder.CONFIG)
  try:
    return folder.upgrade(storage.read_json(file), file)
  except (OSError, KeyError, TypeError, ValueError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"--config.initial={path}: not an exported encoder; `python -m atst_jax.export` makes one"
    ) from error


def resolve(config: ConfigDict, begun: dict | None = None) -> None:
  """Fills `initial_hash` and the constants of the normalisation that are not set, in place.

  Args:
    begun: the config that the checkpoints of the run were made with, if there are any. Then the
      export may be gone: all that was taken from it is in them. Until one of them is sound, `need`
      asks for it, since the run may go back to its beginning.

  Raises UserError where the export and the config do not fit, with all that differs.
  """
  if not config.initial:
    if config.initial_hash:
      raise UserError(
        f"--config.initial_hash={config.initial_hash} names the weights of an encoder, and "
        "--config.initial none; give both or neither"
      )
    return
  begun = begun or {}
  began_with = begun.get("initial_hash")
  if began_with and not storage.is_file(os.path.join(config.initial, folder.CONFIG)):
    _fill(config, began_with, (begun.get("views") or {}).get("normalization") or {})
    return
  parent = read_config(config.initial)
  known = parent["params_hash"]
  if config.initial_hash not in (None, known):
    raise UserError(
      f"--config.initial={config.initial} holds {known}, and the run began with "
      f"{config.initial_hash}; give the encoder it began with"
    )
  normalization = config.views.normalization
  _fill(config, known, parent["normalization"])
  ours, theirs = _decisive(config.encoder.to_dict()), _decisive(parent["encoder"])
  different = [
    f"encoder.{key} is {theirs.get(key)!r} there, {ours.get(key)!r} here"
    for key in sorted({*ours, *theirs})
    if ours.get(key) != theirs.get(key)
  ]
  constants = normalization.to_dict()
  different += [
    f"views.normalization.{key} is {parent['normalization'].get(key)!r} there, "
    f"{constants.get(key)!r} here"
    for key in sorted({*constants, *parent["normalization"]})
    if constants.get(key) != parent["normalization"].get(key)
  ]
  frontend = FrontEnd.from_json(parent["frontend"])
  if frontend.hash != get_frontend(config.data.frontend).hash:
    different.append(
      f"the front-end is {frontend.name!r} there, data.frontend is {config.data.frontend!r} here"
    )
  if different:
    raise UserError(f"--config.initial={config.initial} does not fit: {'; '.join(different)}")


def _fill(config: ConfigDict, known: str | None, constants: dict) -> None:
  config.initial_hash = config.initial_hash or known
  normalization = config.views.normalization
  for key, value in constants.items():
    if key in normalization and normalization[key] is None:
      normalization[key] = value


def _decisive(encoder: dict) -> dict:
  return {key: value for key, value in encoder.items() if key not in FREE}


def load(config: ConfigDict) -> dict:
  """The variables {"params": …[, "batch_stats": …]} that a resolved config begins with.

  A transformer that sees longer crops than its parent was trained on gets positions between those
  that were trained, by linear interpolation.

  Raises:
    UserError: the export is damaged, or not the one that `initial_hash` names.
  """
  parent, variables, _ = folder.read(config.initial)
  found = folder.params_hash(variables)
  if found != config.initial_hash:
    raise UserError(
      f"--config.initial={config.initial}: its weights are not those of its config.json "
      f"({found}, not {config.initial_hash}); export it again"
    )
  table = variables["params"].get("pos_embed")
  if table is None or "max_frames" not in config.encoder:  # SSAST's places its own
    return variables
  patch = config.encoder.patch_frames
  crop = config.views.crop_frames // patch
  trained = min(parent["chunk_frames"] // patch, table.shape[1] - 1)
  size = config.encoder.max_frames // patch
  wanted = fit_positions(np.asarray(table), trained=trained, crop=crop, size=size)
  if crop > trained:
    log.info(
      "%s was trained on %d positions; the %d of this run's crops are interpolated from them",
      config.initial,
      trained,
      crop,
    )
  return {**variables, "params": {**variables["params"], "pos_embed": wanted}}


def need(config: ConfigDict) -> None:
  """Raises UserError if the export is not there as it was: for a run that has no sound checkpoint,
  and may go back to its beginning."""
  try:
    load(config)
  except UserError as error:
    raise UserError(
      f"{error}; no checkpoint of this run is sound yet, so it may have to begin again with that "
      "encoder: bring it back"
    ) from error


def fit_positions(table: np.ndarray, *, trained: int, crop: int, size: int) -> np.ndarray:
  """A table of positions for another length.

  Args:
    table: (1, P + 1, D), the first row CLS's.
    trained: how many of its P positions were trained.
    crop: positions of the new training's crops.
    size: positions of the new table.

  Returns:
    (1, size + 1, D). Where the crop is longer than what was trained, its positions are spread
    evenly over the trained ones and interpolated linearly. Positions behind those that are known
    repeat the last.
  """
  rows = table[0, 1:]
  if crop > trained:
    places = np.linspace(0, trained - 1, crop)
    below = np.minimum(places.astype(int), max(trained - 2, 0))
    share = (places - below)[:, None]
    rows = (1 - share) * rows[below] + share * rows[np.minimum(below + 1, trained - 1)]
  rows = rows[np.minimum(np.arange(size), len(rows) - 1)]
  return np.concatenate([table[:, :1], rows[None].astype(table.dtype)], axis=1)


def begin(state: TrainState, variables: dict) -> TrainState:
  """A fresh state whose student, and teacher, have these variables of the encoder.

  The optimizer's state does not depend on parameters and stays.
  """
  put = functools.partial(jax.tree.map, _placed)
  params = {"encoder": variables["params"]}
  statistics = {"encoder": variables["batch_stats"]} if "batch_stats" in variables else {}

  def replaced(tree: Any, parts: dict) -> dict:
    return {**tree, **{name: put(tree[name], part) for name, part in parts.items()}}

  def begun(part: Any) -> Any:
    return part._replace(
      params=replaced(part.params, params), batch_stats=replaced(part.batch_stats, statistics)
    )

  return begun(state)._replace(teacher=begun(state.teacher) if state.teacher else ())


def _placed(like: jax.Array, value) -> jax.Array:
  """An array in the place of another: of its type, on its devices."""
  array = np.asarray(value, like.dtype)
  if array.shape != like.shape:
    raise UserError(f"an array of the initial encoder is {array.shape}, and {like.shape} is needed")
  return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])
