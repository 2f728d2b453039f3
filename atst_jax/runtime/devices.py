"""The devices of a job: platform, type of numbers, and what to do when memory is short."""

import contextlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from atst_jax.util.errors import UserError

DTYPES = {"auto": None, "float32": jnp.float32, "bfloat16": jnp.bfloat16}


def check_platform(platform: str) -> None:
  """Raises UserError if JAX found another platform than the one asked for."""
  if platform not in ("auto", jax.default_backend()):
    raise UserError(
      f"platform {platform!r} is asked for, but JAX found {jax.default_backend()!r}; install JAX for it "
      "(pip install -e .[cuda] or .[tpu]) or set --config.platform=auto"
    )


def resolve_dtype(dtype: str) -> str:
  """The name of the type to compute in, with "auto" settled. Raises UserError for an unknown
  one."""
  if dtype not in DTYPES:
    raise UserError(f"--config.dtype={dtype}: choose one of {', '.join(DTYPES)}")
  if dtype == "auto":
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return dtype


@contextlib.contextmanager
def naming_memory(config: ConfigDict):
  """Turns a device's lack of memory, when compiling or running, into a UserError that names what
  helps."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    # not of a fine-tuning
    reason, parts = " ".join(str(error).split())[:200], "accumulation" in config.compute
    now = f"compute.accumulation={config.compute.accumulation}, " if parts else ""
    raise UserError(
      f"the devices have too little memory ({reason}). What helps, now batch_size={config.batch_size}, {now}"
      f"compute.remat={config.compute.remat}, mesh.fsdp={config.mesh.fsdp}: "
      f"{'a higher --config.compute.accumulation, ' if parts else ''}--config.compute.remat=true (transformers), "
      "--config.mesh.fsdp over several devices, --config.dtype=bfloat16, a lower --config.batch_size, more devices"
      f"{'; `python -m atst_jax.plan` tells what fits' if parts else ''}"
    ) from error
