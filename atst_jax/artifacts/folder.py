"""The folder of an exported encoder: `config.json`, the front-end's mel filters, and the weights.

Weights lie in `model.safetensors` (variables flattened, their names joined by "/"), in `params/`
(Orbax), or in both. `format` counts up when older code would misread what newer code writes; every
earlier format is still read:

1: `normalization` has no `kind`; weights in `params/`.
2: weights in `params/`.
3: weights in `model.safetensors`, `params/` if asked for; no length rule.
4: `max_seconds`, the length rule: of a longer sound its central seconds, as a waveform, are
  embedded; null: sounds are embedded whole.
5: `head`, with which the encoder is a classifier (`classifiers.head`); null: an encoder alone.
6: `fill_frames`: shorter sounds are filled with silence, half of it at each end; null: as they are.
7: `channels`: how several channels of a recording become one (`audio.channels`).
"""

import hashlib
import json
import os

import jax
import numpy as np

from atst_jax.artifacts.batches import tail_of
from atst_jax.artifacts.classifiers.head import read_head
from atst_jax.audio.channels import MEAN, check_channels
from atst_jax.audio.frontend import FrontEnd
from atst_jax.method.normalization import check_normalization
from atst_jax.models.encoders import check_encoder, make_encoder
from atst_jax.util import storage
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log

FORMAT = 7
CONFIG = "config.json"
FILTERS = "mel_filters.npy"
SAFETENSORS = "model.safetensors"
ORBAX = "params"
HEAD = "head"  # section of CONFIG, and part of the variables
# of CONFIG, what vectors follow from beside the weights and the front-end
EMBEDDING = ("encoder", "normalization", "chunk_frames", "tail", "max_seconds", "fill_frames")
MAX_CHUNK = 1 << 20  # frames, three hours
MOST_SECONDS = 86_400.0  # of a length rule
MOST_WEIGHT = 1000.0  # of a mel filter: 1 in a triangle, more where a scale makes it
MOST_COMPRESSED = 64  # weights hardly compress; only constant arrays do


def params_hash(variables) -> str:
  """16 hexadecimal digits over names, shapes and values of all arrays but a classifier's head: the
  encoder's, whose vectors are the same with a head and without."""
  return _hash({key: part for key, part in variables.items() if key != HEAD})


def head_hash(variables) -> str:
  """The same of the head alone."""
  return _hash(variables[HEAD])


def check_finite(variables) -> None:
  """Raises UserError for weights that give no vectors: those of a run that broke."""
  for path, x in jax.tree_util.tree_leaves_with_path(variables):
    if not np.isfinite(x).all():
      raise UserError(
        f"the weights are not finite ({'/'.join(key.key for key in path)}): the run broke before "
        "they were saved; export those of an earlier --step, or train it again"
      )


def embedding_hash(config: dict) -> str:
  """16 hexadecimal digits over what vectors follow from beside the weights: of an export's config
  the front-end and `EMBEDDING`."""
  settings = {key: config[key] for key in (*EMBEDDING, "frontend")}
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _hash(variables) -> str:
  digest = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(variables):
    digest.update(
      f"{jax.tree_util.keystr(path)} {np.shape(x)}".encode() + np.asarray(x, np.float32).tobytes()
    )
  return digest.hexdigest()[:16]


def upgrade(config: dict, path: str) -> dict:
  """The config of an export of any format in today's form. Raises UserError for a format of newer
  code."""
  number = config["format"]
  if number not in range(1, FORMAT + 1):
    raise UserError(
      f"{path}: format {number}, this code reads 1 to {FORMAT}; "
      "install a newer atst_jax, or export again"
    )
  if number == 1:
    config = {**config, "normalization": {"kind": "min_max", **config["normalization"]}}
  if number < 4:
    log.info(
      "%s: written before exports had a length rule: sounds of any length are embedded whole. To "
      "embed the central 12 s, as ATST's evaluations do, pass --length=12 or export it again with "
      "--length=12",
      path,
    )
    config = {**config, "max_seconds": None}
  if number < 5:
    config = {**config, HEAD: None}
  if number < 6:
    if config["encoder"]["kind"] == "efficientnet":
      raise UserError(
        f"{path}: format {number}; an EfficientNet of that time was padded otherwise, and is "
        "another network here: pre-train it again"
      )
    config = {**config, "fill_frames": None}
  if number < 7:
    config = {**config, "channels": MEAN}
  return {**config, "format": FORMAT}


def check_length(max_seconds) -> None:
  """Raises UserError for what is neither None nor a length in seconds."""
  right = type(max_seconds) in (int, float) and 0.1 <= max_seconds <= MOST_SECONDS
  if max_seconds is not None and not right:
    raise UserError(
      f"max_seconds={max_seconds!r}: must be 0.1 to {MOST_SECONDS:g} seconds, or None (whole "
      "sounds)"
    )


def parse_length(text: str) -> float | None:
  """A length rule from a flag: "whole" or seconds. Raises UserError for anything else."""
  try:
    max_seconds = None if text == "whole" else float(text)
    check_length(max_seconds)
  except ValueError:  # also a UserError
    raise UserError(
      f"--length={text}: must be 'whole', or 0.1 to {MOST_SECONDS:g} seconds of the middle"
    ) from None
  return max_seconds


def write_weights(path: str, variables) -> None:
  """Writes `model.safetensors`."""
  import safetensors.numpy

  leaves = jax.tree_util.tree_leaves_with_path(variables)
  arrays = {"/".join(key.key for key in keys): np.ascontiguousarray(x) for keys, x in leaves}
  with storage.writing(path) as file:
    file.write(safetensors.numpy.save(arrays, {"format": "flax"}))


def _read_weights(path: str, expected) -> dict:
  """The arrays of a `model.safetensors`, whose header cannot claim more than the file holds."""
  import safetensors.numpy

  try:
    arrays = safetensors.numpy.load_file(path)
  except Exception as error:  # of the format's own, and what numpy says of strange types
    raise UserError(
      f"{path}: cannot be read as exported parameters ({type(error).__name__}: {error})"
    ) from error
  leaves, tree = jax.tree_util.tree_flatten_with_path(expected)
  wanted = {"/".join(key.key for key in keys): x for keys, x in leaves}
  describe = lambda x: "absent" if x is None else f"{tuple(x.shape)} {np.dtype(x.dtype)}"
  wrong = [
    n for n in sorted({*wanted, *arrays}) if describe(wanted.get(n)) != describe(arrays.get(n))
  ]
  if wrong:
    raise UserError(
      f"{path}: {len(wrong)} arrays are not those of the encoder in {CONFIG}, the first is "
      f"{wrong[0]}: {describe(arrays.get(wrong[0]))}, not {describe(wanted.get(wrong[0]))}"
    )
  return jax.tree.unflatten(tree, [arrays[name] for name in wanted])


def read(folder: str):
  """(config, variables as numpy arrays, mel filters) of an export. Raises UserError naming what is
  wrong with it.

  The folder may come from anywhere: everything is checked before it is used, and no more memory is
  asked for than an encoder of the size that config.json states needs.
  """
  path = os.path.join(folder, CONFIG)
  weights = os.path.join(folder, SAFETENSORS)
  if not os.path.exists(weights):
    weights = os.path.join(folder, ORBAX)
  if os.path.isfile(folder):
    raise UserError(f"{folder} is a file; give the folder, {os.path.dirname(folder) or '.'}")
  try:
    config = upgrade(_not_a_workdir(storage.read_json(path), folder), path)
    if not os.path.exists(weights):
      raise UserError(f"{folder} lacks {SAFETENSORS}; export it again")
    frontend = FrontEnd.from_json(config["frontend"])
    expected = _checked(config, frontend)
    config["tail"] = tail_of(config["tail"], make_encoder(config["encoder"]))
    filters = _read_filters(os.path.join(folder, FILTERS), frontend)
    _check_size(weights, expected)
  except FileNotFoundError as error:
    raise UserError(
      f"{error.filename} does not exist: {folder!r} is not an exported encoder; make one with "
      f"`python -m atst_jax.export --workdir=… --output={folder}`"
    ) from None
  except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{folder}: damaged export ({type(error).__name__}: {error}); export it again"
    ) from error
  if weights.endswith(SAFETENSORS):
    variables = _read_weights(weights, expected)
  else:
    # Orbax takes a third of a second to import
    from atst_jax.runtime.trees import restore_like

    variables = restore_like(weights, expected)
  same = params_hash(variables) == config["params_hash"]
  if not same or (config[HEAD] and head_hash(variables) != config[HEAD]["params_hash"]):
    raise UserError(
      f"{weights}: contents do not match params_hash in {CONFIG}; "
      "the export is damaged, make it again"
    )
  return config, variables, filters


def _not_a_workdir(config, folder: str):
  """The content of a config.json. Raises UserError for that of a run."""
  if isinstance(config, dict) and "format" not in config and "job" in config:
    remedy = f"`python -m atst_jax.export --workdir={folder} --output=…` makes one of it"
    if config["job"] not in ("pretrain", "finetune"):
      remedy = (
        f"give the encoder that it evaluated, {config.get('encoder')}, or, of a linear one, the "
        "classifier that --config.export=FOLDER writes"
      )
    raise UserError(f"{folder} is the workdir of a run ({config['job']}), not an export; {remedy}")
  return config


def _checked(config: dict, frontend: FrontEnd):
  """The shapes of the variables that a config.json describes. Raises ValueError, KeyError,
  TypeError or AttributeError for what no export says."""
  check_encoder(config["encoder"], frontend.n_mels)
  check_normalization(**config["normalization"])
  chunk, longest = config["chunk_frames"], config["encoder"].get("max_frames", MAX_CHUNK)
  encoder = make_encoder(config["encoder"])
  if type(chunk) is not int or not encoder.hop <= chunk <= longest:
    raise ValueError(f"chunk_frames {chunk!r} do not fit the encoder")
  check_length(config["max_seconds"])
  fill = config["fill_frames"]
  if fill is not None and not (type(fill) is int and encoder.hop <= fill <= chunk):
    raise ValueError(f"fill_frames {fill!r} do not fit the encoder")
  kinds = {"tail": str, "params_hash": str, "channels": str, "provenance": dict}
  for key, kind in kinds.items():
    if not isinstance(config[key], kind):
      raise TypeError(f"{key} is a {type(config[key]).__name__}")
  check_channels(config["channels"])
  clip = jax.ShapeDtypeStruct((1, chunk, frontend.n_mels), np.float32)
  expected = jax.eval_shape(encoder.init, jax.random.key(0), clip)
  head = read_head(config[HEAD], hop=encoder.hop, depth=encoder.blocks)
  if head and not isinstance(config[HEAD]["params_hash"], str):
    raise TypeError(f"head.params_hash is a {type(config[HEAD]['params_hash']).__name__}")
  return {**expected, HEAD: head.shapes(encoder.size(head.blocks))} if head else expected


def _read_filters(path: str, frontend: FrontEnd) -> np.ndarray:
  filters = storage.read_array(path)
  shape = (frontend.n_fft // 2 + 1, frontend.n_mels)
  if filters.shape != shape or filters.dtype != np.float32:
    raise ValueError(f"{FILTERS} is no float32 array of shape {shape}")
  filters = np.array(filters)
  if not (filters.min() >= 0 and filters.max() <= MOST_WEIGHT):  # NaN is neither
    raise ValueError(f"{FILTERS} holds NaN, or weights beyond 0 to {MOST_WEIGHT:g}")
  return filters


def _check_size(weights: str, expected) -> None:
  """Raises ValueError if the variables would take very much more memory than the folder or file has
  bytes."""
  files = (
    [weights]
    if os.path.isfile(weights)
    else (os.path.join(d, f) for d, _, names in os.walk(weights) for f in names)
  )
  stored = sum(map(os.path.getsize, files))
  wanted = sum(4 * x.size for x in jax.tree.leaves(expected))
  if wanted > MOST_COMPRESSED * (stored + 1024):
    raise ValueError(f"an encoder of {wanted} bytes in {stored} bytes")


def describe_encoder(path: str, exported: dict) -> str:
  """The line of a dry run about an exported encoder."""
  encoder = exported["encoder"]
  return (
    f"encoder     {path}: {encoder['kind']} of width {encoder['width']}, {exported['params_hash']}"
  )
