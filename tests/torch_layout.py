"""PyTorch state dicts of the golden files as this project's parameter trees."""

import jax.numpy as jnp


def transformer_variables(arrays, prefix):
  """`{prefix}encoder.…`, `{prefix}projector.…` -> (params, batch_stats). mask_embed is unused by
  ATST and left out."""
  torch = {k[len(prefix) :]: jnp.asarray(v) for k, v in arrays.items() if k.startswith(prefix)}

  def linear(name):
    out = {"kernel": torch[f"{name}.weight"].T}
    return {**out, "bias": torch[f"{name}.bias"]} if f"{name}.bias" in torch else out

  norm = lambda name: {"scale": torch[f"{name}.weight"], "bias": torch[f"{name}.bias"]}
  depth = 1 + max(int(k.split(".")[2]) for k in torch if k.startswith("encoder.blocks."))
  encoder = {
    "cls_token": torch["encoder.cls_token"],
    "pos_embed": torch["encoder.pos_embed"],
    "patch_embed": linear("encoder.patch_embed.patch_embed"),
    "norm": norm("encoder.norm"),
  }
  names = {
    "norm1": (norm, "norm1"),
    "qkv": (linear, "attn.qkv"),
    "proj": (linear, "attn.proj"),
    "norm2": (norm, "norm2"),
    "fc1": (linear, "mlp.fc1"),
    "fc2": (linear, "mlp.fc2"),
  }
  for i in range(depth):
    encoder[f"block_{i:02d}"] = {
      k: read(f"encoder.blocks.{i}.{name}") for k, (read, name) in names.items()
    }
  params, batch_stats = {"encoder": encoder}, {}
  for head in ("projector", "predictor"):
    if f"{head}.0.weight" in torch:
      params[head] = {
        "hidden": linear(f"{head}.0"),
        "norm": norm(f"{head}.1"),
        "out": linear(f"{head}.3"),
      }
    if f"{head}.1.running_mean" in torch:
      batch_stats[head] = {
        "norm": {"mean": torch[f"{head}.1.running_mean"], "var": torch[f"{head}.1.running_var"]}
      }
  return params, batch_stats


def cnn_variables(arrays, prefix, heads=True):
  """`{prefix}encoder.features.…`, `{prefix}projector.…` of BYOL-A -> (params, batch_stats)."""
  torch = {k[len(prefix) :]: jnp.asarray(v) for k, v in arrays.items() if k.startswith(prefix)}
  # (out, in, mel, time) -> (time, mel, in, out)
  kernel = {2: lambda w: w.T, 4: lambda w: w.transpose(3, 2, 1, 0)}
  layer = lambda name: {
    "kernel": kernel[torch[f"{name}.weight"].ndim](torch[f"{name}.weight"]),
    "bias": torch[f"{name}.bias"],
  }
  norm = lambda name: {"scale": torch[f"{name}.weight"], "bias": torch[f"{name}.bias"]}
  stats = lambda name: {"mean": torch[f"{name}.running_mean"], "var": torch[f"{name}.running_var"]}
  root = "encoder." if heads else ""
  encoder, encoder_stats = {"fc1": layer(f"{root}fc.0"), "fc2": layer(f"{root}fc.3")}, {}
  for i in range(sum(f"{root}features.{4 * i}.weight" in torch for i in range(4))):
    encoder[f"conv_{i}"] = layer(f"{root}features.{4 * i}")
    encoder[f"norm_{i}"] = norm(f"{root}features.{4 * i + 1}")
    if f"{root}features.{4 * i + 1}.running_mean" in torch:
      encoder_stats[f"norm_{i}"] = stats(f"{root}features.{4 * i + 1}")
  if not heads:
    return encoder, encoder_stats
  params, batch_stats = {"encoder": encoder}, {"encoder": encoder_stats}
  for head in ("projector", "predictor", "predictor_difference"):
    if f"{head}.0.weight" in torch:
      params[head] = {
        "hidden": layer(f"{head}.0"),
        "norm": norm(f"{head}.1"),
        "out": layer(f"{head}.3"),
      }
    if f"{head}.1.running_mean" in torch:
      batch_stats[head] = {"norm": stats(f"{head}.1")}
  return params, batch_stats
