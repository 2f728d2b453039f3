"""Preparation that ends early, by a signal, a dead worker or a full disk, and is continued to the
same bytes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import soundfile

from atst_jax.audio.frontend import get_frontend, mel_filters
from data_pipeline import prepare
from data_pipeline.shards import workers
from tests.preparing import contents
from tests.tiny import ROOT

# The command in a process of its own. The filters are handed over: librosa takes seconds to load.
COMMAND = """
import sys, numpy
from data_pipeline import prepare
from data_pipeline.shards import job
job.mel_filters = lambda frontend: numpy.load(sys.argv[1])
sys.exit(prepare.main(sys.argv[2:]))
"""


def flags(audio, output, *more) -> list[str]:
  return [
    f"--input={audio}",
    f"--output={output}",
    "--frontend=atst",
    "--num_shards=32",
    "--workers=1",
    *more,
  ]


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
  """32 names of one 12-s noise: enough work to be killed in the middle of."""
  root = tmp_path_factory.mktemp("audio")
  soundfile.write(root / "0.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 12 * 44100), 44100)
  for i in range(1, 32):
    os.link(root / "0.wav", root / f"{i}.wav")
  return root


@pytest.fixture(scope="module")
def reference(audio, tmp_path_factory):
  """The contents of an output that was prepared in one go, with one thread; interrupted jobs are
  offered several."""
  output = tmp_path_factory.mktemp("reference")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("OPENBLAS_NUM_THREADS", "1")
    assert prepare.main(flags(audio, output)) == 0
  return contents(output)


def finished(output) -> dict[str, int]:
  """Sidecars and the inodes of their shards."""
  sidecars = list((output / ".work").glob("train-*.json")) if output.exists() else []
  return {p.stem: (output / f"{p.stem}.tfrecord").stat().st_ino for p in sidecars}


def wait_for_group(group):
  """Until a group has no process any more, at most 20 s."""
  deadline = time.monotonic() + 20
  while time.monotonic() < deadline:
    try:
      os.killpg(group, 0)
    except ProcessLookupError:
      return
    time.sleep(0.05)
  os.killpg(group, signal.SIGKILL)
  pytest.fail("workers outlived their job by 20 s")


class Interruption(threading.Thread):
  """Acts once `count` shards are finished, with the ids of the processes that work on them."""

  def __init__(self, output, count, action):
    super().__init__(daemon=True)
    self.output, self.count, self.action = output, count, action

  def run(self):
    deadline = time.monotonic() + 60
    while len(finished(self.output)) < self.count and time.monotonic() < deadline:
      time.sleep(0.005)
    self.action([child.pid for child in multiprocessing.active_children()])


def signal_all(number):
  """A signal to the job and, as a terminal sends it, to its workers."""

  def action(workers):
    for pid in (os.getpid(), *workers):
      os.kill(pid, number)

  return action


@pytest.mark.parametrize(
  ("action", "message"),
  [
    (signal_all(signal.SIGINT), "stopped: by a signal; run the same command again"),
    (
      lambda workers: os.kill(os.getpid(), signal.SIGTERM),
      "stopped: by a signal; run the same command again",
    ),
    (lambda workers: os.kill(workers[0], signal.SIGKILL), "stopped: a worker process died"),
  ],
)
def test_fault_21_interrupted_and_continued(
  audio, reference, tmp_path, monkeypatch, capfd, action, message
):
  monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
  arguments = flags(audio, tmp_path)
  handlers = list(map(signal.getsignal, (signal.SIGINT, signal.SIGTERM)))
  interruption = Interruption(tmp_path, 2, action)
  interruption.start()
  assert prepare.main(arguments) == 75
  interruption.join()
  error = capfd.readouterr().err
  assert message in error and "Traceback" not in error
  assert list(map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))) == handlers
  before = finished(tmp_path)
  assert 2 <= len(before) < 32 and not (tmp_path / "dataset.json").exists()
  assert prepare.main(arguments) == 0
  assert f"{32 - len(before)} of 32 shards to write" in capfd.readouterr().err
  assert {name: inode for name, inode in finished(tmp_path).items() if name in before} == before
  assert contents(tmp_path) == reference


def test_a_signal_does_not_wait_for_the_end_of_a_shard(audio, tmp_path):
  def signal_at_the_first_file():
    while not list(tmp_path.glob("*.tfrecord.tmp-*")):
      time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=signal_at_the_first_file, daemon=True).start()
  assert prepare.main(flags(audio, tmp_path, "--num_shards=1")) == 75
  assert not list(tmp_path.glob("*"))[1:]  # the work folder, and no temporary file


def test_the_signal_handler_does_not_raise():
  """An exception inside concurrent.futures would leave its locks taken."""
  stop = multiprocessing.get_context("spawn").RawValue("b", 0)
  with workers._signals(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    # a second one kills
    assert stop.value == 1 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_fault_21_killed_and_continued(audio, reference, tmp_path):
  """SIGKILL of the job with all its workers, then of the job alone: the workers leave by
  themselves."""
  np.save(tmp_path / "filters.npy", mel_filters(get_frontend("atst")))
  output = tmp_path / "out"
  command = [sys.executable, "-c", COMMAND, tmp_path / "filters.npy", *flags(audio, output)]
  for kill, count in ((os.killpg, 2), (os.kill, 6)):
    with subprocess.Popen(
      command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
      interruption = Interruption(
        output, count, lambda workers, kill=kill: kill(process.pid, signal.SIGKILL)
      )
      interruption.start()
      assert process.wait() == -signal.SIGKILL
      wait_for_group(process.pid)
    assert count <= len(finished(output)) < 32 and not (output / "dataset.json").exists()
  before = finished(output)
  assert prepare.main(flags(audio, output)) == 0
  assert {name: inode for name, inode in finished(output).items() if name in before} == before
  assert contents(output) == reference


def test_a_full_disk_is_one_line(audio, tmp_path, capsys):
  resource = pytest.importorskip("resource")
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # the workers inherit it
  try:
    assert prepare.main(flags(audio, tmp_path / "out")) == 2
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith(f"error: cannot write to {tmp_path / 'out'}: File too large")
  assert [name for name in os.listdir(tmp_path / "out") if name != ".work"] == []
