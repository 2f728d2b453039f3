"""No command needs a home folder, or a folder of packages that can be written."""

import os
import shutil
import subprocess
import sys

import pytest
from tiny import ROOT

from atst_jax.audio import frontend


@pytest.mark.parametrize("writable", [True, False])
def test_numba_has_a_place_for_what_it_compiles(monkeypatch, tmp_path, writable):
  """Where neither its package nor the home folder can be written, it would fail at the import."""
  monkeypatch.setattr(frontend.tempfile, "mkdtemp", lambda prefix: f"{tmp_path}/{prefix}")
  monkeypatch.setattr(frontend, "_can_be_written", lambda folder: writable)
  monkeypatch.setenv("NUMBA_CACHE_DIR", "")
  monkeypatch.delenv("NUMBA_CACHE_DIR")
  frontend.import_librosa()  # before numba is hidden
  monkeypatch.delitem(sys.modules, "numba", raising=False)
  frontend.import_librosa()
  assert os.environ.get("NUMBA_CACHE_DIR") == (None if writable else f"{tmp_path}/numba-")


def test_a_folder_that_is_not_there_can_be_written_if_the_one_above_can(tmp_path):
  can_be_written = frontend._can_be_written
  assert can_be_written(f"{tmp_path}/a/b") and not can_be_written("/proc/a/b")
  assert not can_be_written("~/.cache") and not can_be_written("")


@pytest.mark.slow
def test_filters_are_made_for_a_user_without_home():
  if os.geteuid() or not shutil.which("setpriv"):
    pytest.skip("only root can become somebody else")
  code = (
    "from atst_jax.audio.frontend import FRONTENDS, mel_filters; mel_filters(FRONTENDS['atst'])"
  )
  command = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "env", "HOME=/"]
  subprocess.run([*command, sys.executable, "-c", code], check=True, cwd=ROOT)
