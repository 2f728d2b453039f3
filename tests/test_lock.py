"""One owner of a folder at a time, on file systems without locks too."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading

import pytest

from atst_jax.artifacts import export
from atst_jax.runtime.workdir import claim
from atst_jax.util import lock as locks
from atst_jax.util.errors import UserError
from tests.tiny import ROOT


@pytest.fixture
def no_locks(request, monkeypatch):
  number = getattr(request, "param", errno.ENOSYS)

  def refuse(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(locks.fcntl, "flock", refuse)


@pytest.mark.parametrize("no_locks", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], indirect=True)
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
def ended():
  """The numbers of a process that has ended, and of one whose end nobody has asked for."""
  gone, zombie = subprocess.Popen("true"), subprocess.Popen("true")
  gone.wait()
  os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
  yield {"ended": gone.pid, "zombie": zombie.pid}
  zombie.wait()


def _start_of(process):
  """The field as it was while the process lived."""
  try:
    with open(f"/proc/{process}/stat", encoding="utf-8") as file:
      return file.read().split()[21]
  except FileNotFoundError:
    return "1"


@pytest.mark.parametrize(
  ("change", "free"),
  [
    ({}, False),
    ({"started": "1"}, True),  # another process had the same number
    ({"process": "ended"}, True),
    ({"process": "zombie"}, True),  # nobody has asked how it ended
    ({"host": "another"}, False),
    (None, True),  # killed while it wrote
  ],
)
def test_fault_10_an_owner_that_is_gone_is_replaced(
  tmp_path, monkeypatch, no_locks, warnings, ended, change, free
):
  monkeypatch.setattr(locks, "PATIENCE", 0.0)
  with contextlib.closing(claim(str(tmp_path))):
    path = tmp_path / ".owner"
    if change is None:
      path.write_text("{")
    else:
      change = {key: ended.get(value, value) for key, value in change.items()}
      if "process" in change:
        change["started"] = _start_of(change["process"])
      path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if free:
      claim(str(tmp_path)).close()
      assert os.listdir(tmp_path) == [".lock"]
      return
    told = "if that process has ended, remove" if "host" in change else "is in use by process"
    with pytest.raises(UserError, match=told):
      claim(str(tmp_path))


def _dead_owner(folder):
  """The file of a process that has ended, on this host."""
  owner = {"host": locks.socket.gethostname(), "process": os.getpid(), "started": "1", "since": "?"}
  (folder / ".owner").write_text(json.dumps(owner))


@pytest.mark.parametrize("function", ["_replace", "_take_file"])
def test_fault_10_of_two_that_find_a_dead_owner_one_takes_the_folder(
  tmp_path, monkeypatch, no_locks, warnings, function
):
  """The second has looked at the file when the first has replaced it, or is about to."""
  _dead_owner(tmp_path)
  original, first = getattr(locks, function), []

  def late(path, *args):
    if function == "_replace" or path.endswith(".next"):
      monkeypatch.setattr(locks, function, original)
      first.append(claim(str(tmp_path)))
    return original(path, *args)

  monkeypatch.setattr(locks, function, late)
  with pytest.raises(UserError, match="is in use by process"):
    claim(str(tmp_path))
  assert json.loads((tmp_path / ".owner").read_text())["started"] != "1"
  first[0].close()
  claim(str(tmp_path)).close()
  assert os.listdir(tmp_path) == [".lock"]


def test_fault_10_who_died_while_it_replaced_an_owner_is_replaced_too(tmp_path, no_locks, warnings):
  _dead_owner(tmp_path)
  (tmp_path / ".owner.next").write_text((tmp_path / ".owner").read_text())
  claim(str(tmp_path)).close()
  assert os.listdir(tmp_path) == [".lock"]


def test_fault_10_an_owner_that_is_being_written_is_waited_for(tmp_path, no_locks, warnings):
  first = claim(str(tmp_path))
  whole = (tmp_path / ".owner").read_text()
  (tmp_path / ".owner").write_text(whole[:20])
  threading.Timer(0.1, (tmp_path / ".owner").write_text, [whole]).start()
  with pytest.raises(UserError, match=f"is in use by process {os.getpid()}"):
    claim(str(tmp_path))
  first.close()


def test_fault_10_a_process_that_ends_at_once_leaves_no_owner(tmp_path, no_locks, warnings):
  """Another host could not know that it has ended. What somebody else has put there stays."""
  mine, theirs = tmp_path / "mine", tmp_path / "theirs"
  held = [claim(str(mine)), claim(str(theirs))]
  _dead_owner(theirs)
  locks.release()
  assert os.listdir(mine) == [".lock"] and sorted(os.listdir(theirs)) == [".lock", ".owner"]
  for lock in held:
    lock.close()


@contextlib.contextmanager
def _writer(path):
  """A process that is writing a file."""
  program = f"""
import sys, time
from atst_jax.util import storage
with storage.writing({str(path)!r}, "w") as file:
  print("ready", flush=True)
  time.sleep(60)
"""
  with subprocess.Popen(
    [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT
  ) as process:
    process.stdout.readline()
    yield process
    process.kill()


def test_fault_21_what_a_killed_process_has_not_finished_is_removed_and_nothing_else(tmp_path):
  """In the folder and those directly in it. What a living process writes stays, and what has
  another name."""
  os.makedirs(tmp_path / "rows")
  with _writer(tmp_path / "rows" / "a.json") as killed, _writer(tmp_path / "report.html"):
    killed.kill()
    killed.wait()
    os.makedirs(f"{tmp_path}/encoder.tmp-{'0' * 32}/params")
    (tmp_path / "notes.tmp-mine").write_text("")
    living = [name for name in os.listdir(tmp_path) if name.startswith("report.html.tmp-")]
    assert len(living) == 1 and len(os.listdir(tmp_path / "rows")) == 1
    claim(str(tmp_path)).close()
    assert sorted(os.listdir(tmp_path)) == [".lock", "notes.tmp-mine", *living, "rows"]
    assert os.listdir(tmp_path / "rows") == []


def test_what_an_export_did_not_finish_is_removed_by_the_next_of_that_name(tmp_path):
  """Not what another is making, of this name or of another one."""
  for name in ("encoder", "other"):
    os.makedirs(f"{tmp_path}/{name}.tmp-{'0' * 32}")
  names = [f"{tmp_path}/encoder", f"{tmp_path}/encoder.2"]
  with export._making(names[0]) as first, export._making(names[1]) as second:
    locks.remove_abandoned(str(tmp_path))
    locks.remove_unfinished(names[0])
    assert sorted(os.listdir(tmp_path)) == sorted(map(os.path.basename, (first, second)))
  assert sorted(os.listdir(tmp_path)) == ["encoder", "encoder.2"]
  os.makedirs(f"{tmp_path}/encoder.3.tmp-{'0' * 32}")
  os.makedirs(f"{tmp_path}/other.tmp-{'0' * 32}")
  locks.remove_unfinished(f"{tmp_path}/encoder.3")
  assert sorted(os.listdir(tmp_path))[2:] == [f"other.tmp-{'0' * 32}"]


def test_fault_10_what_another_holds_is_in_use(tmp_path):
  first = claim(str(tmp_path))
  with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on"):
    claim(str(tmp_path))
  first.close()
  claim(str(tmp_path)).close()
