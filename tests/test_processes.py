"""What the processes of a job tell each other before the first step."""

import pytest

from atst_jax.pretraining import job
from tests.tiny import tiny_config, tiny_flags, two_processes, write_dataset

PROGRAM = """
import errno, os, sys, jax
from atst_jax import main
from atst_jax.runtime import trees, workdir
from atst_jax.util.cli import guard
from atst_jax.util.errors import StoreError

folder, address, _, index = (argument.partition("=")[2] for argument in sys.argv[1:])

def stored():
  raise StoreError("gs://bucket: 503; run the same command again")

def own():
  with workdir.own(folder, None, {}, ignore=(), allow_changes=False, stored=stored):
    pass

def unread():
  if index == "0":
    trees.restore_alone = lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
  trees.try_out(folder)

def apart():
  trees.VISIBLE = 1.0
  os.makedirs(os.path.join(folder, index), exist_ok=True)
  os.chdir(os.path.join(folder, index))
  trees.try_out("/proc/self/cwd/checkpoints")

def work():
  jax.distributed.initialize(address, 2, int(index))
  ACT()

main.end(guard(work))
"""


def both(act, folder):
  """(exit codes, outputs) of two processes that call a function of PROGRAM."""
  program = ("-c", PROGRAM.replace("ACT", act))
  with two_processes([f"--folder={folder}"], program=program) as processes:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
  return [process.returncode for process in processes], outputs


def test_fault_10_a_folder_that_not_all_hosts_reach_is_refused(tmp_path):
  """Each process has one of that name for itself."""
  codes, outputs = both("apart", tmp_path)
  assert codes == [2, 2], outputs
  for output in outputs:
    assert "error: process 1 does not see what process 0 saved in /proc/self/cwd/c" in output
    assert "choose a folder that all hosts reach" in output
  assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize(
  ("act", "reason"), [("own", "gs://bucket: 503"), ("unread", "(Input/output error)")]
)
def test_fault_36_what_may_pass_is_told_with_its_code(tmp_path, act, reason):
  """A store that does not answer process 0 is no mistake in what the other was asked."""
  codes, outputs = both(act, tmp_path)
  assert codes == [74, 74], outputs
  assert reason in outputs[0] and "process 0 cannot go on" in outputs[1]


def test_fault_08_hosts_with_other_data_or_another_config_are_refused(tmp_path):
  """All of them, before anything is written: each would train on what it has."""
  first, second = (write_dataset(tmp_path / f"host{i}", frames=(64, 90), seed=i) for i in range(2))
  flags = tiny_flags(data__source="records", data__path=first, log__every_steps="2")
  other = [f"--config.data.path={second}", "--config.seed=1", "--config.log.every_steps=3"]
  with two_processes([*flags, f"--workdir={tmp_path / 'run'}"], second=other) as processes:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
  assert [process.returncode for process in processes] == [2, 2], outputs
  for output in outputs:
    assert "process 1 has another config or other data than process 0; give all hosts" in output
  assert "  seed: 0 -> 1\n" in outputs[1] and "  data.fingerprint: '" in outputs[1]
  assert "data.path: " not in outputs[1] and "log.every_steps: " not in outputs[1]
  assert not (tmp_path / "run").exists()


def test_hosts_may_have_their_data_anywhere(tmp_path, monkeypatch):
  """What may differ between hosts is left out; of an online evaluation, the clips are compared."""
  compared = []
  monkeypatch.setattr(job, "refuse_others", compared.append)
  sets = [write_dataset(tmp_path / name, frames=(64, 90), seed=name == "c") for name in "abc"]
  for data, labelled, threads in ((0, 0, 1), (1, 1, 2), (0, 2, 1), (2, 0, 1)):
    options = {"data__source": "records", "data__path": sets[data], "online__path": sets[labelled]}
    job.settle(tiny_config(**options, data__threads=str(threads)))
  first, moved, evaluated, trained = compared
  assert first == moved and first["online.knn"] == 10 and first["seed"] == 0
  different = [{key for key in first if first[key] != other[key]} for other in (evaluated, trained)]
  assert different == [{"online.path"}, {"data.fingerprint"}]
