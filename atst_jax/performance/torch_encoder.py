"""An encoder in eager PyTorch for `benchmark embed --torch`: a process that answers requests, so
that both are measured in turns.

The network is that of `torch_update`, the rule that of `Model.embed`: a longer clip is cut into
chunks. Each batch has chunks of one length, without padding.
"""

import json
import subprocess
import sys
import time

from atst_jax.util.errors import UserError

BATCH = 32  # clips at a time: PyTorch is slower with fewer


def serve(*, device: str, bfloat16: bool, **sizes) -> None:
  """Reads {"chunks": lengths of a clip's chunks, "clips": number} from standard input, a line each,
  and prints the seconds that so many clips take.

  Args:
    device: "cpu" or "cuda".
    bfloat16: autocast.
    sizes: of `torch_update.make_networks`.
  """
  import torch

  from atst_jax.performance.torch_update import make_networks

  encoder = make_networks(torch, **sizes, drop_path=0.0, hidden=8, out=8)[0]["encoder"]
  encoder.to(device).eval()
  with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
    for line in sys.stdin:
      request = json.loads(line)
      started = time.perf_counter()
      for first in range(0, request["clips"], BATCH):
        rows = min(BATCH, request["clips"] - first)
        for frames in request["chunks"]:
          encoder(torch.randn(rows, frames, sizes["n_mels"], device=device), None)
      if device == "cuda":
        torch.cuda.synchronize()
      print(json.dumps(time.perf_counter() - started), flush=True)


class TorchEncoder:
  """The process; close it by `with`."""

  def __init__(self, encoder: dict, n_mels: int, *, device: str, bfloat16: bool):
    """`encoder`: a transformer's sizes, as a config has them."""
    names = ("width", "depth", "heads", "patch_frames", "max_frames")
    sizes = {name: encoder[name] for name in names}
    request = {**sizes, "n_mels": n_mels, "device": device, "bfloat16": bfloat16}
    self._process = subprocess.Popen(
      [sys.executable, "-m", "atst_jax.performance.torch_encoder", json.dumps(request)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def __enter__(self) -> "TorchEncoder":
    return self

  def __exit__(self, *_) -> None:
    self._process.kill()
    self._process.communicate()

  def seconds(self, chunks: list[int], clips: int) -> float:
    """That so many clips take, whose chunks have these lengths. Raises UserError if the process
    failed."""
    assert self._process.stdin is not None and self._process.stdout is not None
    try:
      print(json.dumps({"chunks": chunks, "clips": clips}), file=self._process.stdin, flush=True)
      answer = self._process.stdout.readline()
    except BrokenPipeError:
      answer = ""
    if not answer:
      words = self._process.communicate()[1].strip().splitlines() or ["it ended"]
      raise UserError(f"--torch: PyTorch's encoder (pip install -e .[torch]) failed: {words[-1]}")
    return json.loads(answer)


if __name__ == "__main__":
  serve(**json.loads(sys.argv[1]))
