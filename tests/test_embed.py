"""`embed`: folders of files to one file of vectors, which survives a kill."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from atst_jax import search
from atst_jax.artifacts import export
from atst_jax.artifacts.collection import pieces, vectors
from atst_jax.artifacts.embedding import get_scene_embeddings
from atst_jax.embed import load_model, main
from tests.evaluation import noise
from tests.preparing import contents
from tests.tiny import ROOT


def _recordings(folder):
  """Six usable files of several kinds, one of them long, and one broken. Returns the folder."""
  folder.mkdir()
  soundfile.write(folder / "a b.wav", np.stack([noise(0.5)] * 2, 1), 44100)
  soundfile.write(folder / "ü.flac", noise(0.2), 16000)
  soundfile.write(folder / "long.wav", noise(2.5, 1), 8000)
  for i in range(3):
    soundfile.write(folder / f"{i}.wav", noise(0.3, i), 16000)
  (folder / "broken.wav").write_text("no audio")
  soundfile.write(folder / "short.wav", np.zeros(100), 16000)
  return folder


def test_embed_command(encoder, tmp_path, capsys):
  """A folder, two of whose files are of no use, to an .npz; without TensorFlow or librosa."""
  folder = _recordings(tmp_path / "in")
  flags = [f"--encoder={encoder}", f"--input={folder}", f"--output={tmp_path}/v.npz", "--blocks=2"]
  script = (
    "import sys; from atst_jax.embed import main; code = main(sys.argv[1:]); "
    "assert not {'tensorflow', 'librosa'} & set(sys.modules); sys.exit(code)"
  )
  done = subprocess.run(
    [sys.executable, "-c", script, *flags], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert (
    "left out broken.wav" in done.stderr
    and "6 vectors of 32 numbers, 2 files left out" in done.stdout
  )
  with np.load(tmp_path / "v.npz") as out:
    assert list(out["id"]) == ["0.wav", "1.wav", "2.wav", "a b.wav", "long.wav", "ü.flac"]
    assert out["vector"].shape == (6, 32) and list(out["rejected"][:, 0]) == [
      "broken.wav",
      "short.wav",
    ]
    expected = get_scene_embeddings([noise(0.3, 1)], load_model(encoder), 16000, num_blocks=2)[0]
    np.testing.assert_allclose(out["vector"][1], expected, atol=1e-3)  # files of 16 bits
    one = [flags[0], f"--input={folder}/1.wav", f"--output={tmp_path}/one.npz", flags[3]]
    assert main(one) == 0 and "1 vectors" in capsys.readouterr().out
    with np.load(tmp_path / "one.npz") as alone:
      assert list(alone["id"]) == ["1.wav"]
      np.testing.assert_allclose(alone["vector"], out["vector"][1:2], atol=1e-5)
  assert not (tmp_path / "v.npz.part").exists()
  assert main(flags) == 0 and "nothing to do" in capsys.readouterr().out
  for change, message in (
    (["--blocks=1"], "of another job"),
    ([f"--input={tmp_path}/none"], "does not exist"),
    (["--blocks=3"], "2 blocks"),
    ([f"--output={tmp_path}/v.csv"], "must be a .npz"),
    (["--workers=0"], "at least one"),
  ):
    assert main([*flags, *change]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_interrupted_job_goes_on(encoder, tmp_path, monkeypatch, capsys):
  """Stopped after the second piece: run again, it computes the rest only, and the file is the same
  to the byte."""
  monkeypatch.setattr(pieces, "PIECE_FILES", 2)
  flags = [f"--encoder={encoder}", f"--input={_recordings(tmp_path / 'in')}", "--workers=2"]
  assert main([*flags, f"--output={tmp_path}/whole.npz"]) == 0
  save, saved = vectors.save_piece, []

  def stopped(path, piece):
    save(path, piece)
    saved.append(path)
    if len(saved) == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(vectors, "save_piece", stopped)
  assert main([*flags, f"--output={tmp_path}/v.npz"]) == 75
  assert (
    "run the same command again" in capsys.readouterr().err and not (tmp_path / "v.npz").exists()
  )
  (tmp_path / "in" / "2.wav").touch()  # changed since: its piece, the second, is computed again
  with open(saved[0], "r+b") as file:  # and one that a disk damaged
    file.truncate(100)
  assert main([*flags, f"--output={tmp_path}/v.npz"]) == 0
  assert "files were embedded before" not in capsys.readouterr().err and len(saved) == 2 + 4
  assert main([*flags, f"--output={tmp_path}/again.npz"]) == 0
  assert (tmp_path / "v.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
  with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "v.npz") as out:
    np.testing.assert_array_equal(out["vector"], whole["vector"])
  os.unlink(tmp_path / "again.npz")
  saved[:] = ["", ""]
  monkeypatch.setattr(vectors, "write_npz", lambda *_: os.kill(os.getpid(), signal.SIGINT))
  assert main([*flags, f"--output={tmp_path}/again.npz"]) == 75
  monkeypatch.undo()
  monkeypatch.setattr(pieces, "PIECE_FILES", 2)
  monkeypatch.setattr(vectors, "save_piece", lambda *_: pytest.fail("computed again"))
  assert main([*flags, f"--output={tmp_path}/again.npz"]) == 0
  assert "8 of 8 files were embedded before" in capsys.readouterr().err
  assert (tmp_path / "v.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()


def test_dry_run_writes_nothing(encoder, tmp_path, monkeypatch, capsys):
  """It tells the files, the numbers of a vector and the pieces that are there, and checks what a
  run checks."""
  monkeypatch.setattr(pieces, "PIECE_FILES", 3)
  flags = [
    f"--encoder={encoder}",
    f"--input={_recordings(tmp_path / 'in')}",
    f"--output={tmp_path}/v.npz",
  ]
  dry = [*flags, "--blocks=2", "--dry_run"]
  told = f"8 files to vectors of 32 numbers each in {tmp_path}/v.npz; {{}}; nothing written\n"
  assert main(dry) == 0 and capsys.readouterr().out == told.format(
    "0 of 3 pieces (0 files) are done"
  )
  assert os.listdir(tmp_path) == ["in"]
  monkeypatch.setattr(vectors, "write_npz", lambda *_: os.kill(os.getpid(), signal.SIGINT))
  assert main([*flags, "--blocks=2"]) == 75
  (tmp_path / "in" / "0.wav").touch()  # changed since: of three pieces the first is computed again
  before = contents(tmp_path)
  assert main(dry) == 0 and capsys.readouterr().out == told.format(
    "2 of 3 pieces (5 files) are done"
  )
  assert contents(tmp_path) == before
  assert main([*dry, "--blocks=3"]) == 2 and "2 blocks" in capsys.readouterr().err


def test_pieces_are_cut_by_number_and_bytes(monkeypatch):
  monkeypatch.setattr(pieces, "PIECE_FILES", 3)
  monkeypatch.setattr(pieces, "PIECE_BYTES", 10)
  sizes = [1, 1, 1, 1, 20, 5, 5, 1, -1]
  parts = [sizes[part] for part in pieces.groups(sizes)]
  assert parts == [[1, 1, 1], [1], [20], [5, 5], [1, -1]]


def test_parquet(encoder, tmp_path, monkeypatch):
  parquet = pytest.importorskip(
    "pyarrow.parquet", reason="pyarrow is not installed: pip install -e .[parquet]"
  )
  monkeypatch.setattr(pieces, "PIECE_FILES", 3)
  flags = [f"--encoder={encoder}", f"--input={_recordings(tmp_path / 'in')}"]
  for name in ("v.npz", "v.parquet", "v.parquet"):
    assert main([*flags, f"--output={tmp_path}/{name}"]) == 0
  table = parquet.read_table(tmp_path / "v.parquet")
  with np.load(tmp_path / "v.npz") as out:
    assert table["id"].to_pylist() == list(out["id"])
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), out["vector"])
  about = json.loads(table.schema.metadata[b"atst_jax"])
  assert about["rejected"][0][0] == "broken.wav" and about["dimensions"] == 16


def test_channels_become_one_as_in_the_training_set(encoder, tmp_path, capsys):
  """Those of the export, or of the flag; of files whose channels cancel each other the mean is
  told of, by name. A search hears its query as the vectors' files were heard."""
  export.export_again(encoder, str(tmp_path / "loudest"), channels="loudest")
  (tmp_path / "in").mkdir()
  sound = noise(0.5)
  for name, sides in (("a", (0.5 * sound, -sound)), ("b", (sound, sound))):
    soundfile.write(tmp_path / "in" / f"{name}.wav", np.stack(sides, 1), 16000, subtype="FLOAT")
  two = np.stack([0.1 * sound, -0.1 * sound], 1)
  soundfile.write(tmp_path / "in" / "c.wav", two, 16000, subtype="FLOAT")

  def vectors_of(encoder, *flags):
    output = tmp_path / f"{os.path.basename(encoder)}{len(flags)}{len(os.listdir(tmp_path))}.npz"
    asked = [f"--encoder={encoder}", f"--input={tmp_path}/in", f"--output={output}", *flags]
    assert main(asked) == 0
    with np.load(output) as file:
      return output, file["vector"], capsys.readouterr().err

  model = load_model(encoder)
  vector = lambda sound: get_scene_embeddings([sound], model, 16000)[0]
  path, loudest, told = vectors_of(str(tmp_path / "loudest"))
  assert "cancel" not in told
  np.testing.assert_allclose(
    loudest, [vector(-sound), vector(sound), vector(0.1 * sound)], atol=1e-4
  )
  query = [f"--vectors={path}", f"--query={tmp_path}/in/c.wav", f"--encoder={tmp_path}/loudest"]
  assert search.main([*query, "--k=1"]) == 0 and "1.0000  c.wav" in capsys.readouterr().out
  np.testing.assert_array_equal(vectors_of(encoder, "--channels=loudest")[1], loudest)
  second = [vector(-sound), vector(sound), vector(-0.1 * sound)]
  np.testing.assert_allclose(vectors_of(encoder, "--channels=2")[1], second, atol=1e-4)
  _, mean, told = vectors_of(encoder)
  np.testing.assert_allclose(mean[1], vector(sound), atol=1e-4)
  assert "1 files whose channels cancel each other" in told and "in/c.wav: 120 dB" in told
  assert "a.wav" not in told and "--channels=loudest takes the loudest" in told
  flags = [f"--encoder={encoder}", f"--input={tmp_path}/in", f"--output={tmp_path}/no.npz"]
  assert main([*flags, "--channels=left"]) == 2
  assert "choose mean, loudest, or a channel's number" in capsys.readouterr().err
  assert main([*flags, "--channels=3"]) == 2
  assert "no_channel (it has 2, --channels=3)" in capsys.readouterr().err


def test_a_recording_of_another_scale_is_told(encoder, tmp_path, capsys):
  soundfile.write(tmp_path / "loud.wav", 32768 * noise(0.3), 16000, subtype="FLOAT")
  soundfile.write(tmp_path / "over.wav", 30 * noise(0.3), 16000, subtype="FLOAT")
  flags = [f"--encoder={encoder}", f"--input={tmp_path}", f"--output={tmp_path}/v.npz"]
  assert main(flags) == 0
  told = capsys.readouterr().err
  assert "1 files whose samples go far beyond full scale" in told and "loud.wav: up to " in told
  assert "must be divided by 32768" in told and "over.wav" not in told


def test_a_store_that_lacks_its_package_is_a_mistake(encoder, tmp_path, monkeypatch, capsys):
  """Not 74, after which launchers try again."""
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  assert main([f"--encoder={encoder}", "--input=gs://x/y", f"--output={tmp_path}/v.npz"]) == 2
  assert "cannot use gs://" in (told := capsys.readouterr().err) and "install -e .[gcs]" in told
