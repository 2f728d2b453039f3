"""Search: the nearest of a collection, exact and through an index, by id or by sound."""

import os
import re
import time

import numpy as np
import pytest
import soundfile

from atst_jax import search
from atst_jax.artifacts.collection import neighbours, vectors
from atst_jax.audio import decode, sound_file
from atst_jax.figures import found_page
from atst_jax.util.errors import UserError
from data_pipeline.synth import write_wav

N, D = 300, 12


def collection(folder, name="v.npz", job="1"):
  """300 vectors, of which 7 repeats 3; one direction holds nearly all the variance."""
  rng = np.random.default_rng(0)
  values = rng.normal(size=(N, D)).astype(np.float32)
  values[7] = values[3]
  values[:, 0] = 50 * values[:, 0] + 200
  piece = vectors.Piece([vectors.Block([f"{i}.wav" for i in range(N)], None, values)], [])
  vectors.save_piece(str(folder / "piece.npz"), piece)
  about = {"job": job, "params_hash": "h", "dimensions": D, "blocks": 1, "tail": "mean"}
  about["rows"] = "files"
  write = vectors.write_npz if name.endswith(".npz") else vectors.write_parquet
  write(str(folder / name), [str(folder / "piece.npz")], about)
  return str(folder / name), values


def found(capsys) -> list[str]:
  return [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", ["v.npz", "v.parquet"])
def test_what_embed_wrote_is_read(tmp_path, name):
  if name.endswith("parquet"):
    pytest.importorskip("pyarrow")
  path, values = collection(tmp_path, name)
  table = vectors.read(path)
  np.testing.assert_array_equal(table.vectors, values)
  assert table.ids[7] == "7.wav" and table.about["params_hash"] == "h"
  assert table.about["dimensions"] == D


def test_the_nearest_by_cosine_without_the_query_itself(tmp_path, capsys):
  path, values = collection(tmp_path)
  assert search.main([f"--vectors={path}", "--query=3.wav", "--k=4"]) == 0
  unit = values / np.linalg.norm(values, axis=1, keepdims=True)
  order = [i for i in np.argsort(-unit @ unit[3], kind="stable") if i != 3][:4]
  assert found(capsys) == [f"{i}.wav" for i in order] and order[0] == 7


def test_whitening_gives_every_direction_its_weight(tmp_path):
  """The whitened covariance is the identity, and the direction of most variance no longer
  decides."""
  _, values = collection(tmp_path)
  whiten = neighbours.whitening(values)
  white = (values - whiten.mean) @ whiten.directions
  np.testing.assert_allclose(white.T @ white / N, np.eye(D), atol=1e-3)
  raw = neighbours.Exact(values, None).nearest(neighbours.unit(values, None), 2)[1][:, 1]
  near = neighbours.Exact(values, whiten).nearest(neighbours.unit(values, whiten), 2)[1][:, 1]
  assert np.median(raw) > 0.99 and np.median(near) < 0.9
  assert neighbours.whitening(values[:20]).directions.shape == (D, 5)
  with pytest.raises(UserError, match="cannot be whitened; needed are two"):
    neighbours.whitening(np.ones((9, 3), np.float32))
  assert neighbours.whitening(values[:3]).directions.shape == (D, 1)  # of three known clips, too


def test_duplicates(tmp_path, capsys):
  path, _ = collection(tmp_path)
  assert search.main([f"--vectors={path}", "--whiten", "--duplicates=0.999"]) == 0
  out, err = capsys.readouterr()
  assert out == "1.0000  3.wav  7.wav\n" and "1 pairs of 300 vectors" in err


def test_an_index_beside_the_file_finds_the_same(tmp_path, monkeypatch, capsys):
  pytest.importorskip("usearch")
  monkeypatch.setattr(neighbours, "EXACT_BELOW", 100)
  path, values = collection(tmp_path)
  table = vectors.read(path)
  whiten = neighbours.whitening(table.vectors)
  queries = neighbours.unit(values, whiten)
  exact = neighbours.searcher(path, table, whitened=True, exact=True).nearest(queries, 10)
  for _ in ("built", "loaded"):
    index = neighbours.searcher(path, table, whitened=True, exact=False)
    np.testing.assert_array_equal(index.whiten.directions, whiten.directions)
    # computed once: a search of a million vectors has no time for it
    monkeypatch.setattr(neighbours, "whitening", lambda _: pytest.fail("computed again"))
    rows, cosines = index.nearest(queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact[0], strict=True)])
    assert recall > 0.9 and next(iter(index.duplicates(0.999)))[:2] == (3, 7)
    same = rows[:, 1] == exact[0][:, 1]  # an index may miss a neighbour, otherwise at each build
    assert same.mean() > 0.9
    np.testing.assert_allclose(cosines[same, 1], exact[1][same, 1], atol=2e-2)
  assert os.path.exists(f"{path}.whitened.usearch")
  monkeypatch.setattr(neighbours, "whitening", lambda _: whiten)
  capsys.readouterr()
  collection(tmp_path, job="2")  # made anew: its index is old
  assert search.main([f"--vectors={path}", "--query=3.wav", "--whiten"]) == 2
  assert "is not the index of" in capsys.readouterr().err
  assert search.main([f"--vectors={path}", "--query=3.wav", "--whiten", "--exact"]) == 0


def test_a_page_shows_and_plays_what_was_found(tmp_path, capsys):
  path, _ = collection(tmp_path)
  (tmp_path / "in").mkdir()
  wave = (8000 * np.sin(np.arange(8000) / 9)).astype("<i2")
  for i in range(N):
    write_wav(str(tmp_path / "in" / f"{i}.wav"), wave)
  page = tmp_path / "found.html"
  flags = [f"--vectors={path}", "--query=3.wav", "--k=3", f"--input={tmp_path}/in"]
  assert search.main([*flags, f"--page={page}"]) == 0
  text = page.read_text(encoding="utf-8")
  assert text.count("<audio") == 3 and text.count("data:image/png") == 3 and "7.wav" in text
  (tmp_path / "other").mkdir()
  write_wav(str(tmp_path / "other" / "x.wav"), wave)
  flags[-1] = f"--input={tmp_path}/other"
  assert search.main([*flags, f"--page={page}"]) == 2
  assert "give what was embedded" in capsys.readouterr().err


def spans_of(folder, kind, spans):
  """Vectors of windows or frames of `long.wav`, each with another direction."""
  block = vectors.Block(["long.wav"] * len(spans), np.array(spans), np.eye(len(spans))[::-1] + 1)
  vectors.save_piece(str(folder / "piece.npz"), vectors.Piece([block], []))
  about = {"job": "j", "params_hash": "h", "dimensions": len(spans), "rows": kind}
  vectors.write_npz(str(folder / "v.npz"), [str(folder / "piece.npz")], about)
  return str(folder / "v.npz")


@pytest.mark.parametrize(
  "kind, spans, shown",
  [
    ("windows", [[10, 12.5], [57.25, 59.75], [30, 32.5]], [[57.25, 59.75], [30, 32.5]]),
    ("frames", [[10, 10.04], [0, 0.04], [30, 30.04]], [[0, 0.5], [29.77, 30.27]]),
    ("windows", [[0, 40], [10, 50], [20, 60]], [[10, 40], [20, 50]]),  # of long ones the beginning
  ],
)
def test_a_page_shows_the_windows_that_were_found(tmp_path, monkeypatch, kind, spans, shown):
  """Them alone, of one recording as --input; what lies before and behind is not decoded."""
  audio = np.random.default_rng(0).normal(0, 0.1, 60 * 16000)
  soundfile.write(tmp_path / "long.wav", audio, 16000, subtype="FLOAT")
  heard, read = [], []
  monkeypatch.setattr(decode, "BLOCK_VALUES", 4000)
  real = sound_file.Sound.read
  spy = lambda file, size: read.append(size) or real(file, size)
  monkeypatch.setattr(sound_file.Sound, "read", spy)
  monkeypatch.setattr(
    found_page, "player", lambda waveform, rate: heard.append(waveform) or "data:"
  )
  path = spans_of(tmp_path, kind, spans)
  flags = [f"--vectors={path}", f"--query=long.wav [{spans[0][0]}-{spans[0][1]:g} s]", "--k=2"]
  flags += [f"--input={tmp_path / 'long.wav'}", f"--page={tmp_path / 'found.html'}"]
  assert search.main(flags) == 0
  for waveform, (start, end) in zip(heard, shown, strict=True):
    expected = audio[round(start * 16000) : round(end * 16000)].astype(np.float32)
    np.testing.assert_array_equal(waveform, expected)
  # two seconds before each of them, and the rest of a block
  assert sum(read) <= sum(end - start + 2.5 for start, end in shown) * 16000
  text = (tmp_path / "found.html").read_text()
  assert text.count("data:image/png") == 2 and f"long.wav [{spans[1][0]:g}-" in text


@pytest.mark.parametrize(
  "flags, message",
  [
    ([], "one of --query and --duplicates"),
    (["--query=3.wave"], "neither a file nor an id .*did you mean '3.wav'"),
    (["--query=3.wav", "--k=0"], "at least 1"),
    (["--query=3.wav", "--page=x.html"], "--page needs --input"),
    (["--duplicates=1.5"], "at most 1"),
    ([f"--query={__file__}"], "needs --encoder"),
  ],
)
def test_bad_input(tmp_path, capsys, flags, message):
  path, _ = collection(tmp_path)
  assert search.main([f"--vectors={path}", *flags]) == 2
  assert re.search(message, capsys.readouterr().err)


def test_a_sound_is_no_query_of_vectors_over_time(tmp_path, capsys):
  path = str(tmp_path / "v.npz")
  spans = np.stack([np.arange(9), np.arange(1, 10)], 1) * 0.04 + 10_000
  block = vectors.Block(["long.wav"] * 9, spans, np.eye(9, dtype=np.float32))
  vectors.save_piece(str(tmp_path / "piece.npz"), vectors.Piece([block], []))
  about = {"job": "j", "params_hash": "h", "dimensions": 9, "rows": "frames"}
  vectors.write_npz(path, [str(tmp_path / "piece.npz")], about)
  flags = [f"--vectors={path}", "--encoder=any"]
  assert search.main([*flags, f"--query={__file__}"]) == 2
  assert "vectors over time, of which a file has many" in capsys.readouterr().err
  # a printed name finds its own row, hours into a recording, too
  table = vectors.read(path)
  assert [table.find(table.name(row)) for row in range(9)] == [*range(9)]


def test_files_that_are_not_of_embed(tmp_path):
  (tmp_path / "x.npz").write_bytes(b"no zip")
  for name, message in (("x.npz", "not a file of vectors"), ("y.npz", "no such")):
    with pytest.raises(UserError, match=message):
      vectors.read(str(tmp_path / name))


def many(path, count, width, clusters):
  """Vectors with a spectrum as a trained encoder's have: the variance falls as 1 / rank, half of it
  lies between clusters."""
  rng = np.random.default_rng(0)
  scale = np.sqrt(1 / np.arange(1, width + 1)).astype(np.float32)
  centres = rng.standard_normal((clusters, width), np.float32)
  found = np.lib.format.open_memmap(str(path), "w+", np.float32, (count, width))
  for start in range(0, count, 20_000):
    rows = min(20_000, count - start)
    noise = rng.standard_normal((rows, width), np.float32)
    found[start : start + rows] = (centres[rng.integers(0, clusters, rows)] + noise) * scale + 0.1
  return found


def nearest_of_all(values, queries, k):
  """(Q, k) rows and cosines, exact, in memory for a block of rows."""
  rows, best = np.zeros((len(queries), k), int), np.full((len(queries), k), -2, np.float32)
  for start in range(0, len(values), 20_000):
    found = neighbours.Exact(values[start : start + 20_000], None).nearest(queries, k)
    rows, best = np.hstack([rows, found[0] + start]), np.hstack([best, found[1]])
    order = np.argsort(-best, axis=1)[:, :k]
    rows, best = np.take_along_axis(rows, order, 1), np.take_along_axis(best, order, 1)
  return rows, best


@pytest.mark.parametrize(
  "count, width", [(5_000, 32), pytest.param(1_000_000, 768, marks=pytest.mark.slow)]
)
def test_an_index_of_many_vectors(tmp_path, count, width):
  """Ten minutes on two cores to build, 50 ms a query, and 95 of 100 of the ten nearest."""
  pytest.importorskip("usearch", reason="usearch is not installed: pip install -e .[search]")
  values = many(tmp_path / "v.npy", count, width, clusters=count // 500)
  about = {"job": "many", "params_hash": "h"}
  table = vectors.Table([str(row) for row in range(count)], values, about)
  begun = time.process_time()
  index = neighbours.Indexed(str(tmp_path / "v.npz"), table, False)
  built = time.process_time() - begun
  queries = neighbours.unit(values[:: count // 500], None)
  exact, _ = nearest_of_all(values, queries, 10)
  begun = time.perf_counter()
  found = [index.nearest(query[None], 10)[0][0] for query in queries]
  asked = (time.perf_counter() - begun) / len(queries)
  recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(found, exact, strict=True)])
  print(f"{built:.0f} s of processor time, {1000 * asked:.2f} ms a query, recall@10 {recall:.4f}")
  assert built < 2 * 600 and asked < 0.05 and recall >= 0.95
