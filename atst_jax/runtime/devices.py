"""The devices of a job: platform, type of numbers, kernels, and the message about short memory."""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from atst_jax.util.errors import UserError

DTYPES = {"auto": None, "float32": jnp.float32, "bfloat16": jnp.bfloat16}


def check_platform(platform: str) -> None:
  """Raises UserError if JAX found another platform than the one asked for: by the config, or where
  that is "auto" by ATST_PLATFORM, which images and launchers set. JAX itself takes the CPU without
  a word where a GPU's driver is missing."""
  asked, found = platform, jax.default_backend()
  if platform == "auto":
    asked = os.environ.get("ATST_PLATFORM") or "auto"
  if asked not in ("auto", found):
    other = f"--config.platform={found}" if platform == "auto" else "--config.platform=auto"
    raise UserError(
      f"platform {asked!r} is asked for, but JAX found {found!r}; install JAX for it (pip install "
      f"-e .[cuda] or .[tpu]), see whether the device is there (nvidia-smi), or set {other}"
    )


def resolve_dtype(dtype: str) -> str:
  """The name of the type to compute in; "auto" becomes the device's. Raises UserError for an
  unknown one."""
  if dtype not in DTYPES:
    raise UserError(f"--config.dtype={dtype}: choose one of {', '.join(DTYPES)}")
  if dtype == "auto":
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return dtype


def full_precision(dtype: str):
  """A context in which products of float32 are computed as such. By JAX's default, GPUs take TF32
  and TPUs bfloat16 for them. Programs for CPUs are the same with it."""
  wanted = dtype == "float32"
  return jax.default_matmul_precision("highest") if wanted else contextlib.nullcontext()


def precisely(function: Callable, dtype: str) -> Callable:
  """`function`, which is traced in `full_precision(dtype)`, and so are its gradients."""

  @functools.wraps(function)
  def traced(*args, **kwargs):
    with full_precision(dtype):
      return function(*args, **kwargs)

  return traced


def compiler_options(device, dtype: str) -> dict[str, bool] | None:
  """XLA's options, beyond its defaults, for compiling a step for a device.

  On a CPU, in bfloat16, transposed products (the gradients of weights and of attention) go to
  oneDNN: XLA has no kernel for them that uses the CPU's bfloat16 (docs/speed.md). A jaxlib without
  oneDNN (0.10) ignores the option. jaxlib 0.12.0 warns that it cannot write such a program into a
  persistent cache.
  """
  if device.platform == "cpu" and dtype == "bfloat16":
    return {"xla_cpu_experimental_onednn_custom_call": True}
  return None


def capability_of(device) -> float:
  """The compute capability of an NVIDIA GPU; 0 for other devices (AMD's have names there)."""
  text = str(getattr(device, "compute_capability", ""))
  return float(text) if re.fullmatch(r"\d+\.\d+", text) else 0


def resolve_fused(
  attention: str,
  kernels: str,
  *,
  dtype: str,
  unsuited: Mapping[str, str],
  capability: float | None = None,
) -> tuple[str, str]:
  """(attention, kernels) without "auto".

  "auto" is cuDNN's attention and Pallas's kernels for transformers in bfloat16 on NVIDIA GPUs from
  Ampere on, if the encoder's sizes suit them, and XLA otherwise.

  Args:
    unsuited: the encoder's answer (`layers.Encoder.unsuited`).
    capability: `capability_of` the device to plan for; by default of JAX's first.

  Raises:
    UserError: a choice that the encoder, the type or the hardware does not have.
  """
  has = (capability_of(jax.devices()[0]) if capability is None else capability) >= 8
  chosen = []
  for key, value, ours in (("attention", attention, "cudnn"), ("kernels", kernels, "pallas")):
    needs = unsuited.get(ours)
    if needs is None and dtype != "bfloat16":
      needs = "--config.dtype=bfloat16"
    if needs is None and not has:
      needs = "an NVIDIA GPU from Ampere on"
      needs += f" (JAX found {jax.devices()[0].device_kind})" if capability is None else ""
    if value == ours and needs:
      raise UserError(f"--config.compute.{key}={value} needs {needs}; leave it out")
    best = "xla" if needs else ours
    chosen.append(best if value == "auto" else value)
  return chosen[0], chosen[1]


@contextlib.contextmanager
def naming_memory(*, batch_size: int, remat: bool, fsdp: int, accumulation: int | None = None):
  """Turns a device's lack of memory, when compiling or running, into a UserError with remedies.

  Args:
    batch_size, remat, fsdp, accumulation: the job's values; None if a job has no such key.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    reason = " ".join(str(error).split())[:200]
    now = f"batch_size={batch_size}, compute.remat={remat}, mesh.fsdp={fsdp}"
    helps = [
      "--config.compute.remat=true (transformers)",
      "--config.mesh.fsdp over several devices",
      "--config.dtype=bfloat16",
      "a lower --config.batch_size",
      "more devices",
    ]
    plan = ""
    if accumulation is not None:
      now += f", compute.accumulation={accumulation}"
      helps.insert(0, "a higher --config.compute.accumulation")
      plan = "; `python -m atst_jax.plan` tells what fits"
    raise UserError(
      f"the devices have too little memory ({reason}). What helps, now {now}: "
      f"{', '.join(helps)}{plan}"
    ) from error
