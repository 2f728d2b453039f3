"""Eight fake CPU devices for every test, programs compiled without optimisations, strict ranks,
and the reference data.

A test that is about one device, or four, builds its mesh from `jax.devices()[:n]`.
"""

import gc
import importlib.metadata
import os
import pathlib
import signal
import sys

# Before jax is imported, and in the environment, so that the subprocesses of tests see the same
# platform.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
)

# Compiling tiny networks is most of the suite's time, and with LLVM's optimisations it is twice as
# much.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

# OpenBLAS's threads wait for work by spinning, beside another worker's tests.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# jaxlib 0.10 compiles three times as fast without its newer fusions; 0.12 has no such choice.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import numpy as np
import pytest

from atst_jax.artifacts.batches import Program
from atst_jax.artifacts.model import load_model
from atst_jax.pretraining import job, recipe
from atst_jax.runtime.mesh import make_mesh
from atst_jax.util.logs import log
from tests import programs
from tests.evaluation import write_encoder
from tests.preparing import write_inline
from tests.tiny import ROOT

SHARED = pathlib.Path(__file__).parents[2] / "shared"


def pytest_configure(config):
  # A shell starts background jobs with SIGINT ignored, nohup does so with SIGHUP; tests send both.
  for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
  ):
    if signal.getsignal(number) == signal.SIG_IGN:
      signal.signal(number, handler)
  jax.config.update("jax_numpy_rank_promotion", "raise")
  if cache := getattr(config, "cache", None):
    # In the environment too, for the subprocesses of tests.
    for name, value in {
      "compilation_cache_dir": str(cache.mkdir("jax")),
      "persistent_cache_min_compile_time_secs": 0.5,
    }.items():
      jax.config.update(f"jax_{name}", value)
      os.environ[f"JAX_{name.upper()}"] = str(value)


def pytest_collection_finish(session):
  """What is imported by now stays: the collector of cycles, 6 % of the suite's time by its default,
  need not look at it."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def free_programs(request):
  """Models of a file share what they compile. It is freed after the file: the programs of all files
  together would need more memory mappings than Linux gives a process (65,530)."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Program, "__init__", programs.make_program)
    yield
  for value in vars(request.module).values():
    if hasattr(value, "cache_clear") and not isinstance(value, type):
      value.cache_clear()
  programs.PROGRAMS.clear()
  jax.clear_caches()
  gc.collect()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of reference data beside the checkout; a test that asks for it is skipped where
  there is none."""
  if not SHARED.is_dir():
    pytest.skip(f"no reference data: {SHARED} is not there")
  return SHARED


@pytest.fixture(scope="session")
def golden(shared):
  """`golden("frontend")` is {name: array} of the golden vectors `frontend.npz`."""

  def load(name: str) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / f"{name}.npz") as arrays:
      return dict(arrays)

  return load


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
  """The folder of a tiny exported transformer."""
  return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def model(encoder):
  """That transformer, to embed with."""
  return load_model(encoder)


@pytest.fixture(scope="module")
def evidence():
  """launch/evidence.py, with the modules beside it."""
  sys.path.insert(0, str(ROOT / "launch"))
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(ROOT)
    try:
      import evidence
      import evidence_done
      import evidence_sets
      import evidence_tables

      evidence.sets, evidence.of, evidence.done = evidence_sets, evidence_tables, evidence_done
      yield evidence
    finally:
      sys.path.remove(str(ROOT / "launch"))


@pytest.fixture
def warnings(monkeypatch):
  """What is logged as a warning."""
  found = []
  monkeypatch.setattr(log, "warning", lambda message, *args: found.append(message % args))
  return found


@pytest.fixture
def inline(monkeypatch):
  """Shards are written in this process: for tests that are not about the workers."""
  write_inline(monkeypatch)


@pytest.fixture
def one_device(monkeypatch):
  """Training in this process on one device of the eight, which is faster; a file's runs share what
  they compile."""
  monkeypatch.setattr(
    job, "make_mesh", lambda **_: make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  )
  monkeypatch.setattr(recipe, "compile_for", programs.compile_for)
  monkeypatch.setattr(recipe, "compile_step", programs.compile_step)
