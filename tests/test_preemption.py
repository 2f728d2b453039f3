"""Stop requests: a process that is asked to stop saves and ends with 75, or ends at once where
there is nothing to save."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from atst_jax import main
from atst_jax.pretraining import recipe
from atst_jax.runtime import preemption
from tests.tiny import ONE_DEVICE, ROOT, running, tiny_flags

FLAGS = {"total_steps": "1000000", "encoder__depth": "1", "difference__weight": "0"}
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")

# A job that waits (`{}`) before it has anything to save. It says when.
JOB = """
import os, sys, time, types
from atst_jax import main
def run(config, workdir, allow_changed_config):
  {}
sys.modules["job"] = types.SimpleNamespace(run=run)
main.JOBS["pretrain"] = "job"
main.end(main.main(sys.argv[1:]))
"""
COMPILES = """
  import jax
  def function(x):
    for _ in range(400):
      x = jax.numpy.sin(x @ x)
    return x
  lowered = jax.jit(function).lower(jax.numpy.ones((8, 8)))
  print("ready", flush=True)
  lowered.compile()
  print("compiled")
"""
LOCKED = """
  import hashlib
  print("ready", flush=True)
  hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize(
  ("number", "code", "told"),
  [
    (signal.SIGTERM, COMPILES, "stopped: SIGTERM; run the same command again"),
    (signal.SIGUSR1, COMPILES, "stopped: SIGUSR1; run the same command again"),
    (signal.SIGINT, LOCKED, "stopped: SIGINT; run the same command again"),
    (signal.SIGHUP, LOCKED, "stopped: SIGHUP; run the same command again"),
  ],
)
def test_fault_01_a_signal_where_nothing_can_be_saved_ends_with_75(tmp_path, number, code, told):
  """While XLA compiles, which it does in threads of its own; and inside a call that takes minutes,
  in which Python calls no handler."""
  program = ("-c", JOB.format(code))
  with running([*tiny_flags(), f"--workdir={tmp_path}"], program=program) as process:
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    started = time.time()
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
  assert process.returncode == 75 and told in output and "compiled" not in output, output
  assert time.time() - started < 10 and "Traceback" not in output, output


def _launch(workdir, **options) -> subprocess.Popen:
  # the launcher takes `python` from there where the checkout has no environment of its own
  path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
  return subprocess.Popen(
    [ROOT / "launch/run.sh", "atst_jax.main", *tiny_flags(**FLAGS), f"--workdir={workdir}"],
    env={**os.environ, **ONE_DEVICE, "ATST_PLATFORM": "cpu", "PATH": path},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **options,
  )


def _wait_until_held(process) -> None:
  """Until the launcher holds signals, or the program answers them: before, its shell starts."""
  bit, held = 1 << (signal.SIGUSR1 - 1), 0  # which a shell of itself neither blocks nor catches
  while not held & bit and process.poll() is None:
    time.sleep(0.001)
    with open(f"/proc/{process.pid}/status", encoding="utf-8") as file:
      for line in file:
        if line.startswith(("SigBlk", "SigCgt")):
          held |= int(line.split()[1], 16)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_fault_01_a_signal_before_python_has_handlers_waits_for_them(tmp_path, name):
  """The shell of the launcher runs at this moment. Nothing of JAX is loaded: this takes less than a
  second."""
  with _launch(tmp_path) as process:
    _wait_until_held(process)
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=60)
  assert process.returncode == 75 and f"stopped: {name}; run the same command" in output, output


def _has_checkpoint(workdir) -> bool:
  folder = workdir / "checkpoints"
  return folder.is_dir() and any(name.isdigit() for name in os.listdir(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_fault_01_20_instants_from_the_start_to_the_first_checkpoint(tmp_path, name):
  """Always 75, within seconds, from the moment at which the launcher holds signals."""
  started = time.time()
  with _launch(tmp_path / "whole") as process:
    while not _has_checkpoint(tmp_path / "whole"):
      assert process.poll() is None and time.time() - started < 300
      time.sleep(0.05)
    whole = time.time() - started
    process.kill()
  ends = []
  for i in range(20):
    with _launch(tmp_path / str(i)) as process:
      _wait_until_held(process)
      time.sleep(i * whole / 19)
      sent = time.time()
      process.send_signal(getattr(signal, name))
      output, _ = process.communicate(timeout=60)
    ends.append((process.returncode, round(time.time() - sent, 1), output[-200:]))
  assert all(code == 75 and seconds < 20 for code, seconds, _ in ends), ends


def test_fault_01_processes_agree_by_the_number_of_their_questions(monkeypatch):
  """Whatever steps a run is at: a continued one begins late, and every run of a fine-tuning at 0
  again."""
  asked = []
  monkeypatch.setattr(
    "jax.experimental.multihost_utils.reached_preemption_sync_point",
    lambda number: asked.append(number) or number == 3,
  )
  with preemption.StopRequest(distributed=True) as stop:
    assert [stop.agreed() for _ in range(3)] == [False, False, True] and asked == [1, 2, 3]
  with preemption.StopRequest(distributed=False) as stop:
    assert not stop.agreed()
    stop.requested = True
    assert stop.agreed() and len(asked) == 3


def test_fault_01_jax_has_its_handler_back_once_the_job_can_save():
  """Of SIGTERM in one of several processes: JAX's own, which C sets and Python does not know, is
  out of service until then, since it would let a compilation of minutes go on."""
  get, put = preemption._get_c_handler, preemption._set_c_handler
  python = get(signal.SIGUSR1)
  with preemption.Starting():
    ours = get(signal.SIGTERM)
    put(signal.SIGTERM, 1)  # SIG_IGN
    foreign = 1
    preemption.retake()
    assert get(signal.SIGTERM) == ours
    with preemption.StopRequest(distributed=True) as stop:
      assert get(signal.SIGTERM) == ours
      stop.begin()
      assert get(signal.SIGTERM) == foreign
    assert get(signal.SIGTERM) == ours
  assert get(signal.SIGUSR1) == python


def test_fault_01_signals_are_the_loops_own_once_it_runs(tmp_path, monkeypatch, one_device):
  """The step is finished and saved. Handlers are put back."""
  numbers = [getattr(signal, name) for name in NAMES]
  handlers = [signal.getsignal(number) for number in numbers]
  run = lambda: main.main(
    [*tiny_flags(**FLAGS | {"checkpoint__every_steps": "100"}), f"--workdir={tmp_path / 'a'}"]
  )
  batches = recipe.batches

  def asked_at_3(config, dataset, **options):
    for number, batch in enumerate(batches(config, dataset, **options), 1):
      if number == 3:
        os.kill(os.getpid(), signal.SIGHUP)
      yield batch

  monkeypatch.setattr(recipe, "batches", asked_at_3)
  assert run() == 75
  assert os.listdir(tmp_path / "a" / "checkpoints") == ["3"]
  assert handlers == [signal.getsignal(number) for number in numbers]
  assert signal.set_wakeup_fd(-1) == -1


def test_fault_01_a_second_signal_ends_at_once_but_not_one_that_comes_with_the_first(monkeypatch):
  """A closed terminal sends SIGHUP twice, a session that ends SIGTERM beside it; both are one
  request. SIGHUP never ends the job. Files that name this process as an owner go before it."""
  ends = []
  monkeypatch.setattr(os, "_exit", lambda code: ends.append(code))
  monkeypatch.setattr(preemption.lock, "release", lambda: ends.append("released"))
  with preemption.StopRequest(distributed=False) as stop:
    stop.begin()
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
      os.kill(os.getpid(), number)
    assert stop.requested and not ends
    monkeypatch.setattr(preemption, "TOGETHER", 0.0)
    os.kill(os.getpid(), signal.SIGHUP)
    assert not ends
    os.kill(os.getpid(), signal.SIGTERM)
  assert ends == ["released", 143]


SAVING = """
import os, signal, sys, time
from atst_jax.runtime import preemption
with preemption.Starting(), preemption.StopRequest(distributed=False) as stop:
  stop.begin()
  # in one piece: a terminal gives what it has
  os.write(1, f"ready {{signal.getsignal(signal.SIGHUP) == signal.SIG_IGN}}\\n".encode())
  deadline = time.time() + {}
  while not stop.agreed() and time.time() < deadline:
    time.sleep(0.02)
  for _ in range(3):
    print("a line", flush=True)
    print("a line", file=sys.stderr, flush=True)
  open({!r}, "w").write(f"saved {{stop.requested}}")
"""


def test_fault_01_a_closed_terminal_asks_to_stop(tmp_path):
  """The terminal is gone, so that every further line of the log would be an error; the job saves
  all the same."""
  ours, theirs = pty.openpty()
  program = SAVING.format(60, str(tmp_path / "saved"))
  process = subprocess.Popen(
    ["setsid", "--ctty", sys.executable, "-c", program],
    cwd=ROOT,
    stdin=theirs,
    stdout=theirs,
    stderr=theirs,
  )
  os.close(theirs)
  ready = os.read(ours, 1000)
  os.close(ours)
  assert process.wait(30) == 0 and (tmp_path / "saved").read_text() == "saved True"
  assert ready.startswith(b"ready False")


def test_fault_01_nohup_is_respected(tmp_path):
  """SIGHUP that was ignored when the program started stays ignored."""
  program = ("nohup", sys.executable, "-c", SAVING.format(0.5, str(tmp_path / "saved")))
  process = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "ready True\n"
  process.send_signal(signal.SIGHUP)
  process.communicate(timeout=30)
  assert process.returncode == 0 and (tmp_path / "saved").read_text() == "saved False"
