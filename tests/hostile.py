"""Hostile input: bytes and JSON with faults, and the bounds that whatever reads them must
keep."""

import collections
import contextlib
import copy
import os
import resource
import signal
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# `make fuzz` sets how many cases each target gets, drawn anew every time; the suite draws few,
# always the same.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))
CPU_SECONDS = 20  # of one case
MEGABYTES = 300  # that one case may add to the process's largest size

cases: collections.Counter = collections.Counter()  # of every target
caught: dict[str, collections.Counter] = {}  # the errors each ended with; None: accepted


def fuzz(few: int, share: float = 1.0):
  """Settings of a target: `few` cases in the suite, or that share of FUZZ_EXAMPLES."""
  return settings(
    max_examples=max(few, int(EXAMPLES * share)),
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
  )


def _megabytes() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _too_long(*_):
  raise AssertionError(f"more than {CPU_SECONDS} s of processor time: it hangs")


@contextlib.contextmanager
def _alarm():
  """Ends a case that does not end."""
  before = signal.signal(signal.SIGPROF, _too_long)
  try:
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def bounded(target: str, *documented: type[Exception]):
  """Lets the documented errors pass and nothing else, within bounds of time and memory. Names must
  not break lines."""
  size, started, outcome = _megabytes(), time.process_time(), None
  cases[target] += 1
  try:
    with _alarm() if EXAMPLES else contextlib.nullcontext():  # the suite's cases are known to end
      yield
  except documented as error:
    outcome = type(error).__name__
    assert len(str(error)) < 20_000
  if time.process_time() - started > CPU_SECONDS:
    _too_long()
  caught.setdefault(target, collections.Counter())[outcome] += 1
  assert _megabytes() - size < MEGABYTES, "memory that no file backs"


@pytest.fixture(scope="module", autouse=True)
def figures():
  """Prints a line for every target of a module."""
  cases.clear()
  caught.clear()
  yield
  for target, count in cases.items():
    outcomes = [
      f"{name or 'accepted'} {number}"
      for name, number in sorted(caught.get(target, {}).items(), key=str)
    ]
    print(f"\n{target}: {count} cases ({', '.join(outcomes)})", end="")
  print(f"\n{sum(cases.values())} cases in all")


NUMBERS = [
  b"\xff" * 8,
  b"\x00" * 8,
  (2**40).to_bytes(8, "little"),
  (2**40).to_bytes(8, "big"),
  b"\x7f\xff\xff\xff",
  b"\xff\xff\xff\x7f",
  b"\x80" * 10,
  b"\xff" * 40,
  b"\x01",
]
_places = st.one_of(st.integers(0, 80), st.integers(0, 1 << 20))
_edits = st.tuples(
  _places,
  st.sampled_from(["set", "set", "flip", "insert", "delete", "cut", "repeat"]),
  st.one_of(st.sampled_from(NUMBERS), st.binary(min_size=1, max_size=12)),
)


def mutate(data: bytes, edits) -> bytes:
  """Data after a few edits (place, what, value)."""
  out = bytearray(data)
  for place, what, value in edits:
    place = place % (len(out) + 1)
    if what == "set":
      out[place : place + len(value)] = value
    elif what == "flip" and place < len(out):
      out[place] ^= value[0] or 1
    elif what == "insert":
      out[place:place] = value
    elif what == "delete":
      del out[place : place + len(value)]
    elif what == "cut":
      del out[place:]
    elif what == "repeat":
      out[place:place] = out[place : place + 8 * len(value)]
  return bytes(out)


edits = st.one_of(
  st.lists(_edits, min_size=1, max_size=1), st.lists(_edits, min_size=1, max_size=5)
)

VALUES = [
  None,
  True,
  -1,
  0,
  1,
  2**31,
  2**40,
  2**70,
  -(2**70),
  0.5,
  1e308,
  float("nan"),
  float("inf"),
  "",
  "x",
  "../x",
  "/etc/passwd",
  "..\\x",
  "a\0b",
  "train-0.tfrecord",
  "\ud800",
  "1" * 5000,
  [],
  {},
  [[]],
  [1, 2],
  {"a": 1},
  ["../x"],
  "<script>",
  "hann",
  "16000",
  [None] * 3,
  {"": {}},
]


def _paths(tree, path=()):
  yield path
  items = (
    tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
  )
  for key, value in items:
    yield from _paths(value, (*path, key))


def _own(value):
  """A copy of a container: the next damage must not put it into itself."""
  return copy.deepcopy(value) if isinstance(value, (list, dict)) else value


@st.composite
def damaged_trees(draw, tree, values=VALUES):
  """A tree of dicts and lists with a few values replaced, removed, renamed or moved."""
  tree = copy.deepcopy(tree)
  for _ in range(draw(st.integers(1, 3))):
    path = draw(st.sampled_from(list(_paths(tree))))
    if not path:
      if draw(st.integers(0, 9)) == 0:
        return _own(draw(st.sampled_from(values)))
      continue
    node = tree
    for key in path[:-1]:
      node = node[key]
    what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename"]))
    if what == "replace" or not isinstance(node, dict):
      node[path[-1]] = _own(draw(st.sampled_from(values)))
    elif what == "remove":
      del node[path[-1]]
    else:
      node[draw(st.sampled_from(["x", "../x", "", "train", "kind"]))] = node.pop(path[-1])
  return tree
