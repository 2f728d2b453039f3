"""Writing an exported encoder, and reading it back to compare."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator

import jax
import numpy as np

import atst_jax
from atst_jax.artifacts import model_card
from atst_jax.artifacts.classifiers.head import Head, read_head
from atst_jax.artifacts.folder import (
  CONFIG,
  EMBEDDING,
  FILTERS,
  FORMAT,
  HEAD,
  ORBAX,
  SAFETENSORS,
  check_finite,
  head_hash,
  params_hash,
  read,
  write_weights,
)
from atst_jax.artifacts.model import Model
from atst_jax.artifacts.programs import int8_graph, jax_program, onnx_graph, waveform_graph
from atst_jax.artifacts.training_set import channels_of_run
from atst_jax.audio.channels import MEAN
from atst_jax.audio.frontend import FrontEnd, get_frontend, mel_filters
from atst_jax.data.dataset import write_json
from atst_jax.models.encoders import make_encoder
from atst_jax.runtime.checkpoint import checkpoint_folder, find_checkpoint
from atst_jax.runtime.trees import check_path, restore_encoder, save_tree
from atst_jax.runtime.workdir import read_config
from atst_jax.util import lock, storage
from atst_jax.util.errors import StoreError, UserError

LONG_CHUNK = 6000  # frames, a minute: of an encoder that is not bound to the training crop
WEIGHTS = ("safetensors", "params")  # Orbax, the latter
ARTIFACTS = (*WEIGHTS, "card", "jax", "onnx", "onnx_int8")
DEFAULT = ("safetensors", "card")
PROGRAMS = {"jax": jax_program, "onnx": onnx_graph}
INPUTS = ("mel", "waveform")  # of the ONNX graph
TOLERANCE = 1e-5  # between the exported and the restored encoder on the same input
FOREIGN_TOLERANCE = 1e-3  # of another runtime's products, relative to the greatest number


def write(
  output: str,
  variables,
  *,
  encoder: dict,
  frontend: FrontEnd,
  normalization: dict,
  chunk_frames: int,
  tail: str,
  max_seconds: float | None = None,
  fill_frames: int | None = None,
  channels: str = MEAN,
  head: Head | None = None,
  provenance: dict,
  artifacts: Collection[str] = DEFAULT,
  onnx_input: str = INPUTS[0],
  license: str = "unknown",
  results: Collection[str] = (),
) -> None:
  """Writes an export, reads it back, compares the embeddings of both, and only then gives it its
  final name.

  Args:
    output: folder; must not exist.
    variables: {"params": …[, "batch_stats": …]} of the encoder, and "head" of a classifier.
    encoder: `kind` and its arguments.
    normalization: `kind` and its constants (`normalization.normalize`).
    chunk_frames: longer audio is cut into chunks of so many frames.
    tail: how their embeddings are averaged (`embed.Model.embed`).
    max_seconds: the length rule: of longer sounds only the central seconds are embedded; None:
      sounds are embedded whole.
    fill_frames: shorter sounds are filled with silence up to so many frames, half of it at each
      end; None: they are not.
    channels: how several channels of a recording become one (`audio.channels`).
    head: of a classifier.
    provenance: where it comes from; any JSON.
    artifacts: some of ARTIFACTS, weights of one kind among them; programs alone get safetensors.
    onnx_input: of INPUTS; what the ONNX graph takes.
    license: for the model card.
    results: results.json files of this encoder's linear evaluations, for the model card.

  Raises:
    UserError: the output exists or cannot be written; an unknown artifact, or no weights.
    RuntimeError: what was read back differs.
  """
  if set(artifacts) & {*PROGRAMS, "onnx_int8"} and not set(artifacts) & set(WEIGHTS):
    artifacts = (*artifacts, WEIGHTS[0])  # what a program is compared with, now and later
  if not set(artifacts) <= set(ARTIFACTS) or not set(artifacts) & set(WEIGHTS):
    raise UserError(
      f"--artifacts={','.join(artifacts)}: choose from {', '.join(ARTIFACTS)}, "
      f"with at least one of {' and '.join(WEIGHTS)}"
    )
  if storage.is_remote(output):
    raise UserError(f"--output={output}: exports are written to a local folder; copy it from there")
  if "params" in artifacts:
    check_path(output)
  if os.path.exists(output):
    raise UserError(f"{output} exists; choose another folder or remove it")
  check_finite(variables)
  config: dict = {
    "format": FORMAT,
    "encoder": encoder,
    "frontend": frontend.to_json(),
    "normalization": normalization,
    "chunk_frames": chunk_frames,
    "tail": tail,
    "max_seconds": max_seconds,
    "fill_frames": fill_frames,
    "channels": channels,
    "params_hash": params_hash(variables),
    "provenance": provenance,
    HEAD: {**head.to_json(), "params_hash": head_hash(variables)} if head else None,
  }
  try:
    with _making(output.rstrip("/")) as temporary:
      if "safetensors" in artifacts:
        write_weights(os.path.join(temporary, SAFETENSORS), variables)
      if "params" in artifacts:
        save_tree(os.path.join(temporary, ORBAX), variables)
      np.save(os.path.join(temporary, FILTERS), mel_filters(frontend))
      if "jax" in artifacts:
        config["programs"] = {"jax": jax_program.written()}
      write_json(os.path.join(temporary, CONFIG), config)
      model = Model(*read(temporary))
      _compare(temporary, model, variables)
      from_waveform = onnx_input == "waveform" and "onnx" in artifacts
      for artifact in PROGRAMS:
        if artifact == "onnx" and from_waveform:
          waveform_graph.add(temporary, model)
        elif artifact in artifacts:
          add_program(temporary, artifact, model)
      losses = {}
      if "onnx_int8" in artifacts:
        losses["onnx_int8"] = int8_graph.add(temporary, model).told()
      if "card" in artifacts:
        evaluated = [model_card.read_results(path, config["params_hash"]) for path in results]
        text = model_card.card(
          os.path.basename(os.path.abspath(output)),
          model.config,
          variables,
          license=license,
          results=evaluated,
          artifacts=["waveform" if from_waveform and a == "onnx" else a for a in artifacts],
          measured=losses,
        )
        storage.write_text(os.path.join(temporary, model_card.NAME), text)
  except OSError as error:
    raise StoreError(
      f"--output={output}: cannot be written ({error.strerror}); make room or choose another "
      "folder, and run the same command again"
    ) from error


@contextlib.contextmanager
def _making(output: str) -> Iterator[str]:
  """A folder that has its name once it is whole, or never; those that killed processes have not
  finished are removed."""
  lock.remove_unfinished(output)
  temporary = storage.temporary_name(output)
  os.makedirs(temporary)
  number = lock.mark(os.open(temporary, os.O_RDONLY))
  try:
    yield temporary
    os.rename(temporary, output)
  finally:
    os.close(number)
    shutil.rmtree(temporary, ignore_errors=True)


def _compare(folder: str, model: Model, variables) -> None:
  """Raises RuntimeError if a model that was read back encodes noise otherwise than `variables`."""
  shape = (2, model.chunk_frames, model.frontend.n_mels)
  noise = np.random.Generator(np.random.Philox(0)).normal(size=shape).astype(np.float32)
  forward = jax.jit(lambda variables: model.encoder.apply(variables, noise)[0])
  difference = float(np.abs(forward(variables) - forward(model.variables)).max())
  if not difference <= TOLERANCE:
    raise RuntimeError(
      f"{folder}: embeddings of the export differ by {difference} from the checkpoint's"
    )


def add_program(folder: str, kind: str, model: Model) -> None:
  """Writes `encoder.jax` or `encoder.onnx` and runs it beside the model, on noise of two lengths.

  Raises:
    UserError: onnx or onnxruntime is not installed.
    RuntimeError: their vectors differ.
  """
  path, program = os.path.join(folder, f"encoder.{kind}"), PROGRAMS[kind]
  with storage.writing(path) as file:
    file.write(program.build(model))
  encode, outputs = program.load(path), jax.jit(model.outputs)
  rng = np.random.Generator(np.random.Philox(1))
  for frames in sorted({min(model.chunk_frames, 3 * model.hop + 1), min(model.chunk_frames, 203)}):
    mel = rng.normal(-40, 20, (2, frames, model.frontend.n_mels)).astype(np.float32)
    length, peak = np.array([frames, model.hop], np.int32), np.array([mel[0].max(), 10], np.float32)
    expected, found = outputs(model.variables, mel, length, peak), encode(mel, length, peak)
    for name in expected:
      ours, theirs = np.asarray(expected[name]), np.asarray(found[name])
      if name == "frames":  # the second clip's are padding behind the first vector
        ours, theirs = ours[0], theirs[0]
      difference = float(np.abs(ours - theirs).max())
      allowed = FOREIGN_TOLERANCE * float(np.abs(ours).max()) + model.encoder.rounding
      if not difference <= allowed:
        raise RuntimeError(f"{path}: {name} differs by {difference} from the model's")


def settings(config: dict) -> dict:
  """What an encoder of a pre-training run needs beside its parameters: the keyword arguments of
  `write` that follow from the run's resolved config."""
  any_length, views = make_encoder(config["encoder"]).any_length, config["views"]
  return {
    "encoder": config["encoder"],
    "frontend": get_frontend(config["data"]["frontend"]),
    "normalization": views["normalization"],
    "tail": config["tail"],
    "max_seconds": config.get("max_seconds"),  # runs of older versions have no rule
    # where a config has no choice of padding, short clips were seen in silence (`windows`)
    "fill_frames": None if "padding" in views else views["crop_frames"],
    "chunk_frames": LONG_CHUNK if any_length else views["crop_frames"],
  }


def _refuse_foreign(workdir: str, config: dict) -> None:
  """Raises UserError for the config of a run that has no encoder to export."""
  if config["job"] != "pretrain":
    raise UserError(
      f"--workdir={workdir} holds a {config['job']!r} run; pre-training runs have an encoder to "
      "export, fine-tuning runs a classifier, and a linear evaluation writes its own by "
      "--config.export=FOLDER"
    )
  if missing := [key for key in ("export", "tail") if key not in config]:
    raise UserError(
      f"--workdir={workdir} was written by an older version (its config lacks "
      f"{', '.join(missing)}); train it again, or export it with that version"
    )


def export_run(workdir: str, output: str, step: int | None = None, **options) -> dict:
  """Exports the encoder of a pre-training run (its newest checkpoint by default). Returns the
  provenance.

  The config is that which the checkpoint was made with. Its `export` says whose: ATST exports the
  teacher's, BYOL-A the student's with its running statistics.

  Args:
    workdir: may also be the run's `checkpoint.folder`, which may lie in a store.
    options: of `write`.
  """
  # of checkpoints, with their config beside them
  is_folder = any(name.isdigit() for name in storage.names(workdir))
  beside, folder = read_config(workdir), workdir
  _refuse_foreign(workdir, beside)
  if not is_folder:
    folder = checkpoint_folder(workdir, beside["checkpoint"].get("folder"))
  step, path, made_with = find_checkpoint(folder, step)
  config = made_with or beside  # checkpoints of older versions hold none
  variables = restore_encoder(path, network=config["export"])
  provenance = {
    "step": step,
    "network": config["export"],
    "atst_jax": atst_jax.__version__,
    "config": config,
  }
  options = settings(config) | {"channels": channels_of_run(config["data"])} | options
  write(output, variables, provenance=provenance, **options)
  return provenance


def refuse_length(options: dict) -> None:
  """Raises UserError where the options of a classifier's export have another length rule."""
  if "max_seconds" in options:
    length = "whole" if options["max_seconds"] is None else f"{options['max_seconds']:g}"
    raise UserError(
      f"--length={length}: a classifier hears of a longer sound what its evaluation heard; leave "
      "it out, and hear all by `predict --window` (`embed` has a --length of its own)"
    )


def export_again(encoder: str, output: str, **options) -> dict:
  """Exports an exported encoder, with its head if it has one, with other artifacts (`options` of
  `write`). Returns its provenance."""
  config, variables, _ = read(encoder)
  model = Model(config, variables, None)
  kept = {key: config[key] for key in (*EMBEDDING, "channels", "provenance")}
  kept[HEAD] = read_head(config[HEAD], hop=model.hop, depth=model.depth)
  if kept[HEAD]:
    refuse_length(options)
  write(output, variables, frontend=model.frontend, **(kept | options))
  return config["provenance"]
