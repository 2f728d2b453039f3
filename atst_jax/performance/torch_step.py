"""The same update in PyTorch, with its fastest parts, for `benchmark step --torch`.

Both views of a batch go through student (forward, backward) and teacher (forward). The heads have
BatchNorm over both views; then come the symmetric loss, AdamW and the teacher's average. Attention
and optimizer are fused, and views lie on the device. There are no crops, Mixup or random resize
crop, which only our step has to pay. `launch/evidence_peer.py` trains with this update on our
views.
"""

import json
import statistics
import subprocess
import sys
import time

from atst_jax.audio.frontend import get_frontend
from atst_jax.models.encoders import ENCODERS
from atst_jax.util.errors import UserError

WINDOW_SECONDS, WARM_UP = 1.0, 3  # as in `speed`


def make_networks(
  torch, *, width, depth, heads, patch_frames, max_frames, n_mels, drop_path, hidden, out
):
  """(student, teacher), each a ModuleDict of "encoder", "projector" and, of the student,
  "predictor". An encoder takes (B, T, F), and the valid frames (B,) or None if all are."""
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
  return make(predictor=head(out)), make()


def make_update(torch, student, teacher, optimizer, *, device, bfloat16, compiled):
  """Returns update(views, length, decay) -> loss, a tensor.

  Args:
    student, teacher: of `make_networks`, on the device. The teacher gets no gradients.
    optimizer: of the student's parameters.
    bfloat16: autocast.
    compiled: by torch.compile.

  `update` takes (2 * B, T, F), the first views of all clips before the second ones, their valid
  frames (2 * B,) or None, and the teacher's decay.
  """
  followed = [*student["encoder"].parameters(), *student["projector"].parameters()]
  average = list(teacher.requires_grad_(False).parameters())
  unit = lambda x: torch.nn.functional.normalize(x.float(), dim=-1)

  def loss_of(views, length):
    with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
      with torch.no_grad():
        z = unit(teacher["projector"](teacher["encoder"](views, length)))
      p = unit(student["predictor"](student["projector"](student["encoder"](views, length))))
    return 2 - 2 * (p * z.roll(len(views) // 2, 0)).sum(-1).mean()

  loss_of = torch.compile(loss_of) if compiled else loss_of

  def update(views, length, decay):
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(views, length)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(average, followed, 1 - decay)
    return loss.detach()

  return update


def measure(*, batch, frames, bfloat16, compiled, device, repeats, **sizes) -> list[float]:
  """Seconds per update in each of `repeats` windows of at least WINDOW_SECONDS.

  Args:
    batch: clips, of two views each.
    frames: of a view.
    bfloat16: autocast; float32 otherwise (TF32 products on a GPU).
    compiled: by torch.compile.
    device: "cpu" or "cuda".
    sizes: of `make_networks`.
  """
  import torch

  torch.manual_seed(0)
  torch.backends.cuda.matmul.allow_tf32 = True
  student, teacher = (network.to(device) for network in make_networks(torch, **sizes))
  teacher.load_state_dict({k: v for k, v in student.state_dict().items() if "predictor" not in k})
  optimizer = torch.optim.AdamW(
    student.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.04, fused=True
  )
  views = 0.4 * torch.randn(2 * batch, frames, sizes["n_mels"], device=device)
  options = {"device": device, "bfloat16": bfloat16, "compiled": compiled}
  update = make_update(torch, student, teacher, optimizer, **options)

  def run(steps):
    for _ in range(steps):
      update(views, None, 0.99)
    if device == "cuda":
      torch.cuda.synchronize()

  seconds, steps = [], WARM_UP
  for number in range(repeats + 2):
    started = time.perf_counter()
    run(steps)
    seconds.append((time.perf_counter() - started) / steps)
    steps = 1 if number == 0 else max(1, round(WINDOW_SECONDS / seconds[1]))
  return seconds[2:]


def _child(*command: str, what: str):
  """The JSON that a process prints. Raises UserError with its last line if it fails."""
  run = subprocess.run(
    [sys.executable, "-m", *command], capture_output=True, text=True, check=False
  )
  if run.returncode:
    reason = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
    raise UserError(f"--torch: {what} failed: {reason[-1].removeprefix('error: ')}")
  return json.loads(run.stdout.splitlines()[-1])


def beside(config, argv: list[str], *, repeats: int, compiled: bool) -> dict:
  """Measures `benchmark step` twice and PyTorch's step between, each in a process of its own, which
  frees its memory.

  Args:
    config: gives the sizes of PyTorch's step.
    argv: of `benchmark`.

  Returns:
    the values of `benchmark step --json`, the clips per second of the second time and of PyTorch,
    and the ratio of our mean to PyTorch's.

  Raises:
    UserError: for a config whose step is not written here, several devices, or a failed process.
  """
  encoder = dict(config["encoder"])
  if (
    config["objective"] != "byol"
    or not ENCODERS[encoder.pop("kind")].has_blocks
    or config["difference"]["weight"]
    or not config["joint_views"]
  ):
    raise UserError(
      "--torch compares a transformer's step of BYOL without the subtraction; take "
      "configs/atst_small.py, or set --config.difference.weight=0"
    )
  argv = [flag for flag in argv if flag not in ("--torch", "--torch_compile", "--json")]
  ours = lambda: _child("atst_jax.benchmark", *argv, "--json", what="the step")
  result = ours()
  if result["devices"] > 1:
    raise UserError(
      f"--torch compares on one device, here are {result['devices']}; hide the others"
    )
  request = {
    **encoder,
    "n_mels": get_frontend(config["data"]["frontend"]).n_mels,
    "repeats": repeats,
    "hidden": config["heads"]["hidden"],
    "out": config["heads"]["out"],
    "batch": config["batch_size"],
    "frames": config["views"]["crop_frames"],
    "compiled": compiled,
    "bfloat16": result["dtype"] == "bfloat16",
    "device": "cpu" if result["device"] == "cpu" else "cuda",
  }
  seconds = _child(
    "atst_jax.performance.torch_step",
    json.dumps(request),
    what="PyTorch's step (pip install -e .[torch])",
  )
  theirs, again = config["batch_size"] / statistics.median(seconds), ours()["clips_per_second"]
  return {
    **result,
    "torch": "compiled" if compiled else "eager",
    "torch_clips_per_second": theirs,
    "again_clips_per_second": again,
    "times_torch": (result["clips_per_second"] + again) / 2 / theirs,
  }


if __name__ == "__main__":
  print(json.dumps(measure(**json.loads(sys.argv[1]))))
