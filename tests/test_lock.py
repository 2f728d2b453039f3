"""One owner of a folder at a time, on file systems without locks too."""

import contextlib
import errno
import json
import os
import subprocess
import sys

import pytest

from atst_jax.runtime.workdir import claim
from atst_jax.util import lock as locks
from atst_jax.util.errors import UserError


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def no_locks(request, monkeypatch):
  def refuse(*_):
    raise OSError(request.param, os.strerror(request.param))

  monkeypatch.setattr(locks.fcntl, "flock", refuse)


def test_fault_10_without_locks_a_file_names_the_owner(tmp_path, no_locks, warnings):
  """One warning; a second job is refused while the first lives, and the folder is free after it."""
  first = claim(str(tmp_path))
  assert len(warnings) == 1 and "has no locks" in warnings[0] and ".owner" in warnings[0]
  with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on .* since \d{{4}}-"):
    claim(str(tmp_path))
  first.close()
  claim(str(tmp_path)).close()
  assert os.listdir(tmp_path) == [".lock"]


@pytest.fixture(scope="module")
def ended() -> int:
  """The number of a process that has ended."""
  command = [sys.executable, "-S", "-c", "import os; print(os.getpid())"]
  return int(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.parametrize(
  ("change", "free"),
  [
    ({}, False),
    ({"started": "1"}, True),  # another process had the same number
    ({"process": "ended"}, True),
    ({"host": "another"}, False),
    (None, True),  # killed while it wrote
  ],
)
def test_fault_10_an_owner_that_is_gone_is_replaced(
  tmp_path, monkeypatch, warnings, ended, change, free
):
  def refuse(*_):
    raise OSError(errno.ENOSYS, "")

  monkeypatch.setattr(locks.fcntl, "flock", refuse)
  with contextlib.closing(claim(str(tmp_path))):
    path = tmp_path / ".owner"
    if change is None:
      path.write_text("{")
    else:
      change = {key: ended if value == "ended" else value for key, value in change.items()}
      path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if free:
      claim(str(tmp_path)).close()
      return
    told = "if that process has ended, remove" if "host" in change else "is in use by process"
    with pytest.raises(UserError, match=told):
      claim(str(tmp_path))


def test_fault_10_what_another_holds_is_in_use(tmp_path):
  first = claim(str(tmp_path))
  with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on"):
    claim(str(tmp_path))
  first.close()
  claim(str(tmp_path)).close()
