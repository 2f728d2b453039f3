"""Released PyTorch files: how they are opened, what their tensors are called, and where those
belong here."""

import _codecs
import argparse
import os
import pickle
import re
import warnings
import zipfile

import jax
import numpy as np

from atst_jax.util.errors import UserError

LIGHTNING = "pytorch-lightning_version"
# (width, depth) of the sizes that ATST and SSAST released
RELEASED_HEADS = {(192, 12): 3, (384, 12): 6, (768, 12): 12}


def is_unused(name: str) -> bool:
  """Tensors of the released files that inference never reads: counters, and the mask that ATST-Clip
  does not use."""
  return name == "mask_embed" or name.endswith(".num_batches_tracked")


def turn(x: np.ndarray) -> np.ndarray:
  """Kernels between (out, in[, mel, time]) and ([time, mel,] in, out): its own inverse. Other
  tensors stay."""
  return np.ascontiguousarray(x.T) if x.ndim in (2, 4) else x


def import_torch():
  """The PyTorch module. Raises UserError where it is not installed."""
  try:
    import torch
  except ImportError as error:
    raise UserError(
      "PyTorch is needed to read and write its files: pip install -e .[torch]"
    ) from error
  return torch


def load_torch(path: str, flag: str = "--from") -> dict:
  """The content of a PyTorch file, which a flag of the user's named: tensors, arrays and plain
  values only. Raises UserError for anything else."""
  torch = import_torch()
  # where pickles of NumPy 2 look for it
  multiarray = np._core.multiarray  # type: ignore[attr-defined]
  scalar, rebuilt = multiarray.scalar, multiarray._reconstruct
  allowed = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    _codecs.encode,
    scalar,
    (scalar, "numpy.core.multiarray.scalar"),
    rebuilt,
    (rebuilt, "numpy.core.multiarray._reconstruct"),
  ]
  check_archive(path, flag)
  try:
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of files that are refused below
      content = torch.load(path, map_location="cpu", weights_only=True)
  except FileNotFoundError:
    raise UserError(f"{flag}={path}: no such file") from None
  except pickle.UnpicklingError as error:
    found = re.search(r"GLOBAL (\S+)", str(error))
    what = f"the Python object {found[1]}" if found else "something that is not a tensor"
    raise UserError(
      f"{flag}={path}: holds {what}, or is no PyTorch file; a file that could run code is not read"
    ) from None
  except Exception as error:  # damage shows in PyTorch's reader as any of them
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    raise UserError(f"{flag}={path}: truncated, or no PyTorch file ({reason})") from None
  if not isinstance(content, dict):
    raise UserError(f"{flag}={path}: holds a {type(content).__name__}, expected a dict of tensors")
  return content


def check_archive(path: str, flag: str) -> None:
  """Raises UserError for a zip file that would unpack to more than it holds: PyTorch stores its
  records as they are."""
  if not zipfile.is_zipfile(path):
    return
  try:
    with zipfile.ZipFile(path) as archive:
      packed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
      size = sum(info.file_size for info in archive.infolist())
  except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
    raise UserError(f"{flag}={path}: truncated, or no PyTorch file ({error})") from None
  if packed or size > os.path.getsize(path):
    raise UserError(
      f"{flag}={path}: is no PyTorch file, whose records are stored uncompressed and side by side"
    )


def _is_plain(x) -> bool:
  """Whether a value is a dense tensor of numbers that are all in its file: by strides one could be
  repeated."""
  if (
    not hasattr(x, "untyped_storage")
    or str(x.layout) != "torch.strided"
    or x.device.type != "cpu"
    or x.is_quantized
  ):
    return False
  return not x.is_complex() and x.numel() * x.element_size() <= x.untyped_storage().nbytes()


def to_arrays(state) -> dict[str, np.ndarray]:
  """Float32 arrays of a state dict of any precision (counters stay whole). Raises UserError for
  other content."""
  if not isinstance(state, dict):
    raise UserError(f"holds a {type(state).__name__} where its weights should be")
  other = [key for key, x in state.items() if not isinstance(key, str) or not _is_plain(x)]
  if other:
    raise UserError(
      f"holds values that are not tensors among its weights: {', '.join(map(str, other[:5]))[:300]}"
    )
  return {
    key: (x.detach().float() if x.is_floating_point() else x.detach()).numpy()
    for key, x in state.items()
  }


def under(prefix: str, state: dict, others: tuple[str, ...]) -> dict[str, np.ndarray]:
  """Tensors below a prefix without it. Raises UserError for keys below none of the `others`
  either."""
  state = to_arrays(state)
  foreign = [key for key in state if not key.startswith((prefix, *others))]
  if foreign:
    raise UserError(f"keys that do not belong to this layout: {', '.join(sorted(foreign)[:5])}")
  return {key[len(prefix) :]: x for key, x in state.items() if key.startswith(prefix)}


def _arguments(value) -> dict:
  """The arguments of a training as a dict. Raises UserError for what is none."""
  value = {} if value is None else vars(value) if isinstance(value, argparse.Namespace) else value
  if not isinstance(value, dict):
    raise UserError(f"holds a {type(value).__name__} where the arguments of its training should be")
  return dict(value)


def find_encoder(content: dict) -> tuple[str, dict[str, np.ndarray], dict]:
  """(family, the encoder's tensors by their PyTorch names, hyper-parameters) of a file's
  content."""
  if LIGHTNING in content and "state_dict" in content:
    tensors = under(
      "model.teacher.encoder.", content["state_dict"], ("model.teacher.", "model.student.")
    )
    return "atst", tensors, _arguments(content.get("hyper_parameters"))
  if {"student", "teacher"} & set(content):
    if "teacher" not in content:
      raise UserError("holds a student but no teacher, whose encoder is the one to use")
    tensors = under("module.backbone.", content["teacher"], ("module.head.",))
    return "atst", tensors, _arguments(content.get("args"))
  if "module.v.cls_token" in content:
    return "ssast", to_arrays(content), {}
  if "embeddings.0.weight" in content:
    return "vggish", to_arrays(content), {}
  if "features.0.weight" in content:
    return "byola", to_arrays(content), {}
  raise UserError(
    "not a checkpoint of ATST (two layouts), BYOL-A, SSAST or VGGish; its keys are "
    f"{', '.join(map(str, list(content)[:5]))}"
  )


def heads_of(width: int, depth: int, stated: int | None) -> int:
  """Attention heads of a file: what the user or the file states, or those of a released size.

  Raises:
    UserError: nothing says it, or it does not divide the width. A wrong number would run and give
      wrong vectors.
  """
  heads = RELEASED_HEADS.get((width, depth)) if stated is None else stated
  if heads is None:
    candidates = [n for n in range(1, width + 1) if width % n == 0 and width // n >= 8]
    raise UserError(
      f"the encoder is {width} wide and {depth} blocks deep, no released size, and nothing in the "
      f"file says how many heads it has: state --heads, one of "
      f"{', '.join(map(str, candidates or [1]))}"
    )
  if type(heads) is not int or heads < 1 or width % heads:
    raise UserError(f"--heads={heads}: must divide the encoder's width {width}")
  return heads


def to_variables(tensors: dict[str, np.ndarray], names: dict[str, tuple[str, ...]]) -> dict:
  """Variables with every tensor used exactly once. Raises UserError naming those missing, left over
  or not finite."""
  missing = [name for name in names if name not in tensors]
  extra = [name for name in tensors if name not in names and not is_unused(name)]
  for what, keys in (("lacks", missing), ("has keys of another model:", extra)):
    if keys:
      more = " …" if len(keys) > 5 else ""
      raise UserError(f"the encoder {what} {', '.join(keys[:5])}{more} ({len(keys)} in all)")
  broken = [name for name in names if not np.isfinite(tensors[name]).all()]
  if broken:
    raise UserError(f"the encoder holds NaN or infinity in {', '.join(broken[:5])}")
  variables = {}
  for name, path in names.items():
    node = variables
    for part in path[:-1]:
      node = node.setdefault(part, {})
    node[path[-1]] = turn(tensors[name])
  return variables


def check_shapes(variables: dict, expected: dict) -> None:
  """Raises UserError naming the first tensor whose shape is not that of the encoder built from the
  others."""

  def check(path, x, y):
    if x.shape != y.shape:
      name = "/".join(key.key for key in path[1:])
      raise UserError(
        f"the encoder's {name} has shape {x.shape}, the other tensors ask for {y.shape}"
      )

  jax.tree_util.tree_map_with_path(check, variables, expected)
