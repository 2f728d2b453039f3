"""An encoder for others to use: a folder with `params/` (Orbax), `config.json` and the front-end's mel filters.

  python -m atst_jax.export --workdir=runs/base --output=encoders/base [--step=N]

The folder needs no config file and none of the training code's classes; `atst_jax.embed.load_model` opens it.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys

import jax
import numpy as np

import atst_jax
from atst_jax import storage
from atst_jax.checkpoint import checkpoint_folder, restore_encoder, restore_tree, save_tree
from atst_jax.encoders import make_encoder
from atst_jax.errors import UserError
from atst_jax.frontend import FrontEnd, get_frontend, mel_filters
from atst_jax.records import write_json
from atst_jax.workdir import read_config

FORMAT = 2
CONFIG = "config.json"
CNN_CHUNK = 6000  # frames, a minute: nothing in a convolutional encoder is bound to the training crop
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
  temporary = f"{output.rstrip('/')}.tmp-{os.getpid()}"
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
  """(config, variables as numpy arrays, mel filters) of an export. Raises UserError naming what is wrong with it."""
  path = os.path.join(folder, CONFIG)
  try:
    with open(path, encoding="utf-8") as file:
      config = json.load(file)
    if config["format"] != FORMAT:
      raise UserError(f"{path}: format {config['format']}, this code reads {FORMAT}; export the encoder again")
    FrontEnd.from_json(config["frontend"])
    filters = np.load(os.path.join(folder, "mel_filters.npy"), allow_pickle=False)
  except FileNotFoundError as error:
    raise UserError(f"{error.filename} does not exist: {folder!r} is not an exported encoder; make one with "
                    f"`python -m atst_jax.export --workdir=… --output={folder}`") from None  # fmt: skip
  except (OSError, EOFError, KeyError, ValueError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{folder}: damaged export ({type(error).__name__}: {error}); export it again") from error
  variables = restore_tree(os.path.join(folder, "params"))
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
