"""An encoder for others to use: a folder with its weights, `config.json` and the front-end's mel filters.

  python -m atst_jax.export --workdir=runs/base --output=encoders/base
  python -m atst_jax.export --workdir=runs/base --output=encoders/base_5000 --step=5000 --artifacts=safetensors,params

The folder needs no config file and none of the training code's classes; `atst_jax.embed.load_model` opens it.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Collection

import jax
import numpy as np

import atst_jax
from atst_jax import storage
from atst_jax.checkpoint import checkpoint_folder, restore_encoder, save_tree
from atst_jax.encoders import make_encoder
from atst_jax.errors import UserError
from atst_jax.exported import CONFIG, FILTERS, FORMAT, ORBAX, SAFETENSORS, params_hash, read, write_weights
from atst_jax.frontend import FrontEnd, get_frontend, mel_filters
from atst_jax.records import write_json
from atst_jax.workdir import read_config

CNN_CHUNK = 6000  # frames, a minute: nothing in a convolutional encoder is bound to the training crop
WEIGHTS = ("safetensors", "params")  # Orbax, the latter
ARTIFACTS = WEIGHTS
DEFAULT = ("safetensors",)
TOLERANCE = 1e-5  # between the exported and the restored encoder on the same input


def write(output: str, variables, *, encoder: dict, frontend: FrontEnd, normalization: dict, chunk_frames: int,
          tail: str, provenance: dict, artifacts: Collection[str] = DEFAULT) -> None:  # fmt: skip
  """Writes an export, reads it back, compares the embeddings of both, and only then gives it its final name.

  Args:
    output: folder; must not exist.
    variables: {"params": …[, "batch_stats": …]} of the encoder.
    encoder: `kind` and its arguments.
    normalization: `kind` and its constants (`normalization.normalize`).
    chunk_frames: longer audio is cut into chunks of so many frames.
    tail: how their embeddings are averaged (`embed.Model.embed`).
    provenance: where it comes from; any JSON.
    artifacts: some of ARTIFACTS, weights of one kind among them.

  Raises:
    UserError: the output exists or cannot be written; an unknown artifact, or no weights.
    RuntimeError: what was read back differs.
  """
  if not set(artifacts) <= set(ARTIFACTS) or not set(artifacts) & set(WEIGHTS):
    raise UserError(f"--artifacts={','.join(artifacts)}: choose from {', '.join(ARTIFACTS)}, with at least one of "
                    f"{' and '.join(WEIGHTS)}")  # fmt: skip
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
    if "safetensors" in artifacts:
      write_weights(os.path.join(temporary, SAFETENSORS), variables)
    if "params" in artifacts:
      save_tree(os.path.join(temporary, ORBAX), variables)
    np.save(os.path.join(temporary, FILTERS), mel_filters(frontend))
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


def export_run(workdir: str, output: str, step: int | None = None, **options) -> dict:
  """Exports the encoder of a pre-training run (its newest checkpoint by default). Returns the provenance.

  The config's `export` says whose: ATST exports the teacher's, BYOL-A the student's with its running statistics.

  Args:
    workdir: may also be the run's `checkpoint.folder`, which may lie in a store.
    options: of `write`.
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
  write(output, variables, provenance=provenance, **settings(config), **options)
  return provenance


def main(argv=None) -> int:
  parser = argparse.ArgumentParser("python -m atst_jax.export", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
  parser.add_argument(
    "--workdir", required=True, help="folder of a pre-training run, or its checkpoint.folder (gs://…)"
  )
  parser.add_argument("--output", required=True, help="folder to make")
  parser.add_argument("--step", type=int, help="checkpoint to export; the newest by default")
  parser.add_argument("--artifacts", default=",".join(DEFAULT), type=lambda text: text.split(","),
                      help=f"what to write, of {','.join(ARTIFACTS)} (default {','.join(DEFAULT)})")  # fmt: skip
  flags = parser.parse_args(argv)
  try:
    provenance = export_run(flags.workdir, flags.output, flags.step, artifacts=flags.artifacts)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
  print(
    f"{flags.output}: the {provenance['network']}'s encoder after {provenance['step']} steps, read back and compared"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
