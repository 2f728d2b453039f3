"""The step in PyTorch, for `benchmark step --torch`: `torch_update` on views that lie ready.

There are no crops, Mixup or random resize crop, which only our step has to pay. The mixtures of the
subtraction are made in the step, as in ours. The last block computes all tokens; in ours CLS alone.
"""

import json
import statistics
import subprocess
import sys
import time

from ml_collections import ConfigDict

from atst_jax.audio.frontend import get_frontend
from atst_jax.method.subtraction import Subtraction
from atst_jax.performance import speed
from atst_jax.performance.torch_update import COMPUTED, check, make_networks, make_update, mixing_of
from atst_jax.pretraining.checks import is_ragged
from atst_jax.util.errors import UserError


def draw_gamma(torch, clips: int, options: Subtraction, device: str):
  """γ of both views, (2 * clips,), as `mixtures.draw_gamma`."""
  shape = (1 if options.gamma_shared else 2, clips if options.gamma_per == "clip" else 1)
  low, high = options.gamma_min, options.gamma_max
  gamma = low + (high - low) * torch.rand(shape, device=device)
  return gamma.expand(2, clips).reshape(-1)


def measure(*, batch, frames, bfloat16, compiled, device, repeats, mixing, **sizes) -> list[float]:
  """Seconds per update in each of `repeats` windows of at least WINDOW_SECONDS.

  Args:
    batch: clips, of two views each.
    frames: of a view.
    bfloat16: autocast; float32 otherwise, without TF32, as ours.
    compiled: by torch.compile.
    device: "cpu" or "cuda".
    mixing: of `mixtures.mixing_options`, with a dict of the options; None where λ is 0.
    sizes: of `make_networks`.
  """
  import torch

  torch.manual_seed(0)
  torch.set_float32_matmul_precision("highest")
  networks = make_networks(torch, **sizes, differences=mixing is not None)
  student, teacher = (network.to(device) for network in networks)
  teacher.load_state_dict({k: v for k, v in student.state_dict().items() if "predictor" not in k})
  optimizer = torch.optim.AdamW(
    student.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.04, fused=True
  )
  views = 0.4 * torch.randn(2 * batch, frames, sizes["n_mels"], device=device)
  if mixing is not None:
    mixing = {**mixing, "options": Subtraction(**mixing["options"])}
  computing = {"device": device, "bfloat16": bfloat16, "compiled": compiled}
  update = make_update(torch, student, teacher, optimizer, **computing, mixing=mixing)
  post_std = torch.ones((), device=device)

  def run(steps):
    for _ in range(steps):
      drawn = []
      if mixing is not None:
        drawn = [draw_gamma(torch, batch, mixing["options"], device), post_std]
      update(views, None, 0.99, *drawn)
    if device == "cuda":
      torch.cuda.synchronize()

  seconds, steps = [], speed.WARM_UP
  for number in range(repeats + 2):
    started = time.perf_counter()
    run(steps)
    seconds.append((time.perf_counter() - started) / steps)
    steps = 1 if number == 0 else max(1, round(speed.WINDOW_SECONDS / seconds[1]))
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


def beside(config: ConfigDict, argv: list[str], *, repeats: int, compiled: bool) -> dict:
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
  check(config, COMPUTED)
  if is_ragged(config, None):
    raise UserError(
      "--torch compares views of one length; leave out views.first_frames and views.second_frames"
    )
  argv = [flag for flag in argv if flag not in ("--torch", "--torch_compile", "--json")]
  ours = lambda: _child("atst_jax.benchmark", *argv, "--json", what="the step")
  result = ours()
  if result["devices"] > 1:
    raise UserError(
      f"--torch compares on one device, here are {result['devices']}; hide the others"
    )
  config = config.copy_and_resolve_references()
  # with a type that is named no device is asked, whose memory PyTorch's step needs
  config.data.source, config.dtype = "synthetic", result["dtype"]
  mixing = mixing_of(speed.resolved(config, None))
  encoder = {key: value for key, value in config.encoder.items() if key != "kind"}
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
    "mixing": mixing and {**mixing, "options": mixing["options"]._asdict()},
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
