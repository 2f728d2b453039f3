"""The trained network of a fine-tuning run, and the encoder and data of the run."""

import functools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atst_jax.artifacts.classifiers.head import MOST_FRAMES, folded
from atst_jax.artifacts.folder import HEAD, embedding_hash, read
from atst_jax.data.dataset import Dataset
from atst_jax.data.labelled_batches import steps_per_epoch
from atst_jax.downstream import evaluation, features
from atst_jax.downstream.features import Labels
from atst_jax.downstream.finetune.classifier import make_classifier
from atst_jax.downstream.splits import Split
from atst_jax.models.layers import BatchNorm
from atst_jax.runtime.checkpoint import checkpoint_folder
from atst_jax.runtime.checkpoint_folder import entries
from atst_jax.runtime.trees import ITEM, restore_alone
from atst_jax.util import storage
from atst_jax.util.errors import UserError

EPOCHS = ("best", "last")


class Which(NamedTuple):
  """A choice among a job's networks."""

  epoch: str  # "best" or "last"
  seed: int
  fold: int

  @property
  def folder(self) -> str:
    """The run's."""
    return f"seed{self.seed}-division{self.fold}"

  def of(self, results: dict | None) -> dict:
    """Its entry in results.json; empty if there is none."""
    for row in results["rows"] if results else []:
      for run in row["runs"] if row["name"].endswith(f", {self.epoch}") else []:
        if (run["seed"], run["fold"]) == (self.seed, self.fold):
          return run
    return {}


class Opened(NamedTuple):
  """The encoder and data of a run."""

  exported: dict  # config.json of the encoder that it began with
  filters: np.ndarray
  dataset: Dataset
  labels: Labels
  splits: list[Split]
  frames: int  # T of every batch
  most: int  # frames of the longest clip that is not cropped


def find_runs(workdir: str, record: dict, epoch: str) -> tuple[str, list[Which]]:
  """The folder of the checkpoints, and the runs in it: of a workdir, or of a `checkpoint.folder`
  itself."""
  if epoch not in EPOCHS:
    raise UserError(f"--epoch={epoch}: choose one of {', '.join(EPOCHS)}")
  for folder in (checkpoint_folder(workdir, record["checkpoint"]["folder"]), workdir):
    found = []
    for name in sorted(storage.names(folder)):
      seed, _, fold = name.removeprefix("seed").partition("-division")
      if seed.isdigit() and fold.isdigit() and entries(os.path.join(folder, name)):
        found.append(Which(epoch, int(seed), int(fold)))
    if found:
      return folder, found
  raise UserError(f"--workdir={workdir}: no run has a checkpoint so far")


def choose(
  runs: list[Which], results: dict | None, seed: int | None, fold: int | None, workdir: str
) -> Which:
  """The chosen run: of several, the one with the best validation score.

  Args:
    results: results.json of a job that has ended.
    seed, fold: of the run, if asked for.

  Raises UserError if there is none, or if there are several of a job that has not ended.
  """
  asked = {key: x for key, x in (("seed", seed), ("fold", fold)) if x is not None}
  wanted = [run for run in runs if asked.items() <= run._asdict().items()]
  if not wanted:
    raise UserError(
      f"{' '.join(f'--{key}={x}' for key, x in asked.items())}: {workdir} has the runs "
      f"{', '.join(run.folder for run in runs)}"
    )
  if len(wanted) > 1 and not all(run.of(results) for run in wanted):
    raise UserError(
      f"--workdir={workdir}: the job has not ended, and {len(wanted)} of its runs have a "
      "checkpoint: choose one by --seed and --fold, or run the job to its end"
    )
  return max(wanted, key=lambda run: run.of(results).get("valid", 0))


def open_run(record: dict, data: str | None, encoder: str | None) -> Opened:
  """Opens the encoder and data of a run. Raises UserError if they are missing or other ones.

  Args:
    record: the run's config.
    data, encoder: their present paths, if moved.
  """
  data, encoder = data or record["data"]["path"], encoder or record["encoder"]
  for flag, path in (("data", data), ("base", encoder)):
    if not storage.is_folder(path):
      raise UserError(f"{path}, which the run was made with, does not exist: --{flag} says where")
  exported, _, filters = read(encoder)
  dataset = Dataset.load(data)
  for flag, path, found, known in (
    ("base", encoder, exported["params_hash"], record["params_hash"]),
    ("base", encoder, settings := embedding_hash(exported), record.get("embedding_hash", settings)),
    ("data", data, features.fingerprint(dataset), record["data"]["fingerprint"]),
  ):
    if found != known:
      raise UserError(
        f"{path} holds {found}, and the run was made with {known}: --{flag} says where that is"
      )
  labels = features.read_labels(dataset)
  splits = evaluation.divide(
    dataset,
    labels,
    seed=record["seed"],
    select_on_test=record["select_on_test"],
    **record["splits"],
  )
  longest = max(split["max_frames"] for split in dataset.manifest["splits"].values())
  rate = dataset.frontend.sample_rate
  most = min(dataset.frontend.num_frames(round(record["max_seconds"] * rate)), MOST_FRAMES)
  return Opened(exported, filters, dataset, labels, splits, min(longest, most), most)


def restore(path: str, step: int, record: dict, run: Opened, which: Which):
  """The network of a checkpoint: (variables of an export with a head, the number of its epoch, its
  validation score if the checkpoint has it). Raises UserError."""
  network = make_classifier(
    run.exported["encoder"],
    classes=run.labels.targets.shape[1],
    drop_path=record["drop_path"],
    chunk_frames=run.exported["chunk_frames"],
    tail=record["tail"],
    dtype=jnp.float32,
    attention="xla",
    remat=False,
  )
  clip = jnp.zeros((1, run.frames, run.dataset.frontend.n_mels))
  init = functools.partial(network.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), clip, jnp.full(1, run.frames))
  like = {key: shapes[key] for key in ("params", "batch_stats")}
  if which.epoch == "best":
    scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype)
    like = {"best": {**like, "score": scalar(np.float32), "epoch": scalar(np.int32)}}
  try:
    found = restore_alone(os.path.join(path, ITEM), like)
  except Exception as error:  # Orbax, TensorStore and their formats raise many kinds
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"{path}: cannot be read as a checkpoint of fine-tuning ({type(error).__name__}: {reason})"
    ) from error
  if which.epoch == "last":
    steps = steps_per_epoch(len(run.splits[which.fold].train), record["batch_size"])
    return _variables(found), step // steps, None
  best = found["best"]
  if best["epoch"] == 0:
    raise UserError(f"{path}: no epoch was validated so far; go on with the run, or --epoch=last")
  return _variables(best), int(best["epoch"]), float(best["score"])


def _variables(network: dict) -> dict:
  """A classifier's parameters and statistics as an export has them."""
  params, statistics = network["params"], network["batch_stats"]
  norm, layer = statistics["head_norm"], params["head"]
  std = np.sqrt(np.asarray(norm["var"], np.float64) + BatchNorm.epsilon)
  variables = {"params": params["encoder"]}
  if "encoder" in statistics:
    variables["batch_stats"] = statistics["encoder"]
  variables[HEAD] = folded(layer["kernel"], layer["bias"], norm["mean"], std)
  return variables
