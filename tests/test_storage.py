"""Paths of object stores: data sets are listed, prepared, verified and read there as they are
here."""

import csv
import io
import pathlib
from unittest import mock

import fsspec
import numpy as np
import pytest
import soundfile

from atst_jax.audio.decode import Reject, duration, load_audio
from atst_jax.data.dataset import Dataset
from atst_jax.data.input_pipeline import record_batches
from atst_jax.util import storage
from atst_jax.util.errors import StoreError, UserError
from data_pipeline import prepare
from data_pipeline.sources.inputs import list_sources
from tests import preparing

STORE = "memory://bucket"
RATE = 16000


@pytest.fixture(autouse=True)
def store():
  """An empty store."""
  fs = fsspec.filesystem("memory", use_listings_cache=False)
  fs.store.clear()
  fs.pseudo_dirs[:] = [""]
  yield fs
  fs.store.clear()


def send(folder: pathlib.Path, url: str) -> None:
  for path in folder.rglob("*"):
    if path.is_file():
      with storage.writing(f"{url}/{path.relative_to(folder).as_posix()}") as file:
        file.write(path.read_bytes())


def contents(folder) -> dict[str, bytes]:
  if not isinstance(folder, str):
    return preparing.contents(folder)
  return {name: storage.open_binary(f"{folder}/{name}").read() for name, _ in storage.find(folder)}


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
  """20 clips in two classes, one bad file and one that is no audio."""
  folder = tmp_path_factory.mktemp("audio") / "sounds"
  rng = np.random.default_rng(0)
  for i in range(20):
    (folder / f"class {i % 2}").mkdir(parents=True, exist_ok=True)
    samples = rng.uniform(-0.5, 0.5, (2500 + 100 * i, 2))
    soundfile.write(folder / f"class {i % 2}" / f"{i} ü.wav", samples, 22050)
  (folder / "class 0" / "bad.wav").write_text("text")
  (folder / "list.txt").write_text("no audio")
  return folder


def test_prepared_in_a_store_as_here(audio, tmp_path, inline, capsys):
  """From and to a store: every byte as from and to a folder; continued, verified, repaired, merged
  and read there."""
  flags = ["--frontend=atst", "--num_shards=5", "--name=x"]
  send(audio, f"{STORE}/sounds")
  assert prepare.main([f"--input={audio}", f"--output={tmp_path / 'out'}", *flags]) == 0
  there = [f"--input={STORE}/sounds", f"--output={STORE}/out", *flags]
  assert prepare.main([*there, "--dry_run"]) == 0 and storage.names(f"{STORE}/out") == []
  assert prepare.main(there) == 0
  expected = contents(tmp_path / "out")
  assert contents(f"{STORE}/out") == expected and len(expected) == 5 + 5 + 1 + 5

  storage.remove(f"{STORE}/out/train-00002-of-00005.tfrecord")
  with pytest.raises(
    UserError, match="1 of 5 shards are missing, the first is memory://bucket/out/train-00002"
  ):
    Dataset.load(f"{STORE}/out")
  assert prepare.main(["verify", f"{STORE}/out"]) == 2
  assert "train-00002-of-00005.tfrecord: missing" in capsys.readouterr().err
  assert prepare.main(["repair", *there]) == 0 and prepare.main(["verify", f"{STORE}/out"]) == 0
  capsys.readouterr()
  assert prepare.main(there) == 0 and "to write" not in capsys.readouterr().err
  assert contents(f"{STORE}/out") == expected
  assert prepare.main([*there, "--seed=1"]) == 2
  assert "seed 0, now it is 1" in capsys.readouterr().err

  send(tmp_path / "out", f"{STORE}/copy")
  storage.write_text(
    f"{STORE}/copy/dataset.json",
    storage.read_text(f"{STORE}/copy/dataset.json").replace('"name": "x"', '"name": "y"'),
  )
  assert prepare.main(["merge", f"{STORE}/out", f"{STORE}/copy", f"--output={STORE}/both"]) == 0
  assert Dataset.load(f"{STORE}/both").num_clips("train") == 40
  assert prepare.main(["stats", f"{STORE}/both"]) == 0

  def batches(root):
    stream = record_batches(
      Dataset.load(str(root)),
      split="train",
      clip_frames=20,
      streams=5,
      shuffle_window=3,
      batch_size=10,
      seed=0,
      start_step=1,
      with_ids=True,
    )
    return [next(stream) for _ in range(5)]

  for here, remote in zip(batches(tmp_path / "out"), batches(f"{STORE}/out"), strict=True):
    assert all((here[key] == remote[key]).all() for key in here)


def test_the_pool_writes_through_a_store(audio, tmp_path, monkeypatch):
  """Several processes: fsspec's own local file system stands for a store."""
  monkeypatch.setenv("FSSPEC_LOCAL_AUTO_MKDIR", "1")
  monkeypatch.setitem(fsspec.config.conf, "local", {"auto_mkdir": True})
  send(audio, f"local://{tmp_path}/sounds")
  flags = ["--frontend=atst", "--num_shards=5", "--name=x", "--workers=2"]
  assert (
    prepare.main(
      [f"--input=local://{tmp_path}/sounds", f"--output=local://{tmp_path}/there", *flags]
    )
    == 0
  )
  assert prepare.main([f"--input={audio}", f"--output={tmp_path}/here", *flags]) == 0
  assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_s3(audio, tmp_path, monkeypatch):
  """The S3 protocol, spoken with a server on this machine."""
  pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -e .[s3]")
  server = pytest.importorskip(
    "moto.server", reason="moto is not installed: pip install moto[server]"
  )
  monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
  monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
  moto = server.ThreadedMotoServer(port=0)
  moto.start()
  try:
    host, port = moto.get_host_and_port()
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://{host}:{port}")
    fsspec.config.set_conf_env(fsspec.config.conf)
    with pytest.raises(UserError, match="does not exist"):
      list_sources("s3://bucket/sounds")
    fsspec.filesystem("s3", use_listings_cache=False).mkdir("bucket")
    send(audio, "s3://bucket/sounds")
    flags = ["--frontend=atst", "--num_shards=5", "--name=x", "--workers=2"]
    assert prepare.main(["--input=s3://bucket/sounds", "--output=s3://bucket/out", *flags]) == 0
    assert prepare.main([f"--input={audio}", f"--output={tmp_path / 'out'}", *flags]) == 0
    assert contents("s3://bucket/out") == contents(tmp_path / "out")
    assert prepare.main(["verify", "s3://bucket/out"]) == 0
    assert len(load_audio("s3://bucket/sounds/class 0/0 ü.wav", RATE)) == round(2500 / 22050 * RATE)
  finally:
    moto.stop()
    fsspec.config.conf.pop("s3", None)


def test_a_known_layout_and_a_manifest_in_a_store(audio, tmp_path):
  (tmp_path / "meta").mkdir()
  rows = [[f"{i}.wav", i % 5 + 1, f"class {i % 2}", "False"] for i in range(7)]
  with open(tmp_path / "meta/esc50.csv", "w", newline="") as file:
    csv.writer(file).writerows([["filename", "fold", "category", "esc10"], *rows])
  send(tmp_path, f"{STORE}/esc")
  listing = list_sources(f"{STORE}/esc", layout="esc50")
  assert [s.path for s in listing.sources] == [f"{STORE}/esc/audio/{i}.wav" for i in range(7)]
  assert listing.sources[3].id == "audio/3.wav"
  assert listing.sources[3].fold == 4
  assert listing.root == f"{STORE}/esc"
  storage.write_text(f"{STORE}/list.csv", "path,label\nsub/a.wav,x\n")
  (source,) = list_sources(f"{STORE}/list.csv").sources
  assert (source.path, source.id, source.labels) == (f"{STORE}/sub/a.wav", "sub/a.wav", ("x",))
  for path, message in (
    ("../a.wav", r"line 2: .* holds '\.\.'"),
    ("s3://other/a.wav", "line 2: .*is absolute and outside"),
  ):
    storage.write_text(f"{STORE}/list.csv", f"path,label\n{path},x\n")
    with pytest.raises(UserError, match=message):
      list_sources(f"{STORE}/list.csv")


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("whole", [True, False])
def test_formats_decode_as_from_a_file(tmp_path, monkeypatch, form, whole):
  """Fetched whole or by blocks."""
  if not whole:
    monkeypatch.setattr(storage, "WHOLE_BYTES", 0)
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1 << 14)
  path = tmp_path / f"a.{form}"
  soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (30000, 2)), 44100)
  send(tmp_path, STORE)
  np.testing.assert_array_equal(load_audio(f"{STORE}/a.{form}", RATE), load_audio(str(path), RATE))
  assert duration(f"{STORE}/a.{form}") == duration(str(path))


def test_missing_empty_and_foreign_files_are_rejects(store):
  storage.write_text(f"{STORE}/empty.wav", "")
  storage.write_text(f"{STORE}/text.wav", "text")
  for name, reason in (
    ("absent.wav", "missing"),
    ("empty.wav", "empty"),
    ("text.wav", "undecodable"),
  ):
    with pytest.raises(Reject) as error:
      duration(f"{STORE}/{name}")
    assert error.value.reason == reason


class Failing(io.BytesIO):
  """A file whose connection breaks after some bytes."""

  def read(self, size=-1):
    if self.tell() > 50_000:
      raise ConnectionResetError("reset by peer")
    return super().read(size)


def test_a_broken_connection_is_not_the_end_of_a_file(audio, inline, tmp_path, monkeypatch, capsys):
  """Neither a clip cut short nor a reject: the job stops, and continues when the store answers."""
  path = tmp_path / "a.wav"
  soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 60000), RATE)
  send(tmp_path, STORE)
  with monkeypatch.context() as patch:
    patch.setattr(storage, "open_binary", lambda name: Failing(path.read_bytes()))
    with pytest.raises(StoreError, match=r"a\.wav: reset by peer; run the same command again"):
      load_audio(f"{STORE}/a.wav", RATE)
  flags = [f"--input={STORE}", f"--output={tmp_path / 'out'}", "--frontend=atst"]
  with monkeypatch.context() as patch:
    opened = storage.open_binary
    patch.setattr(
      storage,
      "open_binary",
      lambda name: Failing(path.read_bytes()) if name.endswith("a.wav") else opened(name),
    )
    assert prepare.main(flags) == 74
  assert "reset by peer; run the same command again" in capsys.readouterr().err
  assert prepare.main(flags) == 0


@pytest.mark.parametrize(
  ("raised", "told"),
  [
    (PermissionError("expired token"), "expired token; run the same command again"),
    (RuntimeError("quota\nexceeded"), "bucket/a.wav: RuntimeError: quota exceeded; run the same"),
  ],
)
def test_a_refusal_is_one_line_and_not_a_reject(store, monkeypatch, raised, told):
  """A login that expires in the middle of a job must not cost clips."""
  storage.write_text(f"{STORE}/a.wav", "text")
  monkeypatch.setattr(type(store), "info", mock.Mock(side_effect=raised))
  for read in (duration, storage.size):
    with pytest.raises(StoreError, match=told):
      read(f"{STORE}/a.wav")


def test_names_with_colons_and_large_files(store, monkeypatch):
  """fsspec reads "::" as a chain of addresses; a file above WHOLE_BYTES is read by blocks."""
  for name in ("a.bin", "a.bin::b.bin"):
    with storage.writing(f"{STORE}/{name}") as file:
      file.write(name.encode() * 1000)
  monkeypatch.setattr(storage, "WHOLE_BYTES", 10)
  with storage.open_binary(f"{STORE}/a.bin::b.bin") as file:
    assert (
      file.read(12) == b"a.bin::b.bin" and file.seek(12 * 999) and file.read() == b"a.bin::b.bin"
    )

  with storage.open_binary(f"{STORE}/a.bin") as file:
    reset = mock.Mock(side_effect=ConnectionResetError("reset by peer"))
    monkeypatch.setattr(file.raw._file, "read", reset, raising=False)
    with pytest.raises(StoreError, match="reset by peer"):
      file.read()


def test_nothing_is_sent_of_a_file_that_is_not_finished(store):
  with pytest.raises(KeyError), storage.writing(f"{STORE}/a") as file:
    file.write(b"half")
    raise KeyError
  assert not storage.exists(f"{STORE}/a") and storage.names(STORE) == []


def test_a_store_that_nobody_knows():
  with pytest.raises(UserError, match="cannot use nosuch://"):
    list_sources("nosuch://a/b")


def test_here(tmp_path):
  """The same functions on local paths."""
  assert storage.names(str(tmp_path / "absent")) == [] and storage.size(str(tmp_path)) == -1
  storage.write_text(str(tmp_path / "a"), "ü")
  assert storage.read_text(str(tmp_path / "a")) == "ü" and storage.size(str(tmp_path / "a")) == 2
  with pytest.raises(KeyError), storage.writing(str(tmp_path / "a")) as file:
    file.write(b"half")
    raise KeyError
  assert storage.names(str(tmp_path)) == ["a"] and storage.read_text(str(tmp_path / "a")) == "ü"
  storage.remove(str(tmp_path / "a"))
  storage.remove(str(tmp_path / "a"))
  assert not storage.exists(str(tmp_path / "a")) and storage.is_folder(str(tmp_path))
