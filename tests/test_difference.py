"""BgKnown's evaluation: what is subtracted from what, who may see what, and the command from sounds
to its table."""

import dataclasses
import json
import os

import numpy as np
import pytest

from atst_jax import main
from atst_jax.artifacts.model import Model, load_model
from atst_jax.data.dataset import Clip
from atst_jax.downstream import features, tables
from atst_jax.downstream.bgknown import job as bgknown
from atst_jax.downstream.bgknown.sets import load
from atst_jax.downstream.linear.probing import Training
from atst_jax.downstream.splits import Split
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests.evaluation import make_clips, write_clips, write_encoder
from tests.tiny import ROOT, job_flags

TITLES = ["Mix", "(a) 100%", "(b) 50%", "(c) 0%"]
FAST = {"seeds": "2", "probe__epochs": "5", "probe__batch_size": "16"}


def write_set(root, *, name="bgknown_tones", frontend="atst", made_of=None, changed=None):
  """The four sets of 36 mixtures, 24 of them for training. `made_of`: digests; `changed`: clips by
  condition."""
  os.makedirs(root)
  for number, condition in enumerate(bgknown.CONDITIONS):
    clips = make_clips(36, folds=0, seed=number, loud=20.0 if condition == "mix" else 0.0)
    clips = [
      Clip(c.id, c.mel, c.labels, split="test" if i % 3 == (i // 3) % 3 else "train")
      for i, c in enumerate(clips)
    ]
    clips = (changed or {}).get(condition, lambda x: x)(clips)
    folder = write_clips(os.path.join(root, condition), clips, name=name, frontend=frontend)
    path = os.path.join(folder, "dataset.json")
    with open(path, encoding="utf-8") as file:
      manifest = json.load(file)
    manifest["preparation"] = {"mixtures": (made_of or {}).get(condition, "0")}
    if condition != "mix":  # other constants, which must not be used
      manifest["statistics"] |= {"log_mean": 100.0}
    with open(path, "w", encoding="utf-8") as file:
      json.dump(manifest, file)
  return str(root)


def flags(encoder, data, workdir, **overrides):
  values = {**FAST, "encoder": encoder, "data__path": data, **overrides}
  return job_flags("bgknown", workdir, **values)


@pytest.fixture(scope="module")
def done(encoder, tmp_path_factory):
  """(results, workdir, data)"""
  folder = tmp_path_factory.mktemp("difference")
  data = write_set(folder / "data", name="bgknown_esc50")
  assert main.main(flags(encoder, data, folder / "run")) == 0
  with open(folder / "run" / "results.json", encoding="utf-8") as file:
    return json.load(file), folder / "run", data


def test_rows_and_provenance(done, encoder):
  results = done[0]
  found = [
    (row["features"], row["name"], row["dimensions"], row["weight"]) for row in results["rows"]
  ]
  sizes = {
    "pre-trained": 8,
    "pre-trained, last block": 16,
    "random": 8,
    "random, last block": 16,
    "mel": 128,
  }
  assert found == [
    (kind, title, size, None if title == "Mix" else 1.0)
    for kind, size in sizes.items()
    for title in TITLES
  ]
  for row in results["rows"]:
    assert row["per_seed"] == [run["score"] for run in row["runs"]] and [
      run["seed"] for run in row["runs"]
    ] == [0, 1]
    np.testing.assert_allclose(
      [row["mean"], row["std"]], [np.mean(row["per_seed"]), np.std(row["per_seed"], ddof=1)]
    )
    assert 0 <= row["exact"]["mean"] <= 1 and row["above_optimum"] > 0
    edges = [run["penalty_at_edge"] for run in row["runs"] if run["penalty"]]
    assert row["exact"]["at_edge"] == sum(edges if row["exact"]["std"] else edges[:1])
  assert (results["job"], results["protocol"], results["metric"]) == (
    "difference",
    "difference",
    "accuracy",
  )
  assert results["data"]["divisions"] == [{"train": 22, "valid": 2, "test": 12}]
  assert results["encoder"]["params_hash"] == load_model(encoder).config["params_hash"]
  assert results["chance"] == pytest.approx(1 / 3) and results["data"]["name"] == "bgknown_esc50"


def test_published_scores_stand_below_ours(done):
  results, workdir, _ = done
  text = (workdir / "results.md").read_text(encoding="utf-8")
  assert "| λ = 0.5 (Takeuchi et al., Table 1) |  | 47.33 | 58.96 | 54.63 | 50.50 |" in text
  assert (
    "| features | size | Mix | (a) 100% | (b) 50% | (c) 0% |" in text
    and text.count("|\n") == 2 + 3 * 5 + 1 + 5 + 2 + 20  # the table, and that of intervals
  )
  assert "Intervals are for other foregrounds over the same backgrounds" in text
  own = {**results, "published": []}
  assert "Takeuchi" not in tables.markdown(own) and "1 x background subtracted" in text


def test_rerun_reads_the_features(done, encoder, monkeypatch):
  results, workdir, data = done
  monkeypatch.setattr(Model, "embed", None)
  assert main.main(flags(encoder, data, workdir)) == 0
  with open(workdir / "results.json", encoding="utf-8") as file:
    assert json.load(file) == results


def test_a_job_that_was_stopped_does_not_repeat_its_rows(done, encoder, monkeypatch):
  results, workdir, data = done
  os.remove(workdir / "results.json")
  monkeypatch.setattr(bgknown, "run_row", lambda *_: pytest.fail("a finished row is probed again"))
  assert main.main(flags(encoder, data, workdir)) == 0
  with open(workdir / "results.json", encoding="utf-8") as file:
    assert json.load(file) == results


def test_without_baselines_the_rest_is_the_same(done, encoder, tmp_path):
  results, _, data = done
  assert main.main(flags(encoder, data, tmp_path, baselines="()")) == 0
  with open(tmp_path / "results.json", encoding="utf-8") as file:
    found = json.load(file)["rows"]
  for row, expected in zip(found, results["rows"][:8], strict=True):
    row["test"]["file"] = expected["test"]["file"]  # named by the config
    assert row == expected


def evaluate(arrays, targets, split, weight=1.0):
  """The mean score of every condition."""
  N = len(targets)
  labels = features.Labels(
    [str(i) for i in range(N)], targets, False, np.full(N, -1), np.full(N, "train"), [""] * N
  )
  training = Training("evar", (1e-3,), 200, 200, False, 20, "loss", False)
  job = bgknown.Evaluation(
    {}, None, {}, labels, split, [0, 1, 2], ("y",), (), weight, training, (1.0,)
  )
  found = {condition: [x] for condition, x in arrays.items()}
  rows = [bgknown.run_row("pre-trained", "y", c, found, job)[0] for c in bgknown.CONDITIONS]
  return {row["name"]: row["mean"] for row in rows}


def test_the_known_background_is_subtracted():
  """Vectors that add up: what is subtracted exactly leaves the class, a relative of it some,
  nothing at weight 0."""
  rng = np.random.default_rng(0)
  classes, N = rng.integers(0, 5, 400), 400
  targets = np.eye(5, dtype=np.uint8)[classes]
  event, noise = (
    targets @ rng.normal(size=(5, 16)),
    lambda scale: rng.normal(scale=scale, size=(N, 16)),
  )
  background = noise(5)
  arrays = {
    "mix": event + background + noise(0.3),
    "a": background,
    "b": background + noise(1.5),
    "c": noise(5),
  }
  arrays = {key: x.astype(np.float32) for key, x in arrays.items()}
  order = rng.permutation(N)
  split = Split(np.sort(order[:180]), np.sort(order[180:200]), np.sort(order[200:]))
  scores = evaluate(arrays, targets, split)
  assert (
    scores["(a) 100%"] > 0.95 and scores["(a) 100%"] > scores["(b) 50%"] + 0.1 > scores["Mix"] + 0.2
  )
  without = evaluate(arrays, targets, split, weight=0.0)
  assert {*without.values()} == {scores["Mix"]}
  opposite = {**arrays, "a": 2 * arrays["a"]}
  assert evaluate(opposite, targets, split, weight=0.5)["(a) 100%"] == scores["(a) 100%"]


def test_y_is_what_the_projector_sees(encoder):
  model, mels = (
    load_model(encoder),
    [clip.mel[:32].astype(np.float32) for clip in make_clips(4) if len(clip.mel) >= 32],
  )
  x = model.embed(mels)
  batch = np.stack(mels)
  y, _ = model._encoded(model.variables, batch, batch.max((1, 2)), np.full(len(mels), 32))
  np.testing.assert_allclose(bgknown.choose(x, "y", 2), y, atol=1e-5)
  assert bgknown.choose(x, "all", 2) is x and bgknown.choose(x, "last", 2).shape[1] == 16


def test_a_convolutional_encoder_standardises_all_sets_by_the_mixtures(tmp_path):
  cnn, data = write_encoder(tmp_path / "cnn", kind="cnn"), write_set(tmp_path / "data")
  assert main.main(flags(cnn, data, tmp_path / "run", seeds="1")) == 0
  found = [
    np.load(tmp_path / "run" / "features" / name)
    for name in os.listdir(tmp_path / "run" / "features")
  ]
  model = load_model(cnn).standardized({"log_mean": -7.0, "log_std": 3.0})
  for condition, dataset in load(data).items():
    expected = model.embed([clip.mel.astype(np.float32) for clip in features.clips(dataset)])
    assert any(x.shape == expected.shape and np.allclose(x, expected, atol=1e-5) for x in found), (
      condition
    )
  with open(tmp_path / "run" / "results.json", encoding="utf-8") as file:
    results = json.load(file)
  assert [row["features"] for row in results["rows"]] == ["pre-trained"] * 4 + ["random"] * 4 + [
    "mel"
  ] * 4
  assert results["config"]["statistics"] == "data" and results["published"] == []


def refused(capsys, pattern, *args, **overrides):
  assert main.main(flags(*args, **overrides)) == 2
  error = capsys.readouterr().err
  assert pattern in error and error.count("\n") == 1


def test_sets_that_do_not_belong_together_are_refused(encoder, tmp_path, capsys):
  run = tmp_path / "run"
  other = write_set(tmp_path / "digest", made_of={"b": "1"})
  refused(capsys, "are not of the same mixtures", encoder, other, run)
  fewer = write_set(tmp_path / "fewer", changed={"c": lambda clips: clips[:-1]})
  refused(capsys, "holds other clips or labels than", encoder, fewer, run)
  order = write_set(tmp_path / "order", changed={"a": lambda clips: clips[::-1]})
  refused(capsys, "holds other clips or labels than", encoder, order, run)
  rename = lambda clips: [dataclasses.replace(clip, id=f"{clip.id}!") for clip in clips]
  refused(
    capsys,
    "holds other clips or labels than",
    encoder,
    write_set(tmp_path / "ids", changed={"b": rename}),
    run,
  )
  refused(
    capsys, "with --frontend=atst", encoder, write_set(tmp_path / "frontend", frontend="byola"), run
  )
  refused(capsys, "holds no folder `mix`", encoder, str(tmp_path), run)
  assert not run.exists()


def test_a_foreground_on_both_sides_is_refused(encoder, tmp_path, capsys):
  def leak(clips):
    side = {}
    for i, clip in enumerate(clips):
      side.setdefault(clip.split, i)
    for number, i in enumerate(side.values()):
      clips[i] = Clip(f"same.wav#{number:04d}", clips[i].mel, clips[i].labels, split=clips[i].split)
    return clips

  data = write_set(tmp_path / "data", changed=dict.fromkeys(bgknown.CONDITIONS, leak))
  refused(
    capsys,
    "leaks: 1 source file in more than one part, the first is 'same.wav'",
    encoder,
    data,
    tmp_path / "run",
  )


@pytest.mark.parametrize(
  ("key", "value", "pattern"),
  [
    ("vectors", "'first',", "choose from y, last, all"),
    ("baselines", "'chance',", "choose from random, mel"),
    ("weight", "nan", "must be finite"),
    ("probe__monitor", "error", "choose one of accuracy, loss"),
    ("seeds", "0", "must be positive"),
    ("protocol", "evar", "choose one of difference"),
    ("probe__learning_rates", "0.1,0.1", "positive and ascending"),
  ],
)
def test_values_that_cannot_work_are_refused(done, encoder, tmp_path, capsys, key, value, pattern):
  refused(capsys, pattern, encoder, done[2], tmp_path / "run", **{key: value})


def test_nan_embeddings_name_the_clip(encoder, tmp_path):
  def damage(clips):
    clips[5].mel[2, 3] = np.nan
    return clips

  data = write_set(tmp_path / "data", changed={"b": damage})
  config = configs.load_with_overrides(
    str(ROOT / "configs" / "bgknown.py"), flags(encoder, data, "")[2:]
  )
  with pytest.raises(
    UserError, match=r"pre-trained, \(b\) 50%: the embeddings of 1 of 36 clips are NaN"
  ):
    bgknown.run(config, str(tmp_path / "run"), allow_changed_config=False)
