"""Trials of the recipe, tested on what the final tables choose by; what they test is not there.

  python launch/evidence.py --recordings=recordings --output=runs/evidence --trials
  python launch/evidence.py … --trials --only=base,narrow_box --seeds=0,1

Each trains `configs/evidence.py:base` with the values below on a set of its own
(`evidence_sets.write_manifests`), one seed by default. What is done is skipped. A trial that is
added here joins the next start; the tables are in OUTPUT/trials/evidence.md.
"""

_FLAT = {"views.freq_scale": (1.0, 1.0)}

# Name -> values of the base recipe that it replaces. `batch_*` see as many clips as the base.
TRIALS: dict[str, dict[str, object]] = {
  "base": {},
  # a box of random resize crop that shifts frequencies less, for pitch
  "narrow_box": {"views.freq_scale": (0.9, 1.1)},
  "no_box_height": _FLAT,
  # second round, made when the first said that frequencies should not be shifted
  "no_box": {**_FLAT, "views.time_scale": (1.0, 1.0), "views.canvas_time": 1.0},
  "flat_no_mixup": {**_FLAT, "views.mixup_ratio": 0.0},
  "flat_one_segment": {**_FLAT, "views.segments": "single"},
  "flat_rate_half": {**_FLAT, "optimizer.base_lr": 2e-3},
  "flat_teacher_996": {**_FLAT, "teacher.decay_start": 0.996},
  "flat_norm_by_view": {**_FLAT, "joint_views": False},
  "flat_crop_192": {**_FLAT, "views.crop_frames": 192, "encoder.max_frames": 193},
  "flat_lambda02": {**_FLAT, "difference.weight": 0.2},
  # longer runs: 12 and 24 minutes of two idle cores
  "steps_3000": {"total_steps": 3000, "warmup_steps": 200},
  "steps_6000": {"total_steps": 6000, "warmup_steps": 300},
  # batch at the same peak rate; the last one at twice the clips
  "batch_32": {"batch_size": 32, "total_steps": 3000, "optimizer.base_lr": 8e-3},
  "batch_128": {"batch_size": 128, "total_steps": 750, "optimizer.base_lr": 2e-3},
  "batch_128_long": {"batch_size": 128, "optimizer.base_lr": 2e-3},
  # schedules of rate, decay and teacher
  "rate_half": {"optimizer.base_lr": 2e-3},
  "rate_twice": {"optimizer.base_lr": 8e-3},
  "warmup_400": {"warmup_steps": 400},
  "rate_constant": {"optimizer.schedule": "constant", "optimizer.base_lr": 2e-3},
  "decay_flat": {"optimizer.weight_decay_end": 0.04},
  "decay_none": {"optimizer.weight_decay_start": 0.0, "optimizer.weight_decay_end": 0.0},
  "teacher_996": {"teacher.decay_start": 0.996},
  "teacher_fixed": {"teacher.decay_end": 0.99},
  # heads
  "heads_small": {"heads.hidden": 256, "heads.out": 64},
  "heads_large": {"heads.hidden": 4096},
  "heads_out_1024": {"heads.out": 1024},
  "heads_bias": {"heads.use_bias": True},
  # BatchNorm of projector and predictor, by the statistics of each view alone
  "norm_by_view": {"joint_views": False},
  # views
  "one_segment": {"views.segments": "single"},
  "no_mixup": {"views.mixup_ratio": 0.0},
  "crop_192": {"views.crop_frames": 192, "encoder.max_frames": 193},
}


def overrides(name: str) -> list[str]:
  """The flags of a trial."""
  return [f"--config.{key}={value}".replace(" ", "") for key, value in TRIALS[name].items()]


def told(name: str) -> str:
  """The same for a table."""
  return ", ".join(f"`{key}={value}`".replace(" ", "") for key, value in TRIALS[name].items())
