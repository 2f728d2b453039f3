"""PyTorch state dicts of the golden files as this project's parameter trees."""

import jax.numpy as jnp


def transformer_variables(arrays, prefix):
  """`{prefix}encoder.…`, `{prefix}projector.…` -> (params, batch_stats). mask_embed is unused by ATST and left out."""
  torch = {k[len(prefix) :]: jnp.asarray(v) for k, v in arrays.items() if k.startswith(prefix)}

  def linear(name):
    out = {"kernel": torch[f"{name}.weight"].T}
    return {**out, "bias": torch[f"{name}.bias"]} if f"{name}.bias" in torch else out

  norm = lambda name: {"scale": torch[f"{name}.weight"], "bias": torch[f"{name}.bias"]}
  depth = 1 + max(int(k.split(".")[2]) for k in torch if k.startswith("encoder.blocks."))
  encoder = {"cls_token": torch["encoder.cls_token"], "pos_embed": torch["encoder.pos_embed"],
             "patch_embed": linear("encoder.patch_embed.patch_embed"), "norm": norm("encoder.norm")}  # fmt: skip
  names = {"norm1": (norm, "norm1"), "qkv": (linear, "attn.qkv"), "proj": (linear, "attn.proj"),
           "norm2": (norm, "norm2"), "fc1": (linear, "mlp.fc1"), "fc2": (linear, "mlp.fc2")}  # fmt: skip
  for i in range(depth):
    encoder[f"block_{i:02d}"] = {k: read(f"encoder.blocks.{i}.{name}") for k, (read, name) in names.items()}
  params, batch_stats = {"encoder": encoder}, {}
  for head in ("projector", "predictor"):
    if f"{head}.0.weight" in torch:
      params[head] = {"hidden": linear(f"{head}.0"), "norm": norm(f"{head}.1"), "out": linear(f"{head}.3")}
    if f"{head}.1.running_mean" in torch:
      batch_stats[head] = {"norm": {"mean": torch[f"{head}.1.running_mean"], "var": torch[f"{head}.1.running_var"]}}
  return params, batch_stats
