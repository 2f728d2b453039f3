"""The communication of a compiled program between devices, read from its text."""

import math
import re
from typing import NamedTuple

from atst_jax.performance.hlo import times_run

ACROSS = "send"  # between slices of TPUs, by their hosts
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", ACROSS)
_OPERATION = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\((.*)$", re.M)
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


class Collective(NamedTuple):
  """One operation: its kind, the bytes of the whole array on a device, and among how many devices
  it is (0: it leaves the slice)."""

  kind: str
  size: int
  devices: int

  @property
  def sent(self) -> float:
    """Bytes that a device sends to its neighbours at least (rings: Patarasuk and Yuan, 2009)."""
    if self.kind == ACROSS:
      return 0
    passes = 2 if self.kind == "all-reduce" else 1
    return (
      passes
      * self.size
      * (1 if self.kind == "collective-permute" else (self.devices - 1) / self.devices)
    )


def find_collectives(text: str, devices: int) -> list[Collective]:
  """All collectives of a compiled program; one inside a loop stands as often as it runs.

  Args:
    text: `compiled.as_text()`.
    devices: number of devices of the program, and of operations that name no group.
  """
  found, runs = [], times_run(text)
  for operation in _OPERATION.finditer(text):
    result, kind, start, rest = operation.groups()
    sizes = [_bytes(*shape) for shape in _SHAPE.findall(result)]
    if kind == ACROSS or (start and kind == "collective-permute"):
      size = max(sizes)  # the others are tokens and flags
    elif start and kind != "all-reduce":
      size = sum(sizes[len(sizes) // 2 :])  # the first half are its operands
    else:
      size = sum(sizes)
    group = 0 if kind == ACROSS else _group(rest, devices)
    whole = size * group if kind == "reduce-scatter" else size
    found += [Collective(kind, whole, group)] * runs(operation.start())
  return found


def _bytes(name: str, bits: str, shape: str) -> int:
  width = 1 if name == "pred" else max(1, int(bits) // 8)
  return width * math.prod(int(n) for n in shape.split(",") if n)


def _group(rest: str, devices: int) -> int:
  if match := _LISTED.search(rest):
    return match[1].count(",") + 1
  if match := _COUNTED.search(rest):
    return int(match[1])
  if match := _NAMED.search(rest):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
  return devices
