"""Views, mixtures and schedules of both papers once more, in PyTorch, from given draws.

Mel is (T, F) as elsewhere. Nothing of the package is used.
"""

import math

import torch
from torch.nn import functional as F

MIX_EPS = 2.0**-23


def normalize(db, normalization):
  """A crop in dB: ATST's clamp and min-max, or BYOL-A's standardised logarithm."""
  if normalization["kind"] == "min_max":
    low, high = normalization["low"], normalization["high"]
    db = torch.clamp(db, min=float(db.max()) - normalization["top_db"])
    return 2 * (db - low) / (high - low) - 1
  power = 10 ** (db.double() / 10)
  return ((torch.log(power + 2.0**-23) - normalization["mean"]) / normalization["std"]).float()


def resize_crop(x, box, canvas_time):
  """The random resize crop of (T, F): pasted in the middle of zeros, cut, resized."""
  T, n_mels = x.shape
  top, left, height, width = (int(v) for v in box)
  canvas = x.new_zeros(n_mels, int(canvas_time * T))
  start = (canvas.shape[1] - T) // 2
  canvas[:, start : start + T] = x.T
  piece = canvas[top : top + height, left : left + width]
  resized = F.interpolate(piece[None, None], (n_mels, T), mode="bicubic", align_corners=True)
  return resized[0, 0].T


def make_views(mel, drawn, options):
  """Two views of each clip: (B, T', F) dB -> a list of two (B, T, F).

  Args:
    drawn: of one step, arrays: start (B, 2), shift (B / G, 2), weight (B, 2), box (B, 2, 4) and
      fade (B, 2, 2), the ends of the line.
    options: the config's `views`.
  """
  mel, (clips, frames, group) = (
    torch.tensor(mel).float(),
    (len(mel), options.crop_frames, options.group),
  )
  views = []
  for k in (0, 1):
    crops = [
      normalize(mel[b, drawn["start"][b, k] :][:frames], options.normalization)
      for b in range(clips)
    ]
    view = []
    for b in range(clips):
      first, weight = b // group * group, float(drawn["weight"][b, k])
      other = crops[first + (b + int(drawn["shift"][b // group, k])) % group]
      x = torch.log((1 - weight) * crops[b].exp() + weight * other.exp() + MIX_EPS)
      x = resize_crop(x, drawn["box"][b, k], options.canvas_time)
      head, tail = (float(v) for v in drawn["fade"][b, k])
      view.append(x + torch.linspace(head, tail, frames)[:, None])
    views.append(torch.stack(view))
  if options.post_norm:
    both = torch.cat(views)
    views = [(view - both.mean()) / both.std() for view in views]
  return views


def mix(views, gamma, options, domain):
  """Each view with the next clip's, whose share gamma (B, 2) is: a list of two (B, T, F)."""
  unit = 1.0
  if domain == "energy":  # nepers of power of one unit
    unit = (options.normalization.high - options.normalization.low) / 2 * math.log(10) / 10
  out = []
  for view, g in zip(views, torch.tensor(gamma).T, strict=True):
    g, x = g[:, None, None].double(), (unit * view).double()
    out.append((torch.log(g * x.roll(-1, 0).exp() + (1 - g) * x.exp()) / unit).float())
  return out


def half_cosine(start, end, step, steps):
  """From start at step 0 towards end at step `steps`."""
  return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def rates(step, config):
  """Learning rate, weight decay and the teacher's decay of a step, by the released code's rules."""
  optimizer, total, warm_up = config.optimizer, config.total_steps, config.warmup_steps
  peak = optimizer.base_lr
  if optimizer.reference_batch:
    peak *= config.batch_size / optimizer.reference_batch
  lr = peak
  if step < warm_up:
    lr = peak * step / (warm_up - 1)
  elif optimizer.schedule == "cosine":
    lr = half_cosine(peak, optimizer.end_lr, step - warm_up, total - warm_up)
  decay = half_cosine(optimizer.weight_decay_start, optimizer.weight_decay_end, step, total)
  teacher = config.teacher
  return {
    "lr": lr,
    "weight_decay": decay,
    "decay": half_cosine(teacher.decay_start, teacher.decay_end, step, total),
  }
