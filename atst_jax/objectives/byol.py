"""BYOL with the subtraction loss: `method.train_step`, which is the page of both papers, under a
config."""

import functools
from typing import Any, ClassVar

from atst_jax.method import train_step as method
from atst_jax.method import views as view_lengths
from atst_jax.method.augment import RESIZES
from atst_jax.method.ema import ema
from atst_jax.method.mixtures import mixing_options
from atst_jax.method.optimizer import cosine_schedule
from atst_jax.method.subtraction import Subtraction
from atst_jax.models.encoders import ENCODERS, make_encoder
from atst_jax.objectives.objective import Objective
from atst_jax.util.errors import UserError
from atst_jax.util.logs import log


def ranges_of(views) -> list[tuple[int, int]]:
  """(shortest, longest) frames of each view of a config's `views` section."""
  return view_lengths.frame_ranges(
    views["crop_frames"], views["first_frames"], views["second_frames"]
  )


class Byol(Objective):
  """BYOL, and with λ > 0 the subtraction loss."""

  name = "byol"
  owns = (
    *("joint_views", "heads", "difference", "teacher", "compute.resize"),
    *(f"views.{key}" for key in ("segments", "first_frames", "second_frames", "padding")),
    *(f"views.{key}" for key in ("mixup_ratio", "mixup_last_offset", "group", "freq_scale")),
    *(f"views.{key}" for key in ("time_scale", "canvas_time", "fader_gain", "post_norm")),
  )
  start_from = "configs/base.py"
  positive = ("heads.hidden", "heads.out")
  choices: ClassVar[dict[str, tuple[str, ...]]] = {
    "views.segments": ("two", "single"),
    "views.padding": view_lengths.PADDINGS,
    "difference.gamma_per": ("clip", "batch"),
    "difference.mix_domain": ("normalized", "energy"),
    "difference.mix_stage": ("post_norm", "pre_norm"),
    "difference.renormalize": ("none", "batch"),
    "difference.neighbour": ("group", "batch"),
    "difference.subtrahend": ("student", "teacher"),
    "difference.level": ("clip", "frame"),
    "compute.resize": ("auto", *RESIZES),
  }
  ranges: ClassVar[dict[str, tuple[float, float]]] = {
    "difference.weight": (0, 1),
    "difference.gamma_min": (1e-3, 0.999),
    "difference.gamma_max": (1e-3, 0.999),
    "difference.mix_k": (1e-6, 1e6),
    "views.mixup_ratio": (0, 1),
    "views.fader_gain": (0, 1e3),
    "views.canvas_time": (1, 100),
    "teacher.lead_steps": (0, 1),
    "teacher.decay_start": (0, 1),
    "teacher.decay_end": (0, 1),
  }
  has_teacher = True
  judged = "teacher"
  has_views = True

  @property
  def outputs(self) -> int:
    """P, the predictor's and the projector's outputs."""
    return self.config["heads"]["out"]

  @property
  def unit(self) -> int:
    """Clips that are mixed with each other."""
    return self.config["views"]["group"]

  @property
  def subtraction(self) -> Subtraction:
    """The section `difference`."""
    return Subtraction(**self.config["difference"])

  def is_ragged(self, shortest_clip: int) -> bool:
    """Whether any view may be shorter than `views.crop_frames`."""
    views = self.config["views"]
    keys = ("padding", "crop_frames", "first_frames", "second_frames")
    return view_lengths.is_ragged(shortest_clip, **{key: views[key] for key in keys})

  def check(self, *, devices: int, clip_lengths: tuple[int, int], n_mels: int) -> None:
    """Raises UserError for values, views or choices of the subtraction that do not fit."""
    self._check_values()
    group, batch = self.unit, self.config["batch_size"]
    if group < 2 or batch // devices % group:
      raise UserError(
        f"views.group {group} must be at least 2 and divide the {batch // devices} clips of a "
        f"device (batch_size {batch} on {devices} devices); use a multiple of {devices * group}"
      )
    least = 5 if self.subtraction.weight else 3
    if group < least and self.config["views"]["mixup_ratio"]:
      log.warning(
        "views.group=%d is for tests: Mixup's partners are %s; take %d or more",
        group,
        "what the subtraction takes away, at times" if least == 5 else "the same in both views",
        least,
      )
    self._check_views(clip_lengths[0])
    self._check_difference()

  def _check_values(self) -> None:
    views, subtraction = self.config["views"], self.subtraction
    for key in ("freq_scale", "time_scale"):
      if len(views[key]) != 2 or not 0 < views[key][0] <= views[key][1]:
        raise UserError(
          f"--config.views.{key}={views[key]}: must be two positive numbers, the smaller first"
        )
    if not subtraction.gamma_min <= subtraction.gamma_max:
      raise UserError(
        f"--config.difference.gamma_min={subtraction.gamma_min}: must be below "
        f"difference.gamma_max={subtraction.gamma_max}"
      )

  def _check_views(self, shortest_clip: int) -> None:
    """Lengths that fit neither each other nor the encoder."""
    views, encoder = self.config["views"], self.config["encoder"]
    for key in ("first_frames", "second_frames"):
      if views[key] is not None and (
        len(views[key]) != 2 or not all(isinstance(n, int) for n in views[key])
      ):
        raise UserError(
          f"--config.views.{key}={views[key]}: must be two whole numbers of frames, the shorter "
          "first"
        )
    crop, ranges, shortest = views["crop_frames"], ranges_of(views), make_encoder(encoder).hop
    if views["padding"] == "mask" and shortest_clip < shortest:
      raise UserError(
        f"the shortest clip has {shortest_clip} frames, and a vector of this encoder sees "
        f"{shortest}: nothing would be left of such clips; leave them out, or set "
        "--config.views.padding=silence"
      )
    for key, (low, high) in zip(("first_frames", "second_frames"), ranges, strict=True):
      if not shortest <= low <= high <= crop:
        raise UserError(
          f"--config.views.{key}=({low}, {high}): must be two numbers from {shortest} to "
          f"views.crop_frames {crop}, the smaller first"
        )
    if max(high for _, high in ranges) < crop:
      raise UserError(
        f"views.crop_frames {crop} is longer than any view; set it to the longest of "
        "views.first_frames and views.second_frames"
      )
    if views["segments"] == "single" and (ranges[0] != ranges[1] or ranges[0][0] < ranges[0][1]):
      raise UserError(
        "--config.views.segments=single takes both views from one segment; leave out "
        "views.first_frames and views.second_frames"
      )
    if ENCODERS[encoder["kind"]].has_batch_norm and self.is_ragged(shortest_clip):
      raise UserError(
        f"some views are shorter than views.crop_frames, and BatchNorm of --config.encoder.kind="
        f"{encoder['kind']} would see their padding; set --config.views.padding=silence and leave "
        "out views.first_frames and views.second_frames"
      )

  def _check_difference(self) -> None:
    """A choice that would do nothing, or two that exclude each other."""
    difference, encoder = self.subtraction, make_encoder(self.config["encoder"])
    for key, value, needs, met in (
      ("level", "frame", "encoder.kind=cnn", encoder.context is not None),
      ("track_mixtures", False, "encoder.kind=cnn", encoder.has_batch_norm),
      ("mix_stage", "pre_norm", "views.post_norm=true", self.config["views"]["post_norm"]),
      (
        "mix_stage",
        "pre_norm",
        "difference.mix_domain=normalized",
        difference.mix_domain == "normalized",
      ),
      ("joint_projector", True, "difference.symmetric=true", difference.symmetric),
      ("gamma_shared", True, "difference.symmetric=true", difference.symmetric),
      ("stop_gradient", True, "difference.subtrahend=student", difference.subtrahend == "student"),
    ):
      if getattr(difference, key) == value and not met:
        raise UserError(
          f"--config.difference.{key}={value} makes a difference only with --config.{needs}"
        )
    if difference.mix_k is not None and difference.mix_domain != "energy":
      raise UserError(
        "--config.difference.mix_k is used only with --config.difference.mix_domain=energy"
      )

  def build(self, *, tx, schedules, n_mels, ragged, dtype, **computing):
    """`method.init_state` and `method.make_train_step` under the config."""
    config, subtraction = self.config, self.subtraction
    network = method.make_network(
      encoder=config["encoder"],
      heads=config["heads"],
      joint_views=config["joint_views"],
      dtype=dtype,
      accumulation=config["compute"]["accumulation"],
      subtraction=subtraction,
      **computing,
    )
    teacher, views = config["teacher"], config["views"]
    average = cosine_schedule(
      teacher["decay_start"], teacher["decay_end"], total_steps=config["total_steps"]
    )
    decay = lambda step: average(step + teacher["lead_steps"])
    parts: dict[str, Any] = {"network": network, "tx": tx, "teacher": ema(decay)}
    init = functools.partial(
      method.init_state, group=self.unit, frames=views["crop_frames"], n_mels=n_mels, **parts
    )
    step = method.make_train_step(
      schedules={**schedules, "ema_decay": decay},
      seed=config["seed"],
      ragged=ragged,
      views={**views, "resize": config["compute"]["resize"]},
      mixing=mixing_options(views, subtraction, config["batch_size"]),
      before_step=teacher["before_step"],
      **parts,
    )
    return init, step

  def flops(self, n_mels: int) -> float:
    """Two views, and their mixtures where λ is not 0."""
    encoder, heads = self.config["encoder"], self.config["heads"]
    encoded = make_encoder(encoder).flops(frames=self.config["views"]["crop_frames"], n_mels=n_mels)
    hidden, out = heads["hidden"], heads["out"]
    projector = 2 * hidden * (encoder["width"] + out)
    predictor = 2 * hidden * (out + out)
    student = 3 * (encoded + projector + predictor)
    directions = 2 if self.subtraction.symmetric else 1
    mixed = directions if self.subtraction.weight else 0
    return (2 + mixed) * student + 2 * (encoded + projector)
