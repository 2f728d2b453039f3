"""The evidence: what it runs, what pre-training may not hear, and the arithmetic of its tables."""

import csv
import json
import sys

import jax
import numpy as np
import pytest

from atst_jax.data.dataset import Clip, Dataset
from atst_jax.pretraining import job, recipe
from atst_jax.runtime.mesh import make_mesh
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests.evaluation import write_clips
from tests.tiny import ROOT, tiny_config, write_dataset

SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def evidence():
  sys.path.insert(0, str(ROOT / "launch"))
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(ROOT)
    try:
      import evidence
      import evidence_peer
      import evidence_sets
      import evidence_tables

      evidence.peer, evidence.sets, evidence.of = evidence_peer, evidence_sets, evidence_tables
      yield evidence
    finally:
      sys.path.remove(str(ROOT / "launch"))


@pytest.fixture
def recordings(tmp_path):
  root = tmp_path / "recordings"
  names = [
    f"esc10/{label}/{fold}-{fold}{i}-A.ogg"
    for i, label in enumerate(("rain", "rooster"))
    for fold in range(1, 6)
  ]
  names += [f"fsdd/{d}_{who}_7.flac" for d in (0, 1) for who in ("george", "theo", "yweweler")]
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()
  (root / "notes").mkdir()
  for task in ("family", "pitch"):
    rows = [f"organ/c{fold}-{n}.flac,{n},{fold},p{fold}{n}" for fold in range(3) for n in (1, 2)]
    (root / "notes" / f"{task}.csv").write_text("\n".join(["path,label,fold,group", *rows]) + "\n")
  return root


def test_what_is_tested_is_not_pretrained_on(evidence, recordings, tmp_path):
  """Every other clip is; groups lie on one side; BgKnown is divided as its parts are."""
  evidence.sets.write_manifests(recordings, tmp_path / "out")

  def read(name):
    text = (tmp_path / "out" / "manifests" / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))

  heard = {row["path"] for row in read("pretrain")}
  for task, tested in (("digits", 2), ("family", 2), ("pitch", 2), ("esc10", 2)):
    rows = read(task)
    unheard = {row["path"] for row in rows if row["split"] == "test"}
    assert len(unheard) == tested and not unheard & heard
    assert {row["path"] for row in rows} - unheard <= heard
    assert len({(row["group"], row["split"]) for row in rows}) == len({r["group"] for r in rows})
    assert {row["split"] for row in rows} == {"train", "valid", "test"}
  assert len(heard) == 4 + 4 + 8
  for kind, task in (("foreground", "family"), ("background", "esc10")):
    assert read(f"bgknown_{kind}") == read(task)
  (recordings / "notes" / "pitch.csv").unlink()
  with pytest.raises(UserError, match="no clips for pitch; needed are"):
    evidence.sets.write_manifests(recordings, tmp_path / "out")


def test_dry_run_names_every_step_and_skips_what_is_done(evidence, recordings, tmp_path, capfd):
  output = tmp_path / "out"
  flags = [f"--recordings={recordings}", f"--output={output}", "--seeds=1", "--only=base,cnn"]
  flags += ["--peer", "--dry_run", "--config.total_steps=77"]
  assert evidence.main(flags) == 0
  lines = capfd.readouterr().out.splitlines()
  # sets; training, export and evaluations of base (with BgKnown) and cnn; the peer exports itself
  assert len(lines) == 6 + (2 + 5) + (2 + 4) + (1 + 4)
  trained = [line for line in lines if "--config.total_steps=77" in line]
  assert len(trained) == 3 and all("--config.seed=1" in line for line in trained)
  assert "launch.evidence_peer --config=configs/evidence.py:base" in trained[2]
  encoder = output / "base" / "seed1" / "encoder"
  encoder.mkdir(parents=True)
  (encoder / "config.json").touch()
  assert evidence.main(flags) == 0
  assert len(capfd.readouterr().out.splitlines()) == len(lines) - 2
  with pytest.raises(UserError, match="no variant cnm; there are base,"):
    evidence.main([*flags, "--only=cnm"])


def test_what_was_trained_otherwise_is_not_taken_for_the_result(evidence, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  flags = ["--config=configs/evidence.py:cnn", f"--workdir={tmp_path}"]
  evidence.agree(tmp_path, [*flags, "--config.total_steps=77"])  # nothing there yet
  (tmp_path / "config.json").write_text(
    json.dumps({"total_steps": 200, "encoder": {"hidden": 256}})
  )
  evidence.agree(tmp_path, [*flags, "--config.total_steps=200", "--config.encoder.hidden=256"])
  with pytest.raises(UserError, match="was trained with total_steps=200, not"):
    evidence.agree(tmp_path, [*flags, "--config.total_steps=77"])
  (tmp_path / "config.json").write_text(json.dumps({"total_steps": 77}))  # a trial
  with pytest.raises(UserError, match="was trained with total_steps=77, not"):
    evidence.agree(tmp_path, flags)


def clip(name, seed, split="train"):
  mel = np.random.default_rng(seed).normal(-40, 9, (24, 64)).astype(np.float16)
  return Clip(name, mel, (0,), split=split)


def test_who_has_heard_a_test_clip_is_refused_or_marked(evidence, tmp_path):
  """By the name of its file, by its spectrogram under another name; and who does not say."""
  for number, task in enumerate(evidence.sets.TASKS):
    tested = [clip(f"{task}/{task}-{i}.flac", 10 * number + i, "test") for i in range(2)]
    write_clips(tmp_path / "sets" / task, [clip("elsewhere.flac", 99), *tested])
  tested = evidence.sets.Tested(tmp_path)

  def trained_on(name, *clips):
    dataset = Dataset.load(write_clips(tmp_path / f"{name}_data", clips))
    data = {"path": dataset.root, "split": "train", "fingerprint": dataset.fingerprint("train")}
    return run_of(name, {"provenance": {"config": {"data": data}}})

  def run_of(name, config):
    folder = tmp_path / "encoders" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return evidence.Run(name, 0, tmp_path / name / "seed0", folder, True)

  told = lambda run: evidence.of.mark(tmp_path, [run.name], [0])
  clean = trained_on("clean", clip("a.flac", 50))
  evidence.check_heard(clean, tested, False)
  assert told(clean) == []
  for name, heard in (("name", clip("mine/pitch-1.wav", 51)), ("content", clip("a.flac", 21))):
    run = trained_on(name, clip("b.flac", 52), heard)
    with pytest.raises(UserError, match=r"has heard 1 test clips, the first is 'pitch/pitch-1"):
      evidence.check_heard(run, tested, False)
    evidence.check_heard(run, tested, True)
    assert "heard in pre-training** " in told(run)[0] and "pitch-1.flac" in told(run)[0]
  unknown = run_of("unknown", {"provenance": {"step": 1}})
  with pytest.raises(UserError, match="does not say what the encoder was pre-trained on"):
    evidence.check_heard(unknown, tested, False)
  evidence.check_heard(unknown, tested, True)
  assert "not known" in told(unknown)[0]
  data = dict.fromkeys(("path", "split", "fingerprint"), "clean")
  went_on = run_of("on", {"provenance": {"config": {"data": data, "initial": "encoders/x"}}})
  with pytest.raises(UserError, match="went on from encoders/x"):
    evidence.check_heard(went_on, tested, False)
  segment = trained_on("segment", clip("sounds/pitch-1.flac#0.5-2", 53))
  assert tested.heard_by(str(segment.encoder)) == ["pitch/pitch-1.flac"]
  (segment.workdir / "pitch").mkdir(parents=True)
  (segment.workdir / "pitch" / "results.json").touch()  # evaluated by hand
  assert "not known" in told(segment)[0]


def write_results(folder, scores, draws):
  """results.json of a task with the scores of rows, and `draws` numbers for each."""
  (folder / "predictions").mkdir(parents=True)
  rows = []
  for number, (name, score) in enumerate(scores.items()):
    file = f"predictions/{number}.npz"
    np.savez(folder / file, resampled=score + np.asarray(draws))
    spectrum = {"directions_90": 4.0, "directions_99": 18.0, "effective_rank": 5.7}
    test = {"file": file, "clips": "same", "draws": len(draws)}
    rows.append({"name": name, "mean": score, "test": test, **spectrum})
  (folder / "results.json").write_text(json.dumps({"rows": rows}))


def test_tables_give_spreads_and_paired_differences(evidence, tmp_path):
  draws = np.linspace(-0.1, 0.1, 201)
  for variant, shift in (("base", 0.0), ("lambda05", 0.05)):
    for seed in SEEDS:
      for task in evidence.sets.TASKS:
        scores = {"pre-trained, all blocks": 0.5 + 0.01 * seed + shift, "random, all blocks": 0.3}
        # the same draws: only the difference of the scores is left
        write_results(tmp_path / variant / f"seed{seed}" / task, scores, draws)
      (tmp_path / variant / f"seed{seed}" / "heard.json").write_text("[]")
  (tmp_path / "base" / "seed1" / "heard.json").write_text('["a.flac"]')
  text = evidence.of.tables(tmp_path, ["base", "lambda05"], SEEDS, "base")
  row = lambda *cells: "| " + " | ".join([*cells[:-1], *[cells[-1]] * 4]) + " |"
  lines = text.splitlines()
  assert row("pre-trained, all blocks", "3", "51.0 ± 1.0") in lines
  assert row("pre-trained, all blocks, less random, all blocks", "+21.0 [+21.0, +21.0]") in lines
  assert row("lambda05", "3", "56.0 ± 1.0") in lines
  assert row("lambda05", "+5.0 [+5.0, +5.0]") in lines
  assert row("random, all blocks", "4, 18; 5.7") in lines
  # a table of what was heard never stands without its mark
  assert text.count("heard in pre-training** (base, seed 1: 1 clips, one is a.flac)") == 2
  assert evidence.of.student([1.0, 2.0, 3.0]) == "+2.0 (-0.5, +4.5)"  # 4.303 / sqrt(3)


@pytest.mark.slow
def test_pytorchs_update_is_ours(evidence, tmp_path):
  """Three steps on clips shorter than the crop, too: the same losses and teachers."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed: .[torch]")
  data = write_dataset(str(tmp_path / "data"))
  config = tiny_config(difference__weight="0", data__source="records", data__path=data)
  config.encoder.drop_path, config.total_steps = 0.0, 3
  config, dataset = job.settle(config)
  mesh = make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  program = recipe.compile_for(config, mesh, ragged=True)
  state, step = job.fresh_state(config, program), recipe.compile_step(program)
  peer = evidence.peer.Peer(torch, config, state)
  rows = (0, config.batch_size)
  theirs = evidence.peer.views_from(config, dataset, step=0, rows=rows)
  ours = recipe.batches(config, dataset, start_step=0, rows=rows)
  for number in range(config.total_steps):
    state, metrics = step(state, next(ours))
    loss = peer.step(number, *next(theirs))
    assert loss == pytest.approx(float(metrics["loss"]), abs=1e-5)
  found = evidence.peer.unload(peer.teacher, peer.depth)["params"]
  wanted = dict(state.teacher.params["encoder"])
  for params in (found, wanted):
    # BatchNorm takes away what this bias adds: Adam makes steps of rounding
    params["norm"] = {"scale": params["norm"]["scale"]}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, wanted)


def test_the_peer_refuses_what_it_does_not_compute(evidence):
  for values, message in (
    ({}, "a transformer's without the subtraction"),
    ({"difference__weight": "0", "optimizer__form": "transformers"}, "optimizer.form=transformers"),
  ):
    with pytest.raises(UserError, match=message):
      evidence.peer.check(tiny_config(**values))


@pytest.mark.parametrize("variant", configs.variants(str(ROOT / "configs/evidence.py"))[1:-1])
def test_a_variant_changes_what_it_names(variant):
  """And nothing else."""
  flat = lambda name: configs.flatten(
    configs.load(f"{ROOT / 'configs/evidence.py'}:{name}").to_dict()
  )
  base, other = flat("base"), flat(variant)
  wanted = {
    "lambda02": {"difference.weight"},
    "lambda05": {"difference.weight"},
    "single": {"views.segments"},
    "no_mixup": {"views.mixup_ratio"},
    "no_rrc": {"views.freq_scale", "views.time_scale", "views.canvas_time"},
  }
  assert {key for key in base if base[key] != other[key]} == wanted[variant]
