"""The work of a compiled program for GPUs, read from its text: bytes through memory, and operations
of its products. Work in a loop counts as often as it runs."""

import bisect
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_NOTHING = ("parameter", "get-tuple-element", "tuple", "constant", "bitcast", "after-all")
_SHAPE = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?(%[\w.\-]+) .*\{$", re.M)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (.*?) ([\w\-]+)\((.*)$", re.M)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# where an instruction names the computations that it runs
_CALLS = (
  *("body", "condition", "to_apply", "calls", "branch_computations"),
  *("true_computation", "false_computation"),
)
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')


class Work(NamedTuple):
  """Bytes that all kernels read and write, and operations of the matrix products."""

  bytes: float
  flops: float

  def __add__(self, other):
    return Work(self.bytes + other.bytes, self.flops + other.flops)

  def times(self, n: int) -> "Work":
    """The work of n runs."""
    return Work(n * self.bytes, n * self.flops)


def _shapes(text: str) -> list[tuple[str, list[int]]]:
  return [(kind, [int(n) for n in dims.split(",") if n]) for kind, dims in _SHAPE.findall(text)]


def _size(text: str) -> int:
  return sum(_BYTES[kind] * math.prod(dims) for kind, dims in _shapes(text))


def count(text: str) -> Work:
  """Work of a program.

  A fusion, a call of a library and a kernel of ours read their operands and write their results
  once. The branch of a conditional with the most bytes counts.

  Args:
    text: `compiled.as_text()` of a program for a GPU.
  """
  starts = [*_COMPUTATION.finditer(text)]
  ends = [match.start() for match in starts[1:]] + [len(text)]
  bodies = {m[1]: text[m.end() : end] for m, end in zip(starts, ends, strict=True)}
  entry = next(m[1] for m in starts if m[0].startswith("ENTRY"))
  return _of(entry, bodies, {})


def times_run(text: str) -> Callable[[int], int]:
  """A function of a place in a program's text: how often what stands there runs, by the loops
  around it; once where nothing says by whom it is run."""
  starts = [*_COMPUTATION.finditer(text)]
  places = [match.start() for match in starts]
  ends = [*places[1:], len(text)][: len(places)]
  runs = dict.fromkeys((match[1] for match in starts), 0)
  called = {
    match[1]: [pair for line in text[match.end() : end].split("\n") for pair in _calls(line)]
    for match, end in zip(starts, ends, strict=True)
  }

  def visit(name: str, times: int) -> None:
    if name in runs:
      runs[name] += times
      for other, trips in called[name]:
        visit(other, times * trips)

  for match in starts:
    if match[0].startswith("ENTRY"):
      visit(match[1], 1)
  name = lambda place: starts[bisect.bisect_right(places, place) - 1][1]
  return lambda place: max(1, runs[name(place)]) if starts else 1


def _calls(line: str) -> Iterator[tuple[str, int]]:
  """Yields the computations that an instruction runs, and how often."""
  trips = _TRIPS.search(line)
  for key in _CALLS:
    times = int(trips[1]) if trips and key == "body" else 1
    yield from ((name, times) for name in _called(line, key))


def _called(rest: str, key: str) -> list[str]:
  """The computations that an instruction names after `key`, one or a list in braces."""
  found = re.findall(rf"{key}=(\{{[^}}]*\}}|%[\w.\-]+)", rest)
  return re.findall(r"%[\w.\-]+", " ".join(found))


def _of(name: str, bodies: dict[str, str], known: dict[str, Work]) -> Work:
  if name in known:
    return known[name]
  total, shapes = Work(0, 0), {}
  for result, shape, operation, rest in _INSTRUCTION.findall(bodies[name]):
    shapes[result] = shape
    called = functools.partial(_called, rest)
    if operation in _NOTHING or operation.endswith("-done"):
      continue
    if operation == "while":
      trips = _TRIPS.search(rest)
      body = _of(called("body")[0], bodies, known)
      total += body.times(int(trips[1]) if trips else 1)
    elif operation == "conditional":
      names = called("branch_computations") or called("(?:true|false)_computation")
      total += max((_of(branch, bodies, known) for branch in names), key=lambda work: work.bytes)
    elif operation == "call" or (operation == "async-start" and called("calls")):
      total += _of((called("to_apply") or called("calls"))[0], bodies, known)
    else:
      operands = re.findall(r"%[\w.\-]+", rest.split("), ")[0])
      moved = _size(shape) + sum(_size(shapes.get(operand, "")) for operand in operands)
      total += Work(moved, _flops(shape, rest, shapes.get(operands[0], "") if operands else ""))
  known[name] = total
  return total


def _flops(result: str, rest: str, first: str) -> float:
  """Operations of a matrix product or of cuDNN's attention; 0 for other instructions."""
  if (contracted := _CONTRACTED.search(rest)) and "__cublas$" in rest:
    dims = _shapes(first)[0][1]
    axes = [int(n) for n in re.findall(r"\d+", contracted[1])]
    return 2 * math.prod(_shapes(result)[0][1]) * math.prod(dims[axis] for axis in axes)
  if "__cudnn$fmha" in rest:
    B, H, N, d = _shapes(result)[0][1]  # forward: two products; backward: five
    return (10 if "Backward" in rest else 4) * B * H * N * N * d
  return 0
