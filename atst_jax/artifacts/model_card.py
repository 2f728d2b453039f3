"""The model card of an export: README.md with what it is, how it was made, what it scored and where
it ends."""

import json
import os
import types
from collections.abc import Collection, Mapping

import jax
import numpy as np

from atst_jax.artifacts.classifiers.card_section import card_section
from atst_jax.audio.channels import MEAN
from atst_jax.audio.frontend import FrontEnd
from atst_jax.method.views import FLOOR_DB
from atst_jax.models.encoders import make_encoder
from atst_jax.util.errors import UserError
from atst_jax.util.markdown import table_lines

NAME = "README.md"
NOTHING: Mapping[str, str] = types.MappingProxyType({})
# Keys of a run's config that a reader compares first; config.json holds all of them.
RECIPE = (
  "objective",
  "batch_size",
  "total_steps",
  "warmup_steps",
  "optimizer.base_lr",
  "optimizer.reference_batch",
  "views.segments",
  "views.crop_frames",
  "views.mixup_ratio",
  "difference.weight",
  "difference.mix_domain",
  "teacher.decay_start",
  "dtype",
  "seed",
)
TAGS = {"atst": "atst", "byola": "byol-a"}  # of the model hub
# of a classifier
TASKS = ("feature-extraction", "audio-classification")
USES = {
  "safetensors": "`model.safetensors`: the weights, names joined by `/`",
  "params": "`params/`: the weights as an Orbax checkpoint",
  "jax": "`encoder.jax`: a `jax.export` program with the weights, any batch, {most}, "
  "for cpu, cuda and tpu (JAX guarantees to load it for six months, see `programs` in "
  "`config.json`):\n"
  '  `jax.export.deserialize(bytearray(open("encoder.jax", "rb").read())).call(mel, length, peak)`',
  "onnx": "`encoder.onnx`: the same as an ONNX graph, with the inputs `mel`, `length` and `peak`",
  "onnx_int8": "`encoder_int8.onnx`: the same with weights of 8 bits, a quarter of the bytes",
  "waveform": "`waveform.onnx`: an ONNX graph from samples to vectors, or a classifier's "
  "probabilities; it takes `waveform` (B, N), float32 of full scale 1.0, padded at will, and "
  "`samples` (B,), int64",
}

CARD = """---
license: {license}
library_name: atst_jax
pipeline_tag: {task}
tags: [audio, self-supervised, {tag}, jax]
---

# {name}

{what}: a {encoder.title}, {parameters:,} parameters. It gives one vector of {scene} \
numbers for a sound, and one of {encoder.width} for every {hop_seconds}.

## Use

```python
from atst_jax.embed import load_model, get_scene_embeddings
model = load_model("{name}")
vectors = get_scene_embeddings([waveform], model, sample_rate=44100)  # floats of full scale 1.0
```

{uses}
{classifier}
## Front-end

{table}

{origin}

{scores}

## Limits

- Mono sound at {frontend.sample_rate} Hz; the caller states the rate and other rates are resampled.
- At least {frontend.min_samples} samples and {least} frames ({least_seconds}).
- {chunks}
- {length}
- Nothing below or above the mel bands is heard.
- What the pre-training data lacks, the vectors may not tell apart; measure on your own labels \
first.

## Licence

{terms}
"""


def read_results(path: str, params_hash: str) -> dict:
  """The results.json of a linear evaluation of this encoder, or of the workdir that holds it.
  Raises UserError for another's, or another file."""
  try:
    with open(f"{path}/results.json" if os.path.isdir(path) else path, encoding="utf-8") as file:
      results = json.load(file)
    measured, job = results["encoder"]["params_hash"], results["job"]
  except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
    raise UserError(
      f"--results={path}: not the results.json of a linear evaluation ({error})"
    ) from error
  if job != "linear":
    raise UserError(f"--results={path}: of the job {job}; the card holds linear evaluations")
  if measured != params_hash:
    raise UserError(
      f"--results={path}: measured the encoder {measured}, this one is {params_hash}; "
      "evaluate this one"
    )
  return results


def _seconds(frames: int, frontend: FrontEnd) -> str:
  return f"{frames * frontend.hop_length / frontend.sample_rate:.3g} s"


def _origin(provenance: dict) -> list[str]:
  """Sections on data and recipe."""
  if "finetuned" in provenance:
    run, parent = provenance["finetuned"], provenance["parent"]
    data = run["config"]["data"]
    return [
      "## Fine-tuning",
      f"Trained with its classifier on `{os.path.basename(data['path'])}` (fingerprint "
      f"`{data['fingerprint']}`), {provenance['step']} updates, from the encoder "
      f"`{parent['params_hash']}`, whose origin follows. Every key lies in `config.json` under "
      "`provenance`.",
      *_origin(parent["provenance"]),
    ]
  config = provenance.get("config")
  if config is None:
    known = {key: value for key, value in provenance.items() if key != "atst_jax"}
    return ["## Data and recipe", f"Not known to this program beyond: `{json.dumps(known)}`."]
  data = config["data"]
  flat = {
    f"{a}.{b}": x for a, part in config.items() if isinstance(part, dict) for b, x in part.items()
  } | config
  if data["source"] == "records":
    text = (
      f"Pre-trained without labels on the split `{data['split']}` of "
      f"`{os.path.basename(data['path'])}` (fingerprint `{data['fingerprint']}`)."
    )
  else:
    text = (
      f"Trained on the `{data['source']}` source: noise, to try the code; not useful for sound."
    )
  rows = [["key", "value"], *([key, f"`{flat[key]}`"] for key in RECIPE if key in flat)]
  return [
    "## Data",
    text,
    "## Recipe",
    f"The {provenance['network']}'s encoder after {provenance['step']} updates, by atst_jax "
    f"{provenance['atst_jax']}. Every key lies in `config.json` under `provenance`.",
    "\n".join(table_lines(rows)),
  ]


def _scores(results: list[dict]) -> list[str]:
  if not results:
    return ["## Scores", "None were given when this was exported."]
  table = [["data", "features", "size", "score in %", "runs"]]
  for result in results:
    for row in result["rows"]:
      spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
      table.append(
        [
          result["data"]["name"],
          row["name"],
          str(row["dimensions"]),
          f"{result['metric']} {100 * row['mean']:.1f}{spread}",
          f"{result['config']['seeds']} seeds, {len(result['data']['divisions'])} folds",
        ]
      )
    table.append([result["data"]["name"], "chance", "", f"{100 * result['chance']:.1f}", ""])
  chosen = any(result["config"]["select_on_test"] for result in results)
  note = " Rates were CHOSEN ON THE TEST CLIPS for some: these are too good." if chosen else ""
  return [
    "## Scores",
    f"Linear evaluation of frozen vectors; mean and standard deviation over the seeds.{note}",
    "\n".join(table_lines(table)),
  ]


def _chunks(config: dict, encoder, frontend) -> str:
  """What becomes of sounds longer than a chunk."""
  seconds = _seconds(config["chunk_frames"], frontend)
  if encoder.context is not None:
    return f"Longer than {seconds}: computed in parts, the vector is that of one pass."
  return (
    f"Longer than {seconds}: chunks of that length are encoded on their own and their vectors "
    f"averaged (`{config['tail']}`); nothing relates sounds that lie further apart."
  )


def _filled(fill_frames: int | None, hop: int, frontend: FrontEnd) -> str:
  """What becomes of short sounds."""
  if fill_frames is None:
    return ""
  return (
    f" Shorter ones than {_seconds(fill_frames, frontend)} are filled with silence "
    f"({FLOOR_DB:g} dB), half of it at each end, as in training, and so is the last chunk of a "
    "longer one. Vectors over time are not filled, nor does an exported program fill: both need "
    f"{hop} frames."
  )


def _length(max_seconds: float | None) -> str:
  """The length rule."""
  if max_seconds is None:
    return "The vector of a sound is of all of it, however long."
  return (
    f"The vector of a sound longer than {max_seconds:g} s is of its central {max_seconds:g} s, cut "
    "from the waveform; vectors over time are of the whole sound."
  )


def card(
  name: str,
  config: dict,
  variables: dict,
  *,
  license: str,
  results: list[dict],
  artifacts: Collection[str],
  measured: Mapping[str, str] = NOTHING,
) -> str:
  """The text of README.md.

  Args:
    name: of the model, the folder's.
    config: the export's config.json.
    variables: its arrays, to be counted.
    license: an identifier of SPDX or of the model hub; "unknown" if none was stated.
    results: of `read_results`.
    artifacts: what lies in the folder, keys of USES.
    measured: what was measured of some of them, in words.
  """
  encoder, frontend = make_encoder(config["encoder"]), FrontEnd.from_json(config["frontend"])
  mel = (
    f"{frontend.n_mels} bins, {frontend.f_min:g} to {frontend.f_max:g} Hz, scale "
    f"{frontend.mel_scale}, area normalisation {frontend.mel_norm}"
  )
  window = f"{frontend.window}, {frontend.win_length} samples in an FFT of {frontend.n_fft}"
  window += {
    "power": "",
    "magnitude": ", of magnitudes, frames not centred",
    "kaldi": ", without their mean and emphasised as Kaldi does, frames not centred",
  }[frontend.spectrum]
  level = {"recorded": "", "unit": "; samples are divided by the L2 norm of the sound"}
  table = table_lines(
    [
      ["front-end", f"`{frontend.name}`, hash `{frontend.hash}`"],
      ["sample rate", f"{frontend.sample_rate} Hz"],
      *([["channels", f"of several: {config['channels']}"]] if config["channels"] != MEAN else []),
      ["window", window],
      ["hop", f"{frontend.hop_length} samples"],
      ["mel", mel],
      ["unit", f"dB; no clamp{level[frontend.level]}"],
      ["normalisation", f"`{json.dumps(config['normalization'])}`"],
    ]
  )
  most = "any length" if encoder.any_length else f"at most {config['chunk_frames']} frames"
  unstated = "None was stated when this was exported (`--license`)."
  head, least = config["head"], 1 if config["fill_frames"] else encoder.hop
  return CARD.format(
    name=name,
    task=TASKS[head is not None],
    what="An audio classifier with its encoder" if head else "An audio encoder",
    classifier=card_section(name, config, frontend, artifacts),
    license=license,
    tag=TAGS.get(encoder.family, config["encoder"]["kind"]),
    encoder=encoder,
    scene=encoder.size(1),
    parameters=sum(int(np.size(x)) for x in jax.tree.leaves(variables["params"])),
    uses="\n".join(
      f"- {USES[key].format(most=most)}{f': {measured[key]}' if key in measured else ''}"
      for key in USES
      if key in artifacts
    ),
    frontend=frontend,
    table="\n".join(table),
    origin="\n\n".join(_origin(config["provenance"])),
    scores="\n\n".join(_scores(results)),
    least=least,
    hop_seconds=_seconds(encoder.hop, frontend),
    least_seconds=_seconds(least, frontend),
    chunks=_chunks(config, encoder, frontend),
    length=_length(config["max_seconds"]) + _filled(config["fill_frames"], encoder.hop, frontend),
    terms=unstated if license == "unknown" else f"`{license}`",
  )
