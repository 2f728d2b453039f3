"""Retrieval with auxiliary information (difference-aware paper 5.3, Table 2): a sound and a
sentence ask for the sound that differs from it as the sentence says.

For comparison the table has chance, queries of the sound or the sentence alone, and the whole
system on an encoder with random parameters and on statistics of the log-mel spectrogram.
"""

import functools
import os
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atst_jax.artifacts.folder import describe_encoder
from atst_jax.downstream import bootstrap, evaluation, features
from atst_jax.downstream.metrics import hits_at, scale_of, summary
from atst_jax.downstream.papers.published import published
from atst_jax.downstream.retrieval import adapters, text
from atst_jax.downstream.retrieval.pair_set import SPLITS, PairSet, groups
from atst_jax.downstream.retrieval.settings import Retrieval, resolve
from atst_jax.util.logs import progress_bar

# Paths do not change the computation; hashes identify encoder, data and text model.
FREE_KEYS = ("encoder", "data.path", "text.model")
REPORTED = "audio + text"


def sounds(job: Retrieval, folder: str) -> Iterator[tuple[str, list[np.ndarray]]]:
  """Yields (features, vectors of each seed): one (N, D) array if the seed does not change it, else
  one for each."""
  key = {
    "data": job.record["data"]["fingerprint"],
    "frontend": job.model.frontend.hash,
    "max_frames": job.max_frames,
    "crop": "center",
  }
  found = features.Vectors(folder, job.dataset, job.labels.ids, key=key, max_frames=job.max_frames)
  encode = functools.partial(found.encoded, num_blocks=job.num_blocks)
  statistics = functools.partial(found.statistics, longest=job.max_frames)
  yield from features.by_kind(job.features, job.model, job.seeds, encode, statistics)


def run_rows(name: str, system: str, arrays, words, job: Retrieval) -> list[dict]:
  """Trains and tests one system on one kind of features: a row for each scene and K."""
  runs: dict[tuple[str, int], list[dict]] = {}
  hits: dict[tuple[str, int], list[np.ndarray]] = {}
  for array, group in features.with_seeds(arrays, job.seeds):
    for trained_on in [None] if job.joint else job.galleries:
      train, valid = (job.pairs.rows(split, trained_on) for split in ("train", "valid"))
      data = _data(array, words, job.labels.targets, job.pairs, train, job.standardize)
      with progress_bar(job.training["epochs"], 0, "epoch") as bar:
        bar.set_description(f"{name}, {system}{f', {trained_on}' if trained_on else ''}")
        fitted = adapters.fit(
          data,
          train,
          valid,
          system=system,
          seeds=group,
          on_epoch=lambda losses, bar=bar: bar.update(),
          **job.training,
          **job.sizes,
        )
      for scene in job.galleries if trained_on is None else [trained_on]:
        asked, gallery = job.galleries[scene]
        wanted = np.searchsorted(gallery, job.pairs.target[asked])
        for place, seed in enumerate(group):
          cosines = adapters.similarity(fitted, data, asked, gallery, seed=place, system=system)
          found = hits_at(cosines, wanted, job.recall_at)
          for k, part in zip(job.recall_at, found, strict=True):
            hits.setdefault((scene, k), []).append(part)
            runs.setdefault((scene, k), []).append(
              {
                "seed": seed,
                "fold": None,
                "score": float(part.mean()),
                "learning_rate": job.training["learning_rate"],
                "epoch": int(fitted.epoch[place]),
                "valid_loss": float(fitted.valid_loss[place]),
              }
            )
  return [
    {
      "name": f"R@{k}",
      "scene": scene,
      "system": system,
      "features": name,
      "dimensions": arrays[0].shape[1],
      "gallery": len(job.galleries[scene][1]),
      **summary([run["score"] for run in found]),
      "runs": found,
      "tested": bootstrap.of_hits(_design(job, scene), [np.stack(hits[scene, k])]),
    }
    for (scene, k), found in runs.items()
  ]


def _design(job: Retrieval, scene: str) -> bootstrap.Design:
  """The design of draws of a scene's queries: recordings are drawn where queries share some, else
  those that share a clip are drawn together."""
  pairs, asked = job.pairs, job.galleries[scene][0]
  used = {role: [names[i] for i in asked] for role, names in pairs.recordings.items()}
  linked = [str(group) for group in groups(pairs.query, pairs.target)]
  found = bootstrap.of_recordings([pairs.ids[i] for i in asked], used)
  return found or bootstrap.design([asked], pairs.ids, linked)


def _data(array, words, targets, pairs: PairSet, train, standardize: bool) -> adapters.Data:
  """All arrays on the device. With `standardize`, sounds are standardised by the clips of the
  training pairs."""
  array = np.asarray(array)
  if standardize:
    mean, factor = scale_of(array[np.union1d(pairs.query[train], pairs.target[train])])
    array = (array - mean.astype(np.float32)) * factor.astype(np.float32)
  return adapters.Data(
    *map(
      jnp.asarray, (array, words, targets.astype(np.float32), pairs.query, pairs.target, pairs.text)
    )
  )


def chance_rows(job: Retrieval) -> list[dict]:
  """Rows of the recall of random answers: K of the gallery's M."""
  return [
    {
      "name": f"R@{k}",
      "scene": scene,
      "system": "chance",
      "features": "",
      "gallery": len(gallery),
      "mean": k / len(gallery),
      "std": None,
      "ci95": None,
      "per_seed": [],
      "runs": [],
    }
    for scene, (_, gallery) in job.galleries.items()
    for k in job.recall_at
  ]


def parts(job: Retrieval, folder: str) -> Iterator[evaluation.Part]:
  """Every system on the pre-trained features, the whole one on the others."""
  words = text.embed_texts(job.pairs.texts, job.words, pooling=job.pooling, folder=folder)
  for name, arrays in sounds(job, folder):
    for system in job.systems:
      if name == "pre-trained" or system == REPORTED:
        compute = functools.partial(run_rows, name, system, arrays, words, job)
        yield f"{name}, {system}", compute


def run(config: ConfigDict, workdir: str, *, allow_changed_config: bool) -> int:
  """Evaluates, prints the table and writes results.json and results.md into the workdir. Returns
  0."""
  evaluation.one_process("retrieval")
  return evaluation.frozen(
    resolve(config),
    workdir,
    free_keys=FREE_KEYS,
    allow_changes=allow_changed_config,
    parts=parts,
    results=_results,
  )


def _results(job: Retrieval, rows: list[dict]) -> dict:
  pairs, name = job.pairs, job.dataset.manifest["name"]
  sizes = {
    scene: {split: len(pairs.rows(split, scene)) for split in SPLITS} for scene in job.galleries
  }
  # Published scores compare only on the published pairs.
  first = f"{min(sizes)} R@{job.recall_at[0]}"
  return evaluation.results_of(
    job.record,
    job.model.config,
    data={
      "name": name,
      "path": job.dataset.root,
      "fingerprint": job.record["data"]["fingerprint"],
      "task": features.task(job.dataset.label_names, job.labels, *pairs.lines(job.labels.ids)),
      "clips": len(job.labels.ids),
      "classes": len(job.dataset.label_names),
      "pairs": sizes,
      "sentences": len(pairs.texts),
    },
    metric="recall",
    published=published("retrieval", first) if name.startswith("apwd") else [],
    chance=None,  # it differs between K and scenes: a row for each
    rows=[*chance_rows(job), *rows],
  )


def describe(config: ConfigDict, workdir: str) -> list[str]:
  """Encoder, pairs and adapters of a retrieval."""
  job = resolve(config)
  sizes = ", ".join(f"{split} {len(job.pairs.rows(split))}" for split in SPLITS)
  epochs, batch = job.training["epochs"], job.training["batch_size"]
  return [
    f"workdir     {evaluation.belongs(job.record, workdir, FREE_KEYS)}",
    describe_encoder(job.record["encoder"], job.model.config),
    f"data        {job.dataset.root}: pairs of {sizes}",
    f"adapters    {len(job.seeds)} seeds, {epochs} epochs of batches of {batch}",
    f"writes      {os.path.join(workdir, 'results.json')}, results.md, features/, predictions/",
  ]
