"""JAX's settings that change numbers, and the values that this code needs.

A user may have set others for other programs (`JAX_ENABLE_X64=1` in a profile). A run that goes on
with another setting would draw other views, or end in a type error.
"""

import functools
import os
import sys
from collections.abc import Callable

from atst_jax.util.logs import log

SETTINGS = {
  "jax_enable_x64": False,
  "jax_numpy_dtype_promotion": "standard",
  "jax_default_prng_impl": "threefry2x32",
  "jax_threefry_partitionable": True,
  "jax_disable_jit": False,
}


def settle() -> None:
  """Sets them for this process and those that it starts, and logs which were different."""
  changed = []
  config = sys.modules["jax"].config if "jax" in sys.modules else None
  for name, value in SETTINGS.items():
    variable, text = name.upper(), str(value).lower()
    given = os.environ.get(variable)
    if given is not None and given.lower() not in _spellings(text):
      changed.append(f"{variable}={given}")
      os.environ[variable] = text
    if config is not None and getattr(config, name, value) != value:
      config.update(name, value)
  if changed:
    log.info("%s: not used here, where numbers must not depend on it", ", ".join(changed))


def as_written(function: Callable) -> Callable:
  """The same function of arrays, with our types, in a process with other settings (a notebook)."""

  @functools.wraps(function)
  def call(*args, **options):
    import jax

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
      return function(*args, **options)

  return call


def _spellings(text: str) -> tuple[str, ...]:
  """All spellings of a value that JAX accepts in a variable."""
  return {
    "true": ("true", "1", "y", "yes", "t", "on"),
    "false": ("false", "0", "n", "no", "f", "off"),
  }.get(text, (text,))
