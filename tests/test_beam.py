"""Preparation by Apache Beam: the same bytes as by the process pool."""

import os
import pathlib
import socket
import threading
import time

import numpy as np
import pytest
import soundfile

from data_pipeline import prepare
from data_pipeline.shards import beam

pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install -e .[beam]")


def _contents(folder) -> dict[str, bytes]:
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(pathlib.Path(folder).rglob("*"))
    if p.is_file()
  }


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
  """(folder with the input `audio` and the set `pool` that the process pool made of it, flags)."""
  folder = tmp_path_factory.mktemp("beam")
  rng = np.random.default_rng(0)
  (folder / "audio").mkdir()
  for i in range(20):
    soundfile.write(
      folder / "audio" / f"{i}.wav", rng.uniform(-0.5, 0.5, (4000 + 137 * i, 2)), 22050
    )
  (folder / "audio" / "bad.wav").write_text("text")
  flags = ["--frontend=atst", "--num_shards=5", f"--input={folder / 'audio'}"]
  assert prepare.main([*flags, f"--output={folder / 'pool'}", "--workers=2"]) == 0
  return folder, flags


def test_the_direct_runner_writes_the_same_bytes(pool, monkeypatch):
  """A real pipeline, from relative paths; also one that continues what the pool has begun."""
  folder, flags = pool
  monkeypatch.chdir(folder)
  flags = [*flags[:2], "--input=audio", "--output=beam", "--runner=DirectRunner"]
  assert prepare.main(flags) == 0
  expected = _contents(folder / "pool")
  assert _contents(folder / "beam") == expected
  (folder / "beam" / "train-00002-of-00005.tfrecord").unlink()
  assert prepare.main([*flags, "--beam_options=--direct_num_workers=1"]) == 0
  assert _contents(folder / "beam") == expected


def test_every_path_of_the_work_is_absolute(pool, monkeypatch):
  """Workers may start in another folder."""
  folder, flags = pool
  monkeypatch.chdir(folder)
  seen = []
  store = beam.store_task
  monkeypatch.setattr(
    beam, "store_task", lambda task, work: seen.append((task, work)) or store(task, work)
  )
  line = [*flags[:2], "--input=audio", "--output=again", "--runner=DirectRunner"]
  assert prepare.main(line) == 0
  assert len(seen) == 5 and all(os.path.isabs(work) for _, work in seen)
  assert all(os.path.isabs(source.path) for task, _ in seen for source in task.sources)


@pytest.mark.parametrize(
  ("runner", "options", "message"),
  [
    ("DirectRunner", "--direct_num_worker=2", "did you mean '--direct_num_workers'?"),
    ("DirectRunner", "--direct_num_workers=two", "invalid int value: 'two'"),
    ("DirectRunner", "--zzz", "unknown option --zzz"),
    ("FlinkRunner", "--flink_job_server_jar=/none.jar", "/none.jar is not there"),
    ("FlinkRunner", "--job_endpoint=localhost:{port}", "does not answer (Connection refused)"),
    ("FlinkRunner", "", "needs Java; install Java 11 or newer"),
  ],
)
def test_mistakes_of_a_runner_are_one_sentence(
  pool, tmp_path, runner, options, message, monkeypatch, capsys
):
  monkeypatch.setenv("PATH", str(tmp_path))
  monkeypatch.delenv("JAVA_HOME", raising=False)
  with socket.socket() as free:  # nobody listens there
    free.bind(("localhost", 0))
    options = options.format(port=free.getsockname()[1])
    line = [*pool[1], f"--output={tmp_path / 'out'}", f"--runner={runner}"]
    code = prepare.main([*line, *([f"--beam_options={options}"] if options else [])])
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert code == 2 and error.startswith("error: ") and message in error
  assert not list((tmp_path / "out").glob("*.tfrecord"))


def test_dask_writes_the_same_bytes_though_a_worker_is_killed(pool, monkeypatch):
  """Two workers of a cluster, which start elsewhere; one is killed once a shard is there."""
  distributed = pytest.importorskip("distributed", reason="no Dask: pip install -e .[dask]")
  folder, flags = pool
  monkeypatch.chdir(folder)
  with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
    killed = []

    def kill():
      deadline = time.time() + 60
      while not list(folder.glob("dask/*.tfrecord")) and time.time() < deadline:
        time.sleep(0.005)
      killed.append(next(iter(cluster.workers.values())).pid)
      os.kill(killed[0], 9)

    thread = threading.Thread(target=kill)
    thread.start()
    line = [*flags[:2], "--input=audio", "--output=dask", "--runner=DaskRunner"]
    options = f"--beam_options=--dask_client_address={cluster.scheduler_address}"
    assert prepare.main([*line, options]) == 0
    thread.join()
  assert killed and _contents(folder / "dask") == _contents(folder / "pool")
