"""No command needs a home folder, or a folder of packages that can be written."""

import os
import shutil
import subprocess
import sys

import pytest

from atst_jax.audio import librosa_import
from tests.tiny import ROOT


@pytest.mark.parametrize("writable", [True, False])
def test_numba_has_a_place_for_what_it_compiles(monkeypatch, tmp_path, writable):
  """Where neither its package nor the home folder can be written, it would fail at the import."""
  monkeypatch.setattr(librosa_import.tempfile, "gettempdir", lambda: str(tmp_path))
  monkeypatch.setattr(librosa_import, "_can_be_written", lambda folder: writable)
  monkeypatch.setenv("NUMBA_CACHE_DIR", "")
  monkeypatch.delenv("NUMBA_CACHE_DIR")
  librosa_import.import_librosa()  # before numba is hidden
  monkeypatch.delitem(sys.modules, "numba", raising=False)
  librosa_import.import_librosa()
  folder = f"{tmp_path}/numba-{os.getuid()}"
  assert os.environ.get("NUMBA_CACHE_DIR") == (None if writable else folder)


def test_nobody_else_may_write_what_is_loaded_as_code(monkeypatch, tmp_path):
  monkeypatch.setattr(librosa_import.tempfile, "gettempdir", lambda: str(tmp_path))
  ours = librosa_import._own_temporary_folder()
  assert librosa_import._own_temporary_folder() == ours and os.stat(ours).st_mode & 0o077 == 0
  os.chmod(ours, 0o777)
  assert librosa_import._own_temporary_folder() != ours


def test_a_folder_that_is_not_there_can_be_written_if_the_one_above_can(tmp_path):
  can_be_written = librosa_import._can_be_written
  assert can_be_written(f"{tmp_path}/a/b")
  assert not can_be_written("~/.cache") and not can_be_written("")  # no home


@pytest.mark.slow
def test_filters_are_made_for_a_user_without_home():
  if os.geteuid() or not shutil.which("setpriv"):
    pytest.skip("only root can become somebody else")
  code = (
    "from atst_jax.audio.frontend import FRONTENDS, mel_filters; mel_filters(FRONTENDS['atst'])"
  )
  # It may read the interpreter's folder, wherever that is, and write nowhere.
  command = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
  command += [f"--{kind}-caps=+dac_read_search" for kind in ("inh", "ambient")]
  subprocess.run(
    [*command, "env", "HOME=/", sys.executable, "-B", "-c", code], check=True, cwd=ROOT
  )
