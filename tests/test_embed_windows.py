"""`embed` for windows, frames and several processes: rows with their times."""

import json

import jax
import numpy as np
import pytest
import soundfile

from atst_jax import embed
from atst_jax.artifacts.collection import pieces, sounds, vectors
from atst_jax.artifacts.collection.listening import Listener
from atst_jax.artifacts.embedding import get_scene_embeddings, get_timestamp_embeddings
from atst_jax.embed import load_model, main
from atst_jax.search import main as search
from tests.evaluation import write_encoder

RATE = 16000


@pytest.fixture(scope="module")
def model(encoder):
  return load_model(encoder, devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def compiled_once(model, monkeypatch):
  """The command takes the model whose programs are there."""
  monkeypatch.setattr(embed, "load_model", lambda folder, dtype: model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two recordings, one of another rate, and a broken one."""
  folder = tmp_path_factory.mktemp("recordings")
  for name, seconds, rate in (("a.wav", 1.3, RATE), ("b.flac", 0.4, 8000)):
    sound = 0.1 * np.random.default_rng(len(name)).standard_normal(round(seconds * rate))
    soundfile.write(folder / name, sound, rate, subtype="PCM_16")
  (folder / "broken.wav").write_text("no audio")
  return folder


def _embed(encoder, folder, output, *flags):
  flags = [f"--encoder={encoder}", f"--input={folder}", f"--output={output}", *flags]
  return main([*flags, "--workers=2"])


def test_a_window_is_embedded_as_if_it_were_a_file(encoder, model, folder, tmp_path, capsys):
  assert _embed(encoder, folder, tmp_path / "v.npz", "--window=0.5", "--hop=0.25") == 0
  told = capsys.readouterr()
  assert "6 vectors of windows of 16 numbers, 1 files left out" in told.out
  assert "left out broken.wav" in told.err
  with np.load(tmp_path / "v.npz") as file:
    assert list(file["id"]) == 5 * ["a.wav"] + ["b.flac"]
    np.testing.assert_allclose(file["start"], [0, 0.25, 0.5, 0.75, 1, 0])
    np.testing.assert_allclose(file["end"], [0.5, 0.75, 1, 1.25, 1.3, 0.4])
    sound = soundfile.read(folder / "a.wav", dtype="float32")[0][4000:12000]
    expected = get_scene_embeddings([sound], model, RATE)[0]
    np.testing.assert_allclose(file["vector"][1], expected, atol=1e-5)
    assert (file["window"], file["hop"], str(file["rows"])) == (0.5, 0.25, "windows")
  table = vectors.read(str(tmp_path / "v.npz"))
  assert table.spans.shape == (6, 2) and table.spans[1].tolist() == [0.25, 0.75]
  # what was found is told with its time
  assert search([f"--vectors={tmp_path / 'v.npz'}", "--query=b.flac", "--k=1"]) == 0
  assert "a.wav [" in capsys.readouterr().out


def test_frames_are_those_of_the_python_function(encoder, model, folder, tmp_path):
  """Long recordings in parts, which are written before the next ones are computed."""
  assert _embed(encoder, folder, tmp_path / "v.npz", "--frames") == 0
  sound = soundfile.read(folder / "a.wav", dtype="float32")[0]
  (expected,), (times,) = get_timestamp_embeddings([sound], model, RATE)
  with np.load(tmp_path / "v.npz") as file:
    own = file["id"] == "a.wav"
    np.testing.assert_allclose(file["vector"][own], expected, atol=1e-5)
    centres = 500 * (file["start"] + file["end"])[own]
    np.testing.assert_allclose(centres - times, 5, atol=1e-6)  # a frame's centre is its beginning
    assert sum(~own) == 10 and str(file["rows"]) == "frames"


def test_parquet_has_times(encoder, folder, tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: .[parquet]")
  for name in ("v.npz", "v.parquet"):
    assert _embed(encoder, folder, tmp_path / name, "--window=0.5") == 0
  table = parquet.read_table(tmp_path / "v.parquet")
  assert table.column_names == ["id", "start", "end", "vector"]
  one, other = (vectors.read(str(tmp_path / name)) for name in ("v.npz", "v.parquet"))
  assert one.ids == other.ids and json.loads(table.schema.metadata[b"atst_jax"])["window"] == 0.5
  np.testing.assert_array_equal(one.spans, other.spans)
  np.testing.assert_array_equal(one.vectors, other.vectors)


def test_a_type_may_be_chosen(encoder, folder, tmp_path, capsys, monkeypatch):
  """Near the vectors in float32, not the same; and the file says which they are."""
  assert _embed(encoder, folder, tmp_path / "v.npz", "--window=0.5") == 0
  monkeypatch.undo()
  assert _embed(encoder, folder, tmp_path / "rough.npz", "--window=0.5", "--dtype=bfloat16") == 0
  exact, rough = (vectors.read(str(tmp_path / name)) for name in ("v.npz", "rough.npz"))
  assert (exact.about["dtype"], rough.about["dtype"]) == ("float32", "bfloat16")
  assert 1e-4 < np.abs(exact.vectors - rough.vectors).max() < 0.1
  assert _embed(encoder, folder, tmp_path / "rough.npz", "--window=0.5") == 2
  assert "of another job" in capsys.readouterr().err
  # a sound is compared in the type of the collection
  query = [f"--vectors={tmp_path / 'rough.npz'}", f"--query={folder / 'b.flac'}", "--k=1"]
  assert search([*query, f"--encoder={encoder}"]) == 0
  cosine, name = capsys.readouterr().out.strip().split("  ")
  assert name == "b.flac [0-0.4 s]" and float(cosine) > 0.999


def test_a_query_needs_the_encoder_of_its_vectors(encoder, folder, tmp_path, capsys):
  """Of other weights, or of the same with another normalisation: both have another hash."""
  assert _embed(encoder, folder, tmp_path / "v.npz") == 0
  other = write_encoder(tmp_path / "other")
  config = json.loads((tmp_path / "other" / "config.json").read_text())
  config["normalization"]["low"] = -90.0
  (tmp_path / "other" / "config.json").write_text(json.dumps(config))
  cnn = write_encoder(tmp_path / "cnn", kind="cnn")
  query = [f"--vectors={tmp_path / 'v.npz'}", f"--query={folder / 'b.flac'}", "--k=1"]
  for name, key in ((other, "settings"), (cnn, "params_hash")):
    assert search([*query, f"--encoder={name}"]) == 2
    assert f"--encoder={name} did not make {tmp_path / 'v.npz'} ({key} " in capsys.readouterr().err


def test_a_recording_that_is_damaged_later_keeps_its_windows(model, tmp_path, monkeypatch):
  """What was heard before the damage is kept, and from where on it is left out is told."""
  soundfile.write(tmp_path / "a.wav", np.full(3 * RATE, 0.1), RATE, subtype="FLOAT")
  data = bytearray((tmp_path / "a.wav").read_bytes())
  data[-4 * RATE : -4 * RATE + 4] = np.float32(np.nan).tobytes()  # at 2 s
  (tmp_path / "a.wav").write_bytes(data)
  from atst_jax.audio import decode

  monkeypatch.setattr(decode, "BLOCK_VALUES", 1000)
  path, rows = str(tmp_path / "a.wav"), sounds.Rows("", 0.5, 0.5)
  found = list(sounds.file_windows(model, Listener(RATE, "mean"), path, rows))
  assert [s.end for s in found[:-1]] == [0.5, 1, 1.5] and "from 1.5 s on: " in found[-1].mel


def test_processes_share_the_files(encoder, folder, tmp_path, monkeypatch, capsys):
  """Each computes its share, the last one joins; the same bytes as of one process. One that comes
  again finds nothing to do."""
  monkeypatch.setattr(pieces, "PIECE_FILES", 1)
  alone, shared = tmp_path / "alone.npz", tmp_path / "shared.npz"
  flags = ("--window=0.5", "--hop=0.3")
  assert _embed(encoder, folder, alone, *flags) == 0
  run = lambda number: _embed(
    encoder, folder, shared, *flags, "--num_processes=2", f"--process_id={number}"
  )
  assert run(1) == 0 and not shared.exists()
  assert "process 1 of 2 has done its share; 2 of 3 pieces are left" in capsys.readouterr().out
  assert run(0) == 0 and shared.read_bytes() == alone.read_bytes()
  assert "5 vectors" in capsys.readouterr().out
  assert run(1) == 0 and "nothing to do" in capsys.readouterr().out
  assert not (tmp_path / "shared.npz.part").exists()


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--window=0.01"], "--window=0.01: must be 0.0320625 to 600 seconds"),
    (["--window=1000"], "--window=1000: must be"),
    (["--window=1", "--hop=0"], "--hop=0: must be 0.01"),
    (["--hop=1"], "--hop=1 needs --window"),
    (["--frames", "--window=1"], "--window and --frames"),
    (["--frames", "--blocks=2"], "--blocks and --frames"),
    (["--window=2", "--length=1"], "embeds the central 1 s of longer sounds"),
    (["--process_id=1"], "--process_id=1: must be from 0"),
  ],
)
def test_what_does_not_go_together(encoder, folder, tmp_path, flags, message, capsys):
  assert _embed(encoder, folder, tmp_path / "v.npz", *flags) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
