"""VGGish's files, as harritaylor/torchvggish published them."""

import numpy as np

from atst_jax.artifacts.torch_files import load_torch, to_arrays, to_variables
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.models.convnets.vggish import EXAMPLE
from atst_jax.models.encoders import make_encoder
from atst_jax.util.errors import UserError

NORMALIZATION = {"kind": "log_magnitude", "floor": 0.0, "offset": 0.01}
PCA = ("pca_eigen_vectors", "pca_means")  # names in the file of the post-processor


def read_pca(path: str) -> dict[str, np.ndarray]:
  """The tensors of the released post-processor's file, as those of a network that holds it. Raises
  UserError for another file."""
  content = load_torch(path, flag="--postprocess")
  if set(content) != set(PCA):
    raise UserError(
      f"--postprocess={path}: holds {', '.join(map(str, list(content)[:5]))}; the post-processor's "
      f"file has {' and '.join(PCA)}"
    )
  arrays = {k: x for k, x in content.items() if isinstance(x, np.ndarray)}
  try:
    arrays = {k: np.asarray(x, np.float32) for k, x in arrays.items()} | to_arrays(
      {k: x for k, x in content.items() if k not in arrays}
    )
  except (UserError, TypeError, ValueError) as error:
    raise UserError(f"--postprocess={path}: {error}") from error
  vectors, means = (arrays[name] for name in PCA)
  return {"pproc.pca_eigen_vectors": vectors, "pproc.pca_means": means.reshape(-1, 1)}


def read_vggish(tensors: dict, postprocess: str | None) -> dict:
  """Keyword arguments of `export.write` for VGGish's tensors.

  Args:
    postprocess: the file of its post-processor; vectors are those before it by default, unless the
      tensors hold it.
  """
  if postprocess is not None:
    tensors = tensors | read_pca(postprocess)
  encoder = {
    "kind": "vggish",
    "width": 1,
    "hidden": 1,
    "channels": 1,
    "output": "quantized" if "pproc.pca_means" in tensors else "embedding",
  }
  variables = to_variables(tensors, make_encoder(encoder).torch_names())
  for layer, axes, key in (("conv_0", 4, "channels"), ("fc_0", 2, "hidden"), ("fc_2", 2, "width")):
    kernel = variables["params"][layer]["kernel"]
    if kernel.ndim != axes:
      raise UserError(f"the encoder's {layer} has a kernel of {kernel.ndim} axes, not {axes}")
    encoder[key] = kernel.shape[-1]
  return {
    "variables": variables,
    "encoder": encoder,
    "frontend": FRONTENDS["vggish"],
    "normalization": NORMALIZATION,
    # an example at a time, all alike; an incomplete last one is dropped
    "chunk_frames": EXAMPLE,
    "tail": "keep",
  }
