"""Both papers once more, in PyTorch, written for these tests alone: encoders, heads, losses, AdamW
and the teacher.

Modules carry the released names, so that state dicts are those of the released files. Mel is (B, T,
F) as elsewhere.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width, bias=False)
    self.proj = nn.Linear(width, width)

  def forward(self, x):
    B, N, D = x.shape
    q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
    weights = ((q @ k.transpose(-2, -1)) * (D // self.heads) ** -0.5).softmax(-1)
    return self.proj((weights @ v).transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
    self.attn = Attention(width, heads)
    self.mlp = nn.ModuleDict(
      {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
    )

  def forward(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Transformer(nn.Module):
  """ATST's encoder for clips of full length; patches of 4 frames."""

  def __init__(self, width, depth, heads, positions):
    super().__init__()
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed = nn.Parameter(torch.zeros(1, positions + 1, width))
    self.patch_embed = nn.ModuleDict({"patch_embed": nn.Linear(256, width)})
    self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
    self.norm = nn.LayerNorm(width, eps=1e-6)

  def tokens(self, mel):
    """All blocks' normalised tokens, (depth, B, 1 + N, D)."""
    B, T, _ = mel.shape
    image = mel[:, : T // 4 * 4].transpose(1, 2)  # (B, mel, time), cut into columns of 4
    patches = torch.stack(
      [image[:, :, t : t + 4].reshape(B, 256) for t in range(0, T // 4 * 4, 4)], 1
    )
    x = torch.cat([self.cls_token.expand(B, 1, -1), self.patch_embed["patch_embed"](patches)], 1)
    x = x + self.pos_embed[:, : x.shape[1]]
    out = []
    for block in self.blocks:
      x = block(x)
      out.append(self.norm(x))
    return torch.stack(out)

  def forward(self, mel):
    return self.tokens(mel)[-1][:, 0]


class AudioNTT(nn.Module):
  """BYOL-A's encoders, without dropout."""

  def __init__(self, blocks, width, hidden):
    super().__init__()
    layers, channels, bins = [], 1, 64
    for _ in range(blocks):
      layers += [
        nn.Conv2d(channels, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
      ]
      channels, bins = 64, bins // 2
    features = 64 * bins
    self.stacked = blocks == 2
    self.features = nn.Sequential(*layers)
    self.fc = nn.Sequential(
      nn.Linear(features, hidden),
      nn.ReLU(),
      nn.Identity(),
      nn.Linear(hidden, width - features if self.stacked else width),
      nn.ReLU(),
    )

  def forward(self, mel):
    x = self.features(mel.transpose(1, 2)[:, None])  # (B, C, mel, time)
    x = x.permute(0, 3, 2, 1).flatten(2)
    x = torch.cat([x, self.fc(x)], -1) if self.stacked else self.fc(x)
    return x.amax(1) + x.mean(1)


def head(width, hidden, out, bias):
  return nn.Sequential(
    nn.Linear(width, hidden, bias=bias),
    nn.BatchNorm1d(hidden),
    nn.ReLU(),
    nn.Linear(hidden, out, bias=bias),
  )


class Student(nn.Module):
  def __init__(self, encoder, width, hidden, out, bias, joint_views):
    super().__init__()
    self.encoder, self.joint_views = encoder, joint_views
    self.projector = head(width, hidden, out, bias)
    self.predictor = head(out, hidden, out, bias)
    self.predictor_difference = head(out, hidden, out, bias)

  def each(self, f, pair):
    """f of both views: in one pass, or one pass each. pair: a list of two."""
    if self.joint_views:
      return list(f(torch.cat(pair)).chunk(2))
    return [f(x) for x in pair]

  def forward(self, views, mixtures, gamma):
    y = self.each(self.encoder, views)
    w = self.each(self.encoder, mixtures)
    z = self.each(self.projector, y)
    difference = [
      b - g[:, None] * torch.roll(a, -1, 0) for a, b, g in zip(y, w, gamma, strict=True)
    ]
    z_difference = self.each(self.projector, difference)
    return self.each(self.predictor, z), self.each(self.predictor_difference, z_difference)


def cross(predictions, targets):
  terms = [
    2 - 2 * F.cosine_similarity(p, z, dim=-1).mean()
    for p, z in zip(predictions, targets[::-1], strict=True)
  ]
  return sum(terms) / 2


class Loop:
  """Student, teacher and AdamW; weight decay on every parameter of more than one axis that is no
  bias."""

  def __init__(self, student, teacher, weight, betas, eps):
    self.student, self.teacher, self.weight = student.train(), teacher.train(), weight
    named = [
      (n, p)
      for n, p in student.named_parameters()
      if weight or not n.startswith("predictor_difference")
    ]
    decayed = [p for n, p in named if p.ndim > 1 and not n.endswith("bias")]
    rest = [p for n, p in named if not (p.ndim > 1 and not n.endswith("bias"))]
    self.adamw = torch.optim.AdamW([{"params": decayed}, {"params": rest}], betas=betas, eps=eps)

  def step(self, views, mixtures, gamma, *, lr, weight_decay, decay):
    """One update on lists of two (B, T, F) and two (B,); returns (BYOL's loss, the
    subtraction's)."""
    for group, wd in zip(self.adamw.param_groups, (weight_decay, 0.0), strict=True):
      group["lr"], group["weight_decay"] = lr, wd
    with torch.no_grad():
      z = self.teacher.each(self.teacher.projector, self.teacher.each(self.teacher.encoder, views))
    p, p_difference = self.student(views, mixtures, gamma)
    byol, difference = cross(p, z), cross(p_difference, z)
    self.adamw.zero_grad()
    ((1 - self.weight) * byol + self.weight * difference).backward()
    self.adamw.step()
    with torch.no_grad():
      for part in ("encoder", "projector"):
        both = zip(
          getattr(self.teacher, part).parameters(),
          getattr(self.student, part).parameters(),
          strict=True,
        )
        for t, s in both:
          t.mul_(decay).add_((1 - decay) * s)
    return byol.item(), difference.item()
