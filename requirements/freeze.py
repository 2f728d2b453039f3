"""The versions that are installed here of all that `pip install -e .[test]` brings, as constraints
for pip.

  .venv/bin/python requirements/freeze.py > requirements/constraints-3.11.txt

Of a fresh .venv they are the newest that fit together; they are known to work once the suite has
passed with them.
"""

import argparse
import importlib.metadata
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(name: str, extras: frozenset[str]) -> dict[str, str]:
  """{name: version} of everything that a distribution needs with some extras, without itself."""
  found: dict[str, str] = {}
  todo, seen = [(canonicalize_name(name), extras)], set()
  while todo:
    name, extras = todo.pop()
    if (name, extras) in seen:
      continue
    seen.add((name, extras))
    distribution = importlib.metadata.distribution(name)
    found[name] = distribution.version
    for text in distribution.requires or ():
      requirement = Requirement(text)
      wanted = requirement.marker is None or any(
        requirement.marker.evaluate({"extra": e}) for e in extras or {""}
      )
      if wanted:
        todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
  return found


def main() -> int:
  parser = argparse.ArgumentParser(
    "python requirements/freeze.py",
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.parse_args()
  versions = closure("atst_jax", frozenset({"test"}))
  del versions["atst-jax"]
  print(f"# Python {sys.version_info[0]}.{sys.version_info[1]}, written by requirements/freeze.py")
  print("\n".join(f"{name}=={version}" for name, version in sorted(versions.items())))
  return 0


if __name__ == "__main__":
  sys.exit(main())
