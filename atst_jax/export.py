"""An encoder for others to use: a folder with `params/` (Orbax), `config.json` and the front-end's mel filters.

  python -m atst_jax.export --workdir=runs/base --output=encoders/base [--step=N]

The folder needs no config file and none of the training code's classes; `atst_jax.embed.load_model` opens it.
"""

import argparse
import hashlib
import os
import shutil
import sys

import jax
import numpy as np

import atst_jax
from atst_jax import storage
from atst_jax.checkpoint import checkpoint_folder, restore_encoder, restore_like, save_tree
from atst_jax.encoders import check_encoder, frames_per_vector, make_encoder
from atst_jax.errors import UserError
from atst_jax.frontend import FrontEnd, get_frontend, mel_filters
from atst_jax.normalization import check_normalization
from atst_jax.records import write_json
from atst_jax.workdir import read_config

FORMAT = 2
CONFIG = "config.json"
CNN_CHUNK = 6000  # frames, a minute: nothing in a convolutional encoder is bound to the training crop
MAX_CHUNK = 1 << 20  # frames, three hours
MOST_COMPRESSED = 64  # weights hardly compress; only constant arrays do
TOLERANCE = 1e-5  # between the exported and the restored encoder on the same input


def params_hash(variables) -> str:
  """16 hexadecimal digits over names, shapes and values of all arrays."""
  digest = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(variables):
    digest.update(f"{jax.tree_util.keystr(path)} {np.shape(x)}".encode() + np.asarray(x, np.float32).tobytes())
  return digest.hexdigest()[:16]


def write(output: str, variables, *, encoder: dict, frontend: FrontEnd, normalization: dict, chunk_frames: int,
          tail: str, provenance: dict) -> None:  # fmt: skip
  """Writes an export, reads it back, compares the embeddings of both, and only then gives it its final name.

  Args:
    output: folder; must not exist.
    variables: {"params": …[, "batch_stats": …]} of the encoder.
    encoder: `kind` and its arguments.
    normalization: `kind` and its constants (`normalization.normalize`).
    chunk_frames: longer audio is cut into chunks of so many frames.
    tail: how their embeddings are averaged (`embed.Model.embed`).
    provenance: where it comes from; any JSON.

  Raises:
    UserError: the output exists or cannot be written.
    RuntimeError: what was read back differs.
  """
  if os.path.exists(output):
    raise UserError(f"{output} exists; choose another folder or remove it")
  temporary = storage.temporary_name(output.rstrip("/"))
  config = {
    "format": FORMAT,
    "encoder": encoder,
    "frontend": frontend.to_json(),
    "normalization": normalization,
    "chunk_frames": chunk_frames,
    "tail": tail,
    "params_hash": params_hash(variables),
    "provenance": provenance,
  }
  try:
    os.makedirs(temporary)
    save_tree(os.path.join(temporary, "params"), variables)
    np.save(os.path.join(temporary, "mel_filters.npy"), mel_filters(frontend))
    write_json(os.path.join(temporary, CONFIG), config)
    read_config_, read_variables, _ = read(temporary)
    noise = np.random.Generator(np.random.Philox(0)).normal(size=(2, chunk_frames, frontend.n_mels)).astype(np.float32)
    forward = jax.jit(lambda variables: make_encoder(read_config_["encoder"]).apply(variables, noise)[0])
    difference = float(np.abs(forward(variables) - forward(read_variables)).max())
    if not difference <= TOLERANCE:
      raise RuntimeError(f"{temporary}: embeddings of the export differ by {difference} from the checkpoint's")
    os.rename(temporary, output)
  except OSError as error:
    raise UserError(f"--output={output}: cannot be written ({error.strerror})") from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def read(folder: str):
  """(config, variables as numpy arrays, mel filters) of an export. Raises UserError naming what is wrong with it.

  The folder may come from anywhere: everything is checked before it is used, and no more memory is asked for than an
  encoder of the size that config.json states needs.
  """
  path = os.path.join(folder, CONFIG)
  try:
    config = storage.read_json(path)
    if config["format"] != FORMAT:
      raise UserError(f"{path}: format {config['format']}, this code reads {FORMAT}; export the encoder again")
    frontend = FrontEnd.from_json(config["frontend"])
    expected = _checked(config, frontend)
    filters = _read_filters(os.path.join(folder, "mel_filters.npy"), frontend)
    _check_size(os.path.join(folder, "params"), expected)
  except FileNotFoundError as error:
    raise UserError(f"{error.filename} does not exist: {folder!r} is not an exported encoder; make one with "
                    f"`python -m atst_jax.export --workdir=… --output={folder}`") from None  # fmt: skip
  except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{folder}: damaged export ({type(error).__name__}: {error}); export it again") from error
  variables = restore_like(os.path.join(folder, "params"), expected)
  if params_hash(variables) != config["params_hash"]:
    raise UserError(
      f"{folder}/params: contents do not match params_hash in {CONFIG}; the export is damaged, make it again"
    )
  return config, variables, filters


def settings(config: dict) -> dict:
  """What an encoder of a pre-training run needs beside its parameters: the keyword arguments of `write` that follow
  from the run's resolved config."""
  cnn = config["encoder"]["kind"] == "cnn"
  return {
    "encoder": config["encoder"],
    "frontend": get_frontend(config["data"]["frontend"]),
    "normalization": config["views"]["normalization"],
    "tail": config["tail"],
    "chunk_frames": CNN_CHUNK if cnn else config["views"]["crop_frames"],
  }


def _checked(config: dict, frontend: FrontEnd):
  """The shapes of the variables that a config.json describes. Raises ValueError, KeyError, TypeError or AttributeError
  for what no export says."""
  check_encoder(config["encoder"], frontend.n_mels)
  check_normalization(**config["normalization"])
  chunk, longest = config["chunk_frames"], config["encoder"].get("max_frames", MAX_CHUNK)
  if type(chunk) is not int or not frames_per_vector(config["encoder"]) <= chunk <= longest:
    raise ValueError(f"chunk_frames {chunk!r} do not fit the encoder")
  for key, kind in (("tail", str), ("params_hash", str), ("provenance", dict)):
    if not isinstance(config[key], kind):
      raise TypeError(f"{key} is a {type(config[key]).__name__}")
  clip = jax.ShapeDtypeStruct((1, chunk, frontend.n_mels), np.float32)
  return jax.eval_shape(make_encoder(config["encoder"]).init, jax.random.key(0), clip)


def _read_filters(path: str, frontend: FrontEnd) -> np.ndarray:
  """The mel filters of a file that holds no more than its size says: mapped, because `np.load` believes the header."""
  filters = np.load(path, mmap_mode="r", allow_pickle=False)
  shape = (frontend.n_fft // 2 + 1, frontend.n_mels)
  if not isinstance(filters, np.ndarray) or filters.shape != shape or filters.dtype != np.float32:
    raise ValueError(f"mel_filters.npy is no float32 array of shape {shape}")
  filters = np.array(filters)
  if not np.isfinite(filters).all():
    raise ValueError("mel_filters.npy holds NaN or infinity")
  return filters


def _check_size(folder: str, expected) -> None:
  """Raises ValueError if the variables would take very much more memory than the folder has bytes."""
  stored = sum(os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names)
  wanted = sum(4 * x.size for x in jax.tree.leaves(expected))
  if wanted > MOST_COMPRESSED * (stored + 1024):
    raise ValueError(f"an encoder of {wanted} bytes in {stored} bytes")


def export_run(workdir: str, output: str, step: int | None = None) -> dict:
  """Exports the encoder of a pre-training run (its newest checkpoint by default). Returns the provenance.

  `workdir` may also be the run's `checkpoint.folder`, which may lie in a store.

  The config's `export` says whose: ATST exports the teacher's, BYOL-A the student's with its running statistics.
  """
  config = read_config(workdir)
  if config["job"] != "pretrain":
    raise UserError(
      f"--workdir={workdir} holds a {config['job']!r} run; only pre-training runs have an encoder to export"
    )
  if missing := [key for key in ("export", "tail") if key not in config]:
    raise UserError(f"--workdir={workdir} was written by an older version (its config lacks {', '.join(missing)}); "
                    "train it again, or export it with that version")  # fmt: skip
  is_folder = any(name.isdigit() for name in storage.names(workdir))  # of checkpoints, with their config beside them
  folder = workdir if is_folder else checkpoint_folder(workdir, config["checkpoint"].get("folder"))
  variables, step = restore_encoder(folder, step, network=config["export"])
  provenance = {"step": step, "network": config["export"], "atst_jax": atst_jax.__version__, "config": config}
  write(output, variables, provenance=provenance, **settings(config))
  return provenance


def main(argv=None) -> int:
  parser = argparse.ArgumentParser("python -m atst_jax.export", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
  parser.add_argument(
    "--workdir", required=True, help="folder of a pre-training run, or its checkpoint.folder (gs://…)"
  )
  parser.add_argument("--output", required=True, help="folder to make")
  parser.add_argument("--step", type=int, help="checkpoint to export; the newest by default")
  flags = parser.parse_args(argv)
  try:
    provenance = export_run(flags.workdir, flags.output, flags.step)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
  print(
    f"{flags.output}: the {provenance['network']}'s encoder after {provenance['step']} steps, read back and compared"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
