"""PyTorch state dicts of networks as this project's parameter trees."""

import jax.numpy as jnp

from atst_jax.artifacts.torch_files import turn

HEADS = ("projector", "predictor", "predictor_difference")


def head_names(bias):
  """Names of a projector's or predictor's tensors in PyTorch, and where they belong here."""
  names = {
    "0.weight": ("params", "hidden", "kernel"),
    "3.weight": ("params", "out", "kernel"),
    "1.weight": ("params", "norm", "scale"),
    "1.bias": ("params", "norm", "bias"),
    "1.running_mean": ("batch_stats", "norm", "mean"),
    "1.running_var": ("batch_stats", "norm", "var"),
  }
  biases = {"0.bias": ("params", "hidden", "bias"), "3.bias": ("params", "out", "bias")}
  return names | (biases if bias else {})


def network_names(encoder):
  """The same of a whole network: {"encoder.cls_token": ("params", "encoder", "cls_token"), …}."""
  parts = {"encoder": encoder.torch_names(), **dict.fromkeys(HEADS, head_names(True))}
  return {
    f"{part}.{name}": (path[0], part, *path[1:])
    for part, names in parts.items()
    for name, path in names.items()
  }


def variables_in(arrays, prefix, names):
  """(params, batch_stats) of those tensors `{prefix}NAME` that are there."""
  variables = {"params": {}, "batch_stats": {}}
  for name, (*path, last) in names.items():
    if prefix + name in arrays:
      node = variables
      for part in path:
        node = node.setdefault(part, {})
      node[last] = jnp.asarray(turn(arrays[prefix + name]))
  return variables["params"], variables["batch_stats"]
