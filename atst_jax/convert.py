"""Released PyTorch weights to an exported encoder, and an exported encoder to a PyTorch file.

  python -m atst_jax.convert --from=small.ckpt --to=encoders/atst_small
  python -m atst_jax.convert --from=AudioNTT2022.pth --to=encoders/byola --mean=-9.660 --std=4.722
  python -m atst_jax.convert --from=AudioNTT2020.pth --to=encoders/byola_v1 --frontend=byola_htk \
    --mean=-5.49 --std=5.04
  python -m atst_jax.convert --from=SSAST-Base-Patch-400.pth --to=encoders/ssast
  python -m atst_jax.convert --from=vggish-10086976.pth --to=encoders/vggish
  python -m atst_jax.convert --from=encoders/mine --to=mine.pth [--layout=lightning]

Reads both layouts of ATST's checkpoints (the teacher's encoder), BYOL-A's v1 and v2, SSAST's, and
VGGish's (harritaylor/torchvggish). Sizes follow from the tensors, but for the heads of other than
the released sizes. Every tensor of the encoder must be there, and no other. Writes the layouts that
EVAR and audiossl load. Needs PyTorch: pip install -e .[torch]
"""

import os
import sys

from atst_jax.artifacts.convert import (
  LAYOUTS,
  RELEASED_FRONTENDS,
  RELEASED_NORMALIZATIONS,
  from_torch,
  to_torch,
)
from atst_jax.audio.frontend import FRONTENDS, FrontEnd
from atst_jax.models.encoders import make_encoder
from atst_jax.util.cli import Parser, guard, leave
from atst_jax.util.errors import UserError


def main(argv=None) -> int:
  """Returns the exit code, that of `cli.guard`."""
  parser = Parser("atst_jax.convert", __doc__)
  add = parser.add_argument
  add(
    "--from",
    dest="source",
    required=True,
    help="a PyTorch file, or the folder of an exported encoder",
  )
  add("--to", required=True, help="the folder to make, or FILE.pth")
  add("--heads", type=int, help="attention heads, where the encoder has no released size")
  add("--chunk_seconds", type=float, help="segments of the pre-training; the checkpoint's, or 6")
  add(
    "--frontend",
    help="BYOL-A: byola (librosa's and nnAudio's Slaney filters) or byola_htk (torchaudio's); v2's "
    "is byola, v1's must be stated",
  )
  add("--mean", type=float, help="BYOL-A: mean of ln(power + 2^-23), with that front-end")
  add("--std", type=float, help="BYOL-A: its standard deviation")
  add(
    "--postprocess",
    help="VGGish: the file of its post-processor (vggish_pca_params-970ea276.pth); vectors are "
    "then principal components as whole numbers from 0 to 255",
  )
  add("--layout", choices=LAYOUTS, help="of an ATST file to write (default dino, which EVAR reads)")
  return guard(lambda: _main(parser.parse(argv)))


READING = ("heads", "chunk_seconds", "frontend", "mean", "std", "postprocess")


def _main(flags) -> None:
  writes = os.path.isdir(flags.source)
  for name in READING if writes else ("layout",):
    if getattr(flags, name) is not None:
      way = "reading" if writes else "writing"
      raise UserError(f"--{name} is for {way} a PyTorch file; leave it out")
  if writes:
    if os.path.exists(flags.to) or not flags.to.endswith((".pth", ".ckpt", ".pt")):
      raise UserError(f"--to={flags.to}: must be a new file that ends in .pth, .ckpt or .pt")
    config = to_torch(flags.source, flags.to, flags.layout or LAYOUTS[0])
    print(f"{flags.to}: the encoder of {flags.source}")
    family = make_encoder(config["encoder"]).family
    if family != "atst":
      lost = [key for key in ("max_seconds", "fill_frames") if config[key] is not None]
      if lost:
        print(
          f"note: such a file has no place for {' and '.join(lost)} of this export; sounds that "
          "are longer or shorter get other vectors from it",
          file=sys.stderr,
        )
    released = FRONTENDS[RELEASED_FRONTENDS[family]]
    if FrontEnd.from_json(config["frontend"]).hash != released.hash:
      print(
        f"note: released loaders compute the front-end {released.name!r}, this encoder was trained "
        f"with {config['frontend']['name']!r}; its vectors will differ there",
        file=sys.stderr,
      )
    released = RELEASED_NORMALIZATIONS.get(family, config["normalization"])
    if config["normalization"] != released:
      print(
        f"note: released loaders normalise by {released}, this encoder by "
        f"{config['normalization']}; its vectors will differ there",
        file=sys.stderr,
      )
    return
  encoder = from_torch(
    flags.source,
    flags.to,
    heads=flags.heads,
    seconds=flags.chunk_seconds,
    mean=flags.mean,
    std=flags.std,
    frontend=flags.frontend,
    postprocess=flags.postprocess,
  )
  print(f"{flags.to}: {encoder}, read back and run")


if __name__ == "__main__":
  leave(main())
