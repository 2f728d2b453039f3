"""Released PyTorch weights to an exported encoder, and back to the layouts that others load."""

import argparse
import os
import re

import jax
import numpy as np

import atst_jax
from atst_jax.artifacts import export
from atst_jax.artifacts.families.byola import read_byola
from atst_jax.artifacts.families.ssast import SSAST_NORMALIZATION, read_ssast
from atst_jax.artifacts.families.vggish import read_vggish
from atst_jax.artifacts.folder import check_length
from atst_jax.artifacts.torch_files import (
  LIGHTNING,
  check_shapes,
  find_encoder,
  heads_of,
  import_torch,
  load_torch,
  to_variables,
  turn,
)
from atst_jax.audio.channels import MEAN, check_channels
from atst_jax.audio.frontend import FRONTENDS, FrontEnd
from atst_jax.method.normalization import check_normalization
from atst_jax.models.encoders import check_encoder, make_encoder
from atst_jax.util import storage
from atst_jax.util.errors import UserError

# dB, of the released code
ATST_NORMALIZATION = {"kind": "min_max", "top_db": 80.0, "low": -79.6482, "high": 50.6842}
RELEASED_PATCH = 4  # frames
RELEASED_SECONDS = 12.0  # the middle of longer sounds, which the released evaluations embed
RELEASED_SIZES = {(384, 12, 6): "small", (768, 12, 12): "base"}  # width, depth, heads
# of each family's loaders
RELEASED_FRONTENDS = {"atst": "audiossl", "byola": "byola", "ssast": "ssast", "vggish": "vggish"}
# of those that have one of their own
RELEASED_NORMALIZATIONS = {"atst": ATST_NORMALIZATION, "ssast": SSAST_NORMALIZATION}
# the flags that say what a family's files do not
TAKEN = {
  "atst": ("--heads", "--chunk_seconds"),
  "byola": ("--mean", "--std", "--frontend"),
  "ssast": ("--heads", "--chunk_seconds"),
  "vggish": ("--postprocess",),
}
OURS = "atst_jax"  # key of the arguments under which files written here say the rest
LONGEST = 3600.0  # seconds of a segment
LAYOUTS = ("dino", "lightning")
PARTS = {"frontend": dict, "normalization": dict, "chunk_frames": int, "tail": str}
# not in files of older versions: sounds are embedded whole, and not filled up
LENGTH, FILL = "max_seconds", "fill_frames"
CHANNELS = "channels"  # of older versions: their mean


def seconds_of(hyper: dict) -> float:
  """Length of the segments that a checkpoint was trained on, where it says so; otherwise the
  paper's 6 s."""
  for key in ("train_len", "anchor_len"):
    value = hyper.get(key)
    # of a range the first, as the released evaluation takes it
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    if isinstance(value, (int, float)) and 0 < value < LONGEST:
      return float(value)
  return 6.0


def check_family(hyper: dict) -> None:
  """Raises UserError where a checkpoint's own arguments say that it is another model than
  ATST-Clip."""
  expected = {"patch_height": 64, "patch_h": 64, "pos_type": "cut", "use_cls": True}
  for key, value in expected.items():
    if key in hyper and not (type(hyper[key]) is type(value) and hyper[key] == value):
      raise UserError(f"its arguments say {key}={hyper[key]!r}; an ATST-Clip encoder has {value!r}")


def _is_ours(value) -> bool:
  """Whether a value is what this project writes under OURS, or empty."""
  known = {*PARTS, "heads", "patch_frames", LENGTH, FILL, CHANNELS}
  if not isinstance(value, dict) or value.keys() - known:
    return False
  if not isinstance(value.get(CHANNELS, MEAN), str):
    return False
  return not value or all(type(value.get(key)) is kind for key, kind in PARTS.items())


def read_atst(tensors: dict, hyper: dict, heads: int | None, seconds: float | None) -> dict:
  """Keyword arguments of `export.write` for ATST's tensors."""
  # what the released layouts have no place for, where this project wrote the file
  ours = hyper.get(OURS, {})
  bins = ("patch_height", "patch_h")  # of ours any number; its product is checked
  check_family({k: v for k, v in hyper.items() if not ours or k not in bins})
  blocks = {int(name.split(".")[1]) for name in tensors if re.match(r"blocks\.[0-9]{1,3}\.", name)}
  for name, axes in (("cls_token", 3), ("pos_embed", 3), ("patch_embed.patch_embed.weight", 2)):
    if name not in tensors:
      other = "; ATST-Frame is another model" if "norm_frame.weight" in tensors else ""
      raise UserError(f"the encoder lacks {name}{other}")
    if tensors[name].ndim != axes:
      raise UserError(f"the encoder's {name} must have {axes} axes")
  if not _is_ours(ours):
    raise UserError(f"its arguments' {OURS!r} are not what this project writes")
  width = tensors["cls_token"].shape[-1]
  heads = heads_of(width, len(blocks), ours.get("heads") if heads is None else heads)
  frontend = FrontEnd.from_json(ours["frontend"]) if ours else FRONTENDS["audiossl"]
  inputs = tensors["patch_embed.patch_embed.weight"].shape[-1]
  patch = ours.get("patch_frames", hyper.get("patch_width", hyper.get("patch_w", RELEASED_PATCH)))
  if type(patch) is not int or inputs != frontend.n_mels * patch:
    raise UserError(
      f"its patches hold {inputs} numbers, not {frontend.n_mels} mel bins x {patch} frames: "
      "another model"
    )
  positions = tensors["pos_embed"].shape[1] - 1
  encoder = {
    "kind": "transformer",
    "width": width,
    "depth": len(blocks),
    "heads": heads,
    "drop_path": 0.1,
    "patch_frames": patch,
    "max_frames": positions * patch + 1,
  }
  if seconds is None and ours:
    chunk = ours["chunk_frames"]
  else:
    chunk = frontend.num_frames(
      round((seconds_of(hyper) if seconds is None else seconds) * frontend.sample_rate)
    )
  if not patch <= chunk <= encoder["max_frames"]:
    raise UserError(
      f"chunks of {chunk} frames do not fit the encoder's {encoder['max_frames']}; "
      "state --chunk_seconds"
    )
  if (fill := ours.get(FILL)) and chunk < fill:
    raise UserError(
      f"chunks of {chunk} frames are shorter than the {fill} that this encoder's windows are "
      "filled up to; state longer --chunk_seconds"
    )
  return {
    "variables": to_variables(tensors, make_encoder(encoder).torch_names()),
    "encoder": encoder,
    "frontend": frontend,
    "normalization": ours.get("normalization", ATST_NORMALIZATION),
    "chunk_frames": chunk,
    "tail": ours.get("tail", "released"),
    LENGTH: ours.get(LENGTH) if ours else RELEASED_SECONDS,
    FILL: fill,
    CHANNELS: ours.get(CHANNELS, MEAN),
  }


def from_torch(
  path: str,
  folder: str,
  *,
  heads=None,
  seconds=None,
  mean=None,
  std=None,
  frontend=None,
  postprocess=None,
) -> dict:
  """Converts a PyTorch file to an export, which is read back and run before it gets its name.
  Returns the encoder."""
  content = load_torch(path)
  try:
    family, tensors, hyper = find_encoder(content)
    given = {"--heads": heads, "--chunk_seconds": seconds, "--mean": mean, "--std": std}
    given |= {"--frontend": frontend, "--postprocess": postprocess}
    foreign = [k for k, value in given.items() if value is not None and k not in TAKEN[family]]
    if foreign:
      raise UserError(f"{' and '.join(foreign)} do not belong to a file of {family}")
    if family == "atst":
      parts = read_atst(tensors, hyper, heads, seconds)
    elif family == "byola":
      parts = read_byola(tensors, mean, std, frontend)
    elif family == "ssast":
      parts = read_ssast(tensors, heads, seconds)
    else:
      parts = read_vggish(tensors, postprocess)
    check_encoder(parts["encoder"], parts["frontend"].n_mels)
    check_normalization(**parts["normalization"])
    check_length(parts.get(LENGTH))
    check_channels(parts.get(CHANNELS, MEAN))
  # of the two checks; a UserError is a ValueError
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"--from={path}: {error}") from error
  noise = jax.ShapeDtypeStruct((1, parts["chunk_frames"], parts["frontend"].n_mels), np.float32)
  expected = jax.eval_shape(make_encoder(parts["encoder"]).init, jax.random.key(0), noise)
  try:
    check_shapes(parts["variables"], expected)
  except UserError as error:
    raise UserError(f"--from={path}: {error}") from error
  provenance = {
    "converted_from": os.path.basename(path),
    "family": family,
    "atst_jax": atst_jax.__version__,
  }
  export.write(folder, provenance=provenance, **parts)
  return parts["encoder"]


def _atst_content(state: dict, config: dict, encoder, layout: str) -> dict:
  """What a file of one of LAYOUTS holds, with the tensors of `state`."""
  frontend = FrontEnd.from_json(config["frontend"])
  seconds = (config["chunk_frames"] - 1) * frontend.hop_length / frontend.sample_rate
  size = (encoder.width, encoder.depth, encoder.heads)
  arch = RELEASED_SIZES.get(size, "x".join(map(str, size)))
  rest = {"heads": encoder.heads, "patch_frames": encoder.patch_frames}
  rest |= {key: config[key] for key in (*PARTS, LENGTH, FILL, CHANNELS)}
  if layout == "lightning":
    return {
      LIGHTNING: "1.5.10",
      "state_dict": {f"model.teacher.encoder.{k}": x for k, x in state.items()},
      "hyper_parameters": {"arch": arch, "train_len": seconds, OURS: rest},
    }
  arguments = argparse.Namespace(
    arch=f"ast_{arch}",
    pos_type="cut",
    patch_height=frontend.n_mels,
    use_cls=True,
    patch_width=encoder.patch_frames,
    anchor_len=seconds,
    **{OURS: rest},
  )
  backbone = {f"module.backbone.{k}": x for k, x in state.items()}
  return {"student": backbone, "teacher": backbone, "args": arguments}


def to_torch(folder: str, path: str, layout: str) -> dict:
  """Writes an export as a PyTorch file in the released layout. Returns the export's config."""
  config, variables, _ = export.read(folder)
  module = make_encoder(config["encoder"])
  try:
    names = module.torch_names()
  except NotImplementedError:
    kind = config["encoder"]["kind"]
    raise UserError(f"{folder}: encoder.kind={kind} has no layout of PyTorch files") from None
  torch = import_torch()

  def tensor(path):
    node = variables
    for part in path:
      node = node[part]
    return torch.from_numpy(np.array(turn(np.asarray(node))))

  state = {name: tensor(path) for name, path in names.items()}
  if module.family == "atst":
    state["mask_embed"] = torch.zeros(1, 1, module.width)  # released loaders look for it
    content = _atst_content(state, config, module, layout)
  elif module.family == "ssast":
    sizes = {"fdim": config["frontend"]["n_mels"], "tdim": module.position_frames}
    content = state | {f"module.p_input_{key}": torch.tensor(n) for key, n in sizes.items()}
  else:
    content = state | {
      name.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
      for name in state
      if name.endswith("running_mean")
    }
  try:
    with storage.writing(path) as file:
      torch.save(content, file)
  except (OSError, RuntimeError) as error:
    raise UserError(f"--to={path}: cannot be written ({error})") from error
  return config
