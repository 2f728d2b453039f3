"""The evidence: what it runs, and what pre-training may not hear."""

import csv
import json

import numpy as np
import pytest

from atst_jax.data.dataset import Clip, Dataset
from atst_jax.method.subtraction import SECTIONS
from atst_jax.util import config as configs
from atst_jax.util.errors import UserError
from tests.evaluation import write_clips
from tests.tiny import ROOT


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


def manifest(output, name):
  text = (output / "manifests" / f"{name}.csv").read_text(encoding="utf-8")
  return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("trials", [False, True])
def test_what_is_tested_is_not_pretrained_on(evidence, recordings, tmp_path, trials):
  """Every other clip is; groups lie on one side. Trials have no clip of the final tests, and test
  those that choose otherwise. Mixtures are divided as their parts are."""
  output, final = tmp_path / "out", ("timgm", "theo", "/5-", "c2-")
  evidence.sets.write_manifests(recordings, output, trials=trials)
  heard = {row["path"] for row in manifest(output, "pretrain")}
  for task in evidence.sets.TASKS:
    rows = manifest(output, task)
    unheard = {row["path"] for row in rows if row["split"] == "test"}
    assert len(unheard) == 2 and not unheard & heard
    assert any(name in path for path in unheard for name in final) != trials
    assert {row["path"] for row in rows} - unheard <= heard
    assert len({(row["group"], row["split"]) for row in rows}) == len({r["group"] for r in rows})
    assert {row["split"] for row in rows} == {"train", "test"} | ({*()} if trials else {"valid"})
    # what is left out in turn: on each side other ones
    assert len({(row["fold"], row["split"]) for row in rows}) == len({r["fold"] for r in rows})
  assert len(heard) == (2 + 2 + 6 if trials else 4 + 4 + 8)
  assert not any(name in path for path in heard for name in final)
  if not trials:
    for side, task in (("foreground", "family"), ("background", "esc10")):
      assert manifest(output, f"bgknown_{side}") == manifest(output, task)
  (output / "sets" / "pitch").mkdir(parents=True)
  evidence.sets.write_manifests(recordings, output, trials=trials)  # the same
  (output / "manifests" / "pitch.csv").write_text("another list")
  measured = rf"pitch was prepared from another .* measured on it \({output}/\*/seed\*/pitch\)"
  with pytest.raises(UserError, match=measured):
    evidence.sets.write_manifests(recordings, output, trials=trials)
  (output / "sets" / "pretrain").mkdir()
  (output / "manifests" / "pretrain.csv").write_text("another list")
  with pytest.raises(UserError, match=rf"with what was trained on it \({output}/\*/seed\*\), or"):
    evidence.sets.write_manifests(recordings, output, trials=trials)
  (recordings / "notes" / "pitch.csv").unlink()
  with pytest.raises(UserError, match="no clips for pitch; needed are"):
    evidence.sets.write_manifests(recordings, output, trials=trials)


def test_dry_run_names_every_step_and_skips_what_is_done(evidence, recordings, tmp_path, capfd):
  output = tmp_path / "out"
  flags = [f"--recordings={recordings}", f"--output={output}", "--seeds=1", "--only=base,cnn"]
  flags += ["--peer", "--dry_run", "--config.total_steps=77"]
  assert evidence.main(flags) == 0
  assert not output.exists()  # nothing is written
  lines = capfd.readouterr().out.splitlines()
  # sets; training, export and evaluations of base (with BgKnown) and cnn; the peer exports itself
  assert len(lines) == 6 + (2 + 5) + (2 + 4) + (1 + 4)
  trained = [line for line in lines if "--config.total_steps=77" in line]
  assert len(trained) == 3 and all("--config.seed=1" in line for line in trained)
  assert "launch.evidence_peer --config=configs/evidence.py:base" in trained[2]
  encoder = output / "base" / "seed1" / "encoder"
  encoder.mkdir(parents=True)
  of_run = ["--config.seed=1", "--config.total_steps=77"]
  config = configs.load_with_overrides("configs/evidence.py", of_run, SECTIONS).to_dict()
  (encoder / "config.json").write_text(json.dumps({"provenance": {"config": config}}))
  assert evidence.main(flags) == 0
  assert len(capfd.readouterr().out.splitlines()) == len(lines) - 2
  assert evidence.main([*flags, "--only=lambda05", "--text=stand_in"]) == 0
  more = capfd.readouterr().out
  # pairs and the words' model; retrieval; a variant is evaluated beside no random encoder
  assert len(more.splitlines()) == 6 + 2 + (2 + 6) + (1 + 4)
  assert "--config.baselines=()" in more and f"--config.text.model={output}/stand_in" in more
  with pytest.raises(UserError, match="--text=stand_in: none of these runs is evaluated by retr"):
    evidence.main([*flags, "--only=cnn", "--text=stand_in"])
  with pytest.raises(UserError, match="no variant cnm; there are base,"):
    evidence.main([*flags, "--only=cnm"])
  with pytest.raises(UserError, match="mine is a folder of --output, or of another encoder"):
    evidence.main([*flags, "--encoders=a/mine,b/mine"])


def test_trials_are_tested_elsewhere(evidence, recordings, tmp_path, capfd):
  output, named = tmp_path / "out", "--only=base,narrow_box"
  flags = [f"--recordings={recordings}", f"--output={output}", "--trials", "--dry_run", named]
  assert evidence.main(flags) == 0
  lines = capfd.readouterr().out.splitlines()
  assert len(lines) == 5 + 2 * (2 + 4) and all(f"{output}/trials/" in line for line in lines)
  (trained,) = [line for line in lines if "freq_scale" in line]
  assert "configs/evidence.py:base" in trained and "--config.seed=0" in trained
  with pytest.raises(UserError, match="no trial lambda05; there are base, narrow_box,"):
    evidence.main([*flags, "--only=lambda05"])
  with pytest.raises(UserError, match="leave out --peer"):
    evidence.main([*flags, "--peer"])


def test_every_trial_changes_the_base_recipe(evidence):
  """In nothing but what it names, to values of the same type, which pre-training accepts."""
  path = str(ROOT / "configs/evidence.py")
  base = configs.flatten(configs.load(path).to_dict())
  for name, values in evidence.TRIALS.items():
    flags = evidence.overrides(name)
    found = configs.flatten(configs.load_with_overrides(path, flags, SECTIONS).to_dict())
    changed = {key: value for key, value in found.items() if base.get(key, value) != value}
    assert changed == values, name
    assert all(f"`{key}=" in evidence.told(name) for key in values)


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

  def told(run):
    return evidence.of.mark(tmp_path, [run.name], [0])

  clean = trained_on("clean", clip("a.flac", 50))
  evidence.check_heard(clean, tested, False)
  assert told(clean) == []
  (clean.workdir / "pitch").mkdir()
  results = {"encoder": {"params_hash": "another of the same name"}}
  (clean.workdir / "pitch" / "results.json").write_text(json.dumps(results))
  assert "clean, seed 0: not known" in told(clean)[0]
  for name, heard in (("name", clip("mine/pitch-1.wav", 51)), ("content", clip("a.flac", 21))):
    run = trained_on(name, clip("b.flac", 52), heard)
    with pytest.raises(UserError, match=r"has heard 1 test clips, the first is 'pitch/pitch-1"):
      evidence.check_heard(run, tested, False)
    evidence.check_heard(run, tested, True)
    assert "heard in pre-training** " in told(run)[0] and "pitch-1.flac" in told(run)[0]
  # ESC-50's own names say the class as well
  esc50 = trained_on("esc50", clip("audio/5-9032-A-0.wav", 54), clip("audio/5-9032-B-0.wav", 55))
  tested.names |= {"5-9032-A": "dog/5-9032-A.ogg"}
  assert tested.heard_by(str(esc50.encoder)) == ["dog/5-9032-A.ogg"]
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
  # evaluated by hand
  (segment.workdir / "pitch" / "results.json").write_text(json.dumps(results))
  assert "not known" in told(segment)[0]


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
    "no_box_height": {"views.freq_scale"},
    "no_mixup": {"views.mixup_ratio"},
    "no_rrc": {"views.freq_scale", "views.time_scale", "views.canvas_time"},
  }
  assert {key for key in base if base[key] != other[key]} == wanted[variant]


def test_every_config_takes_the_flags_before_anything_runs(evidence, recordings, tmp_path, capfd):
  """Without --only these are the variants; other objectives have no limit of a step either."""
  flags = [f"--recordings={recordings}", f"--output={tmp_path / 'out'}", "--seeds=1", "--dry_run"]
  assert evidence.main(flags) == 0
  out = capfd.readouterr().out
  assert out.count("atst_jax.export") == len(evidence.VARIANTS) and "cola" not in out
  message = r"^--config\.difference\.weight: no such key; .* \(configs/cola\.py:small\)$"
  with pytest.raises(UserError, match=message):
    evidence.main([*flags, "--only=base,cola", "--config.difference.weight=0.1"])
  assert not capfd.readouterr().out
  assert evidence.main([*flags, "--only=cola"]) == 0
  (trained,) = [line for line in capfd.readouterr().out.splitlines() if "cola.py" in line]
  assert "--config.guard.step_seconds=0" in trained


def test_other_objectives_have_the_clips_steps_and_batch_of_the_base(evidence):
  flat = lambda name: configs.flatten(configs.load(str(ROOT / "configs" / name)).to_dict())
  base = flat("evidence.py:base")
  same = ("batch_size", "total_steps", "warmup_steps", "data.clip_frames", "views.crop_frames")
  for name, config in evidence.COMPARATORS.items():
    other = flat(config)
    assert {key: other[key] for key in same} == {key: base[key] for key in same}, name
