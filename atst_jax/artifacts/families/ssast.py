"""SSAST's files, as YuanGongND/ssast published them: pre-trained weights of the whole network."""

import dataclasses

from atst_jax.artifacts.torch_files import heads_of, to_variables
from atst_jax.audio.frontend import FRONTENDS
from atst_jax.models.encoders import make_encoder
from atst_jax.models.ssast import FIRST
from atst_jax.util.errors import UserError

SSAST_NORMALIZATION = {"kind": "half_standard", "mean": -4.2677393, "std": 4.5689974}
# heads of the pre-training, and DeiT's classifiers, which SSAST never uses
UNUSED = ("module.cpredlayer.", "module.gpredlayer.", "module.v.head.", "module.v.head_dist.")
SIZES = ("module.p_input_fdim", "module.p_input_tdim")  # mel bins and frames of pre-training
AXES = {"module.v.patch_embed.proj.weight": 4, "module.v.pos_embed": 3, "module.v.cls_token": 3}


def read_ssast(tensors: dict, heads: int | None, seconds: float | None) -> dict:
  """Keyword arguments of `export.write` for SSAST's tensors. Its encoder embeds by the mean over
  patches.

  Args:
    heads: of attention, where the encoder has no released size.
    seconds: of a chunk of long sounds; those of pre-training (10.24) by default. Positions of
      longer chunks are interpolated.
  """
  for name, axes in AXES.items():
    if name not in tensors or tensors[name].ndim != axes:
      raise UserError(f"the encoder lacks {name} with {axes} axes")
  if wrong := [name for name in SIZES if name not in tensors or tensors[name].size != 1]:
    raise UserError(f"lacks the numbers {', '.join(wrong)}: its pre-trained files hold them")
  n_mels, frames = (int(tensors[name].reshape(())) for name in SIZES)
  width, _, patch_mels, patch_frames = tensors["module.v.patch_embed.proj.weight"].shape
  if not 0 < patch_mels <= n_mels <= 1 << 12 or not 0 < patch_frames <= frames <= 1 << 20:
    raise UserError(f"patches of {patch_mels} x {patch_frames} in {n_mels} mel bins x {frames}")
  positions = (n_mels // patch_mels) * (frames // patch_frames)
  if tensors["module.v.pos_embed"].shape[1] != FIRST + positions:
    raise UserError(
      f"holds {tensors['module.v.pos_embed'].shape[1]} positions, not {FIRST} and one for each of "
      f"{positions} patches: patches overlap, or it is a fine-tuned model"
    )
  blocks = {name.split(".")[3] for name in tensors if name.startswith("module.v.blocks.")}
  frontend = FRONTENDS["ssast"]
  if n_mels != frontend.n_mels:
    frontend = dataclasses.replace(frontend, name=f"ssast_{n_mels}", n_mels=n_mels)
  encoder = {
    "kind": "ssast",
    "width": width,
    "depth": len(blocks),
    "heads": heads_of(width, len(blocks), heads),
    "drop_path": 0.0,
    "patch_mels": patch_mels,
    "patch_frames": patch_frames,
    "position_frames": frames,
  }
  chunk = frames
  if seconds is not None:
    chunk = frontend.num_frames(round(seconds * frontend.sample_rate))
    if chunk < patch_frames:
      raise UserError(
        f"--chunk_seconds={seconds}: is shorter than a patch of {patch_frames} frames"
      )
  kept = {k: x for k, x in tensors.items() if k not in SIZES and not k.startswith(UNUSED)}
  return {
    "variables": to_variables(kept, make_encoder(encoder).torch_names()),
    "encoder": encoder,
    "frontend": frontend,
    "normalization": SSAST_NORMALIZATION,
    "chunk_frames": chunk,
    "tail": "weighted",
  }
