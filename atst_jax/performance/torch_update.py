"""The method's update in PyTorch, with its fastest parts: `method.train_step` for transformers.

Both views of a batch go through student (forward, backward) and teacher (forward). The heads have
BatchNorm over both views. Where λ is not 0, views are mixed with their neighbours', and the student
encodes the mixtures. Then come the losses, the optimizer and the teacher's average. `torch_step`
measures this update, and `launch/evidence_peer.py` trains with it on our views.

Letters: B clips, T frames, F mel bins, D width. Rows of both views are the B first views, then the
B second ones.
"""

from ml_collections import ConfigDict

from atst_jax.method.groups import SILENT
from atst_jax.method.mixtures import mixing_options, mixing_scale
from atst_jax.method.subtraction import Subtraction
from atst_jax.util.config import flatten
from atst_jax.util.errors import UserError

# Keys that decide what an update computes, and what PyTorch's can be.
COMPUTED = {
  "objective": ("byol",),
  "encoder.kind": ("transformer",),
  "joint_views": (True,),
  "heads.use_bias": (False,),
  "difference.level": ("clip",),
  "optimizer.form": ("optax", "transformers"),
  "teacher.before_step": (False,),
  "compute.accumulation": (1,),
  "compute.remat": (False,),
}


def check(config: ConfigDict, known: dict[str, tuple]) -> None:
  """Raises UserError for a config whose update is not the one here.

  Args:
    known: `COMPUTED`, or a table of more.
  """
  values = flatten(config)
  for key, choices in known.items():
    value = values.get(key, choices[0])
    if value not in choices:
      raise UserError(
        f"--config.{key}={value}: PyTorch's update knows {', '.join(map(str, choices))} alone; "
        "leave it out, or take configs/atst_small.py or configs/base.py"
      )


def mixing_of(config: ConfigDict) -> dict | None:
  """`mixtures.mixing_options` of a resolved config; None where λ is 0."""
  options = Subtraction(**config.difference)
  return mixing_options(config.views, options, config.batch_size) if options.weight else None


def make_networks(
  torch,
  *,
  width,
  depth,
  heads,
  patch_frames,
  max_frames,
  n_mels,
  drop_path,
  hidden,
  out,
  differences=False,
):
  """(student, teacher), each a ModuleDict of "encoder", "projector" and, of the student,
  "predictor" and with `differences` "predictor_difference". An encoder takes (B, T, F), and the
  valid frames (B,) or None if all are."""
  nn, functional = torch.nn, torch.nn.functional

  class Attention(nn.Module):
    def __init__(self):
      super().__init__()
      self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x, keep):
      B, N, _ = x.shape
      split = self.qkv(x).reshape(B, N, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
      y = functional.scaled_dot_product_attention(*split, attn_mask=keep)
      return self.proj(y.transpose(1, 2).reshape(B, N, width))

  class Residual(nn.Module):
    def __init__(self, rate, *layers):
      super().__init__()
      self.rate, self.norm = rate, nn.LayerNorm(width, eps=1e-6)
      self.layers = nn.ModuleList(layers)

    def forward(self, x, keep):
      y = self.norm(x)
      for layer in self.layers:
        y = layer(y, keep) if isinstance(layer, Attention) else layer(y)
      if self.rate:
        y = (
          y * (torch.rand(len(y), 1, 1, device=y.device) >= self.rate).to(y.dtype) / (1 - self.rate)
        )
      return x + y

  class Encoder(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = nn.Linear(patch_frames * n_mels, width)
      self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
      self.position = nn.Parameter(0.02 * torch.randn(1, max_frames // patch_frames + 1, width))
      layers = []
      for rate in (drop_path * i / max(depth - 1, 1) for i in range(depth)):
        layers += [
          Residual(rate, Attention()),
          Residual(rate, nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
        ]
      self.blocks, self.norm = nn.ModuleList(layers), nn.LayerNorm(width, eps=1e-6)

    def forward(self, mel, length):
      B, T, F = mel.shape
      N = T // patch_frames
      patches = (
        mel[:, : N * patch_frames].reshape(B, N, patch_frames, F).transpose(2, 3).reshape(B, N, -1)
      )
      x = (
        torch.cat([self.cls.expand(B, 1, width), self.embed(patches)], 1)
        + self.position[:, : N + 1]
      )
      keep = None
      if length is not None:
        tokens = length // patch_frames + 1
        keep = torch.arange(N + 1, device=mel.device) < tokens[:, None]
        keep = keep[:, None, None]  # (B, heads, queries, tokens)
      for block in self.blocks:
        x = block(x, keep)
      return self.norm(x[:, 0])

  def head(features):
    return nn.Sequential(
      nn.Linear(features, hidden, bias=False),
      nn.BatchNorm1d(hidden),
      nn.ReLU(),
      nn.Linear(hidden, out, bias=False),
    )

  make = lambda **more: nn.ModuleDict({"encoder": Encoder(), "projector": head(width), **more})
  predictors = {"predictor": head(out)}
  if differences:
    predictors["predictor_difference"] = head(out)
  return make(**predictors), make()


def neighbours(x, group: int):
  """The next clip's of the same group, cyclically: (N, ...) -> (N, ...), N a multiple of `group`
  (`groups.shift_in_group` of each view)."""
  return x.reshape(-1, group, *x.shape[1:]).roll(-1, 1).reshape(x.shape)


def mix(torch, views, length, gamma, post_std, *, options, k, group):
  """`mixtures.make_mixtures`, from given γ.

  Args:
    views: (N, T, F) float32; of one view where `options.symmetric` is False.
    length: (N,) valid frames, or None if all are.
    gamma: (N,), the neighbour's share.
    post_std: (), what the post-normalisation of the views divided by; 1 without it.
    options, k, group: of `mixtures.mixing_options`.

  Returns:
    mixtures (N, T, F) and their valid frames (N,) or None.
  """
  scale = mixing_scale(domain=options.mix_domain, stage=options.mix_stage, k=k, post_std=post_std)
  valid = lambda frames: (torch.arange(views.shape[1], device=views.device) < frames[:, None])[
    ..., None
  ]
  if length is not None:
    views = torch.where(valid(length), views, SILENT)

  def level(x, length):
    frames = x.shape[1] if length is None else length[:, None, None]
    total = torch.logsumexp(scale * x, (1, 2), keepdim=True)
    return (total - torch.as_tensor(frames * x.shape[2], device=x.device).log()) / scale

  neighbour = neighbours(views, group)
  next_length = None if length is None else neighbours(length, group)
  if options.match_level:
    neighbour = neighbour + level(views, length) - level(neighbour, next_length)
  share = gamma[:, None, None]
  mixed = torch.logaddexp(scale * neighbour + share.log(), scale * views + (-share).log1p()) / scale
  if next_length is not None:
    length = torch.maximum(length, next_length)
    mixed = torch.where(valid(length), mixed, 0)
  if options.renormalize == "batch":
    mixed = _normalize(torch, mixed, None if length is None else valid(length))
  return mixed, length


def _normalize(torch, x, valid):
  """`normalization.normalize_batch` of (N, T, F) with (N, T, 1) or None: x normalised."""
  values = x.expand(x.shape) if valid is None else x.masked_select(valid)
  std, mean = torch.std_mean(values)
  x = (x - mean) / std.clamp_min(torch.finfo(torch.float32).eps)
  return x if valid is None else x * valid


def make_update(torch, student, teacher, optimizer, *, device, bfloat16, compiled, mixing=None):
  """Returns update(views, length, decay, gamma=None, post_std=None) -> loss, a tensor.

  Args:
    student, teacher: of `make_networks`, on the device. The teacher gets no gradients.
    optimizer: of the student's parameters.
    bfloat16: autocast.
    compiled: by torch.compile.
    mixing: of `mixtures.mixing_options`; None where λ is 0.

  `update` takes views (2 * B, T, F), their valid frames (2 * B,) or None, and the teacher's decay;
  with `mixing` also γ (2 * B,) and `post_std` of `mix`.
  """
  followed = [*student["encoder"].parameters(), *student["projector"].parameters()]
  average = list(teacher.requires_grad_(False).parameters())
  unit = lambda x: torch.nn.functional.normalize(x.float(), dim=-1)
  distance = lambda p, z: 2 - 2 * (unit(p) * z[: len(p)]).sum(-1).mean()

  def subtract(views, length, y, taught, gamma, post_std):
    """The differences (2 * B or B, D) of mixtures and neighbours."""
    options = mixing["options"]
    rows = len(views) if options.symmetric else len(views) // 2
    frames = None if length is None else length[:rows]
    with torch.no_grad():
      mixed, frames = mix(torch, views[:rows], frames, gamma[:rows], post_std, **mixing)
    subtrahend = y if options.subtrahend == "student" else taught
    subtrahend = neighbours(subtrahend, mixing["group"])[:rows]
    if options.stop_gradient:
      subtrahend = subtrahend.detach()
    share = gamma[:rows, None]
    difference = student["encoder"](mixed, frames) - share * subtrahend
    return difference / (1 - share) if options.rescale else difference

  def loss_of(views, length, gamma, post_std):
    with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
      with torch.no_grad():
        taught = teacher["encoder"](views, length)
        z = unit(teacher["projector"](taught)).roll(len(views) // 2, 0)
      y, project = student["encoder"](views, length), student["projector"]
      if mixing is None:
        return distance(student["predictor"](project(y)), z)
      difference = subtract(views, length, y, taught, gamma, post_std)
      if mixing["options"].joint_projector:
        plain, subtracted = project(torch.cat([y, difference])).chunk(2)
      else:
        plain, subtracted = project(y), project(difference)
      loss = distance(student["predictor"](plain), z)
      loss_difference = distance(student["predictor_difference"](subtracted), z)
    weight = mixing["options"].weight
    return (1 - weight) * loss + weight * loss_difference

  loss_of = torch.compile(loss_of) if compiled else loss_of

  def update(views, length, decay, gamma=None, post_std=None):
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(views, length, gamma, post_std)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(average, followed, 1 - decay)
    return loss.detach()

  return update
