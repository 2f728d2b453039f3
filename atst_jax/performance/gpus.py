"""The train step compiled by XLA, on any machine, for GPUs that are only described."""

import importlib.util
import os

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from atst_jax.util.errors import UserError

MACHINE = 8  # GPUs
# Facts that XLA needs of a device (from NVIDIA's data sheets and tuning guides; bandwidth in bytes
# per second, shared memory in bytes). The others are the same for these chips.
FACTS = {
  "A100": {"major": 8, "cores": 108, "fpus": 64, "shared": 167936, "l2": 41943040, "ghz": 1.41},
  "H100": {"major": 9, "cores": 132, "fpus": 128, "shared": 233472, "l2": 52428800, "ghz": 1.98},
  "H200": {"major": 9, "cores": 132, "fpus": 128, "shared": 233472, "l2": 62914560, "ghz": 1.98},
}
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {ghz}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 1 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "NVIDIA {name}"
"""


def _prepare() -> None:
  """Sets the environment for jax's CUDA plugin to compile without a GPU: the driver is not checked,
  and no kernel is timed."""
  os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
  os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
  flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
  os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}".strip()


def installed() -> bool:
  """Whether jax's CUDA plugin is there."""
  return any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))


def reason(error: Exception) -> str:
  """The first line of a plugin's error, or its kind."""
  return (str(error).splitlines() or [type(error).__name__])[0][:200]


def describe(name: str, count: int, chip) -> list:
  """The devices of `count` GPUs: of one machine, or of several of 8. Call it before JAX's first use
  in a process.

  Args:
    name: of FACTS.
    chip: the chip of `chips.CHIPS`.

  Raises:
    UserError: the plugin is missing or fails, or the machines would not be full.
  """
  from jax.experimental import topologies

  machines = -(-count // MACHINE)
  if machines > 1 and count % MACHINE:
    raise UserError(
      f"--topology={name.lower()}:{count}: machines have {MACHINE} GPUs; give up to {MACHINE}, or "
      f"a multiple of {MACHINE}"
    )
  if not installed():
    raise UserError(
      f"--topology={name.lower()}:{count}: jax's CUDA plugin is not installed; "
      "pip install -e .[cuda] (2.5 GB; no GPU is needed)"
    )
  _prepare()
  facts = FACTS[name]
  target = TARGET.format(
    name=name,
    memory=round(chip.memory),
    bandwidth=round(chip.bandwidth),
    optin=facts["shared"] - 1024,
    **facts,
  )
  try:
    topology = topologies.get_topology_desc(
      platform="cuda", target_config=target, topology=f"1x{machines}x{count // machines}"
    )
  except Exception as error:  # the plugin raises many kinds
    raise UserError(f"--topology={name.lower()}:{count}: {reason(error)}") from error
  return list(topology.devices)


def compile_step(program, mesh, name: str):
  """The compiled step of a `recipe.Program` on a mesh of described GPUs.

  Pallas takes the device of its kernels from the context (otherwise jax 0.10 to 0.12 raise "No
  supported GPU devices found"). The axes' types must be those of the step's mesh.
  """
  chip = AbstractDevice(
    device_kind=f"NVIDIA {name}", num_cores=int(FACTS[name]["cores"]), platform="gpu"
  )
  sizes, names = tuple(mesh.shape.values()), tuple(mesh.shape)
  context = AbstractMesh(sizes, names, (AxisType.Auto,) * len(names), abstract_device=chip)
  with jax.sharding.use_abstract_mesh(context):
    traced = program.step.trace(program.state, program.batch)
    return traced.lower(lowering_platforms=("cuda",)).compile()
