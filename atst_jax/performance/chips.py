"""Data sheets of accelerators, to compare speed and memory with."""

import re
from typing import NamedTuple


class Chip(NamedTuple):
  """One chip.

  flops: dense bfloat16 operations per second.
  exact: float32 operations per second, as `dtype=float32` has them: never TF32 on GPUs, six passes
    of bfloat16 on TPUs.
  memory: bytes.
  bandwidth: bytes per second between the chip and its memory.
  links: bytes per second that leave a chip for the others of its slice (TPU) or machine (GPU), all
    links together.
  """

  flops: float
  exact: float
  memory: float
  bandwidth: float
  links: float

  def peak(self, dtype: str) -> float:
    """Operations per second in "float32" or "bfloat16"; "auto" is the latter."""
    return self.exact if dtype == "float32" else self.flops


# From NVIDIA's data sheets (which state NVLink for both directions), and Google Cloud's pages on
# the TPU versions.
CHIPS = {
  "A100": Chip(312e12, 19.5e12, 80e9, 2.04e12, 300e9),
  "H100": Chip(989e12, 67e12, 80e9, 3.35e12, 450e9),
  "H200": Chip(989e12, 67e12, 141e9, 4.8e12, 450e9),
  "TPU v4": Chip(275e12, 275e12 / 6, 32 * 2**30, 1.2e12, 300e9),
  "TPU v5e": Chip(197e12, 197e12 / 6, 16 * 2**30, 0.82e12, 200e9),
  "TPU v5p": Chip(459e12, 459e12 / 6, 95 * 2**30, 2.77e12, 600e9),
  "TPU v6e": Chip(918e12, 918e12 / 6, 32 * 2**30, 1.64e12, 400e9),
}
ALIASES = {"TPU v5 lite": "TPU v5e", "TPU v6 lite": "TPU v6e", "TPU v5": "TPU v5p"}
SLOWER = re.compile(r"H[12]00 (PCIe|NVL)|TPU v4 lite")  # than the chip whose name they have


def find_chip(device_kind: str) -> str | None:
  """The name in `CHIPS` for JAX's name of a device ("NVIDIA H100 80GB HBM3", "TPU v5 lite"), or
  None: an "NVIDIA RTX A1000" is no A100."""
  name = ALIASES.get(device_kind, device_kind)
  if SLOWER.search(name):
    return None
  return next((chip for chip in CHIPS if re.search(rf"\bG?{chip}\b", name)), None)
