"""Data sheets of accelerators, to compare speed and memory with."""

from typing import NamedTuple


class Chip(NamedTuple):
  """One chip.

  flops: dense bfloat16 operations per second.
  memory: bytes.
  bandwidth: bytes per second between the chip and its memory.
  links: bytes per second that leave a chip for the others of its slice (TPU) or machine (GPU), all
    links together.
  """

  flops: float
  memory: float
  bandwidth: float
  links: float


# From NVIDIA's data sheets (which state NVLink for both directions), and Google Cloud's pages on
# the TPU versions.
CHIPS = {
  "A100": Chip(312e12, 80e9, 2.04e12, 300e9),
  "H100": Chip(989e12, 80e9, 3.35e12, 450e9),
  "H200": Chip(989e12, 141e9, 4.8e12, 450e9),
  "TPU v4": Chip(275e12, 32 * 2**30, 1.2e12, 300e9),
  "TPU v5e": Chip(197e12, 16 * 2**30, 0.82e12, 200e9),
  "TPU v5p": Chip(459e12, 95 * 2**30, 2.77e12, 600e9),
  "TPU v6e": Chip(918e12, 32 * 2**30, 1.64e12, 400e9),
}
ALIASES = {"TPU v5 lite": "TPU v5e", "TPU v6 lite": "TPU v6e", "TPU v5": "TPU v5p"}


def find_chip(device_kind: str) -> str | None:
  """The name in `CHIPS` for JAX's name of a device ("NVIDIA H100 80GB HBM3", "TPU v5 lite"), or
  None."""
  name = ALIASES.get(device_kind, device_kind)
  return next((chip for chip in CHIPS if chip in name), None)
