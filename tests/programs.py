"""What runs of this process compile, shared by those whose programs are the same; freed after each
file of tests (`conftest.free_programs`)."""

import jax

from atst_jax.artifacts.batches import Program
from atst_jax.pretraining import recipe
from atst_jax.util import config as configs

PROGRAMS: dict = {}
_compile_for, _compile_step = recipe.compile_for, recipe.compile_step
make_apart = Program.__init__

# What a program does not depend on: sections, and all keys of two sections but these.
SECTIONS = ("log", "checkpoint", "online")
ONLY = {"data": ("frontend", "clip_frames")}
LOOP = ("step_seconds", "start_seconds", "patience", "rollbacks", "collapse", "collapse_steps")


def _matters(key: str) -> bool:
  section, _, name = key.partition(".")
  if section == "guard":
    return name not in LOOP
  return section not in SECTIONS and name in ONLY.get(section, (name,))


def compile_for(config, mesh, **options):
  """As that of `recipe`."""
  values = {k: v for k, v in configs.flatten(config).items() if _matters(k)}
  key = repr((values, [device.id for device in mesh.devices.flat], options))
  if key not in PROGRAMS:
    PROGRAMS[key] = _compile_for(config, mesh, **options)
  return PROGRAMS[key]


def compile_step(program):
  """As that of `recipe`."""
  key = id(program.step)
  if key not in PROGRAMS:
    PROGRAMS[key] = (program.step, _compile_step(program))  # of what is kept no other has the id
  return PROGRAMS[key][1]


def make_program(self, compute, variables, devices):
  """As `Program` of `artifacts.batches`; models that differ in their arrays alone share what is
  compiled."""
  make_apart(self, compute, variables, devices)
  model = compute.__self__
  network = [model.config[name] for name in ("encoder", "normalization")]
  places = [device.id for device in devices or jax.local_devices()]
  key = repr((compute.__name__, type(model.encoder), network, model.dtype, places))
  self._compiled = PROGRAMS.setdefault(key, self._compiled)
