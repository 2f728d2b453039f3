"""Twenty steps of the trainer's own step, from clips and weights that NumPy draws: what it drew,
the views, the losses and how far the parameters went."""

import functools
import pathlib

import jax
import numpy as np

from atst_jax.artifacts.torch_files import to_variables, turn
from atst_jax.method.mixtures import make_mixtures, mixing_options
from atst_jax.method.subtraction import Subtraction
from atst_jax.method.views import make_views
from atst_jax.models.encoders import make_encoder
from atst_jax.pretraining import recipe
from tests.tiny import tiny_config
from tests.torch_layout import HEADS, head_names

GOLDEN = pathlib.Path(__file__).parent / "golden" / "trajectories.npz"
KINDS = ("transformer", "cnn")
STEPS, CLIPS, FRAMES = 20, 8, 64
COMMON = {
  "batch_size": "8",
  "data__streams": "4",
  "views__group": "8",
  "total_steps": "20",
  "warmup_steps": "5",
  "difference__weight": "0.3",
}
TRANSFORMER = {
  "encoder__drop_path": "0",
  "optimizer__base_lr": "3e-2",
  "optimizer__weight_decay_start": "2",
  "optimizer__weight_decay_end": "20",
}
BYOLA = {
  "views__crop_frames": "16",
  "encoder__width": "1056",
  "encoder__hidden": "24",
  "encoder__dropout": "0",
  "optimizer__base_lr": "1e-4",
  "optimizer__eps": "1e-4",
  "views__normalization__mean": "-6",
  "views__normalization__std": "7",
  "warmup_steps": "0",
}
DRAWS = ("start", "shift", "weight", "box", "fade", "gamma")


def config_of(kind):
  """The resolved config of a kind of encoder."""
  file, changes = {"transformer": ("base.py", TRANSFORMER), "cnn": ("byola.py", BYOLA)}[kind]
  return recipe.resolve(tiny_config(file=file, **{**COMMON, **changes}), None)


def clips_of(step):
  """(B, T, F) dB of a step: a few bands that swell, so that clips differ, and noise."""
  rng = np.random.default_rng([3, step])
  band = rng.uniform(0, 64, (CLIPS, 3, 1, 1))
  time = rng.uniform(0, FRAMES, (CLIPS, 3, 1, 1))
  distance = ((np.arange(64) - band) / 8) ** 2 + ((np.arange(FRAMES)[:, None] - time) / 20) ** 2
  mel = -60 + 50 * np.exp(-distance).sum(1) + rng.normal(0, 5, (CLIPS, FRAMES, 64))
  return mel.astype(np.float16)


def names_of(config):
  """{part: {PyTorch's name: path}} of encoder, projector and both predictors."""
  names = dict.fromkeys(HEADS, head_names(config.heads.use_bias))
  return {"encoder": make_encoder(config.encoder).torch_names(), **names}


def leaf(tree, path):
  """The array at a path."""
  return functools.reduce(lambda node, key: node[key], path, tree)


def weights_of(config, params, batch_stats):
  """{part: {PyTorch's name: array}}, drawn for shapes alone: those of a state of this config."""
  out, number = {}, 0
  for part, names in names_of(config).items():
    here = {"params": params[part], "batch_stats": batch_stats.get(part, {})}
    out[part] = {}
    for name in sorted(names):
      shape = turn(np.empty(leaf(here, names[name]).shape)).shape
      x = np.random.default_rng([7, number]).standard_normal(shape)
      number += 1
      if "running" in name:
        x = np.full(shape, float(name.endswith("var")))
      elif name in ("cls_token", "pos_embed"):
        x = 0.02 * x
      elif len(shape) > 1:
        x = x * np.prod(shape[1:]) ** -0.5
      else:
        x = 0.1 * x + (name.endswith("weight"))
      out[part][name] = x.astype(np.float32)
  return out


def digest(views):
  """(B, K, T, F) -> (B, K, 2): two fixed random projections of each view."""
  size = views.shape[-2] * views.shape[-1]
  basis = np.random.default_rng(5).standard_normal((size, 2)) / np.sqrt(size)
  return np.asarray(views, np.float64).reshape(*views.shape[:2], size) @ basis


def moved(before, after):
  """{part: distance that its matrices moved}; vectors of which BatchNorm makes nothing move by
  rounding noise."""
  square = lambda part: sum(
    np.sum(np.square(np.float64(x) - after[part][name]))
    for name, x in before[part].items()
    if x.ndim > 1
  )
  return {part: np.sqrt(square(part)) for part in after}


def _tensors(config, params):
  """`params` under PyTorch's names."""
  names = {part: tree for part, tree in names_of(config).items() if part in params}
  return {
    part: {
      name: turn(np.asarray(leaf({"params": params[part]}, path)))
      for name, path in tree.items()
      if path[0] == "params"
    }
    for part, tree in names.items()
  }


def _beginning(shapes):
  """A fresh state but for its weights: variances 1, all else 0."""
  values = lambda path, x: np.full(x.shape, getattr(path[-1], "key", None) == "var", x.dtype)
  return jax.tree_util.tree_map_with_path(values, shapes)


@functools.cache
def product(kind):
  """What this project computes: {name: array} over the steps, and the weights it began from."""
  config = config_of(kind)
  init, step = recipe.build(config, ragged=False)
  state, step = _beginning(jax.eval_shape(init, jax.random.key(1))), jax.jit(step)
  weights = weights_of(config, state.params, state.batch_stats)
  variables = {p: to_variables(weights[p], names) for p, names in names_of(config).items()}
  params = {part: tree["params"] for part, tree in variables.items()}
  taught = {part: params[part] for part in ("encoder", "projector")}
  copy = functools.partial(jax.tree.map, np.copy)  # the teacher's are its own
  state = state._replace(params=copy(params), teacher=state.teacher._replace(params=copy(taught)))
  mixing = mixing_options(config.views, Subtraction(**config.difference), config.batch_size)

  @jax.jit
  def draw(count, batch):
    """What the train step draws for itself."""
    key = jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), count)
    view_key, mix_key, _ = jax.random.split(key, 3)
    views, _, drawn = make_views(
      view_key, batch["mel"], batch["length"], ragged=False, apart=True, **config.views.to_dict()
    )
    mixed = make_mixtures(mix_key, views, None, drawn["post_std"], **mixing)
    return views, mixed.views, {**drawn, "gamma": mixed.gamma}

  found = {name: [] for name in (*DRAWS, "views", "mixtures", "losses")}
  for count in range(STEPS):
    batch = {"mel": clips_of(count), "length": np.full(CLIPS, FRAMES, np.int32)}
    views, mixtures, drawn = draw(count, batch)
    state, metrics = step(state, batch)
    for name in DRAWS:
      found[name].append(np.asarray(drawn[name]))
    found["views"].append(digest(views))
    found["mixtures"].append(digest(mixtures))
    found["losses"].append([float(metrics[f"loss_{name}"]) for name in ("byol", "difference")])
  out = {name: np.array(x) for name, x in found.items()}
  out["view"] = np.asarray(views[0])  # of the last step
  for name, tree in (("student", state.params), ("teacher", state.teacher.params)):
    far = moved(weights, _tensors(config, tree))
    out[name] = np.array([far[part] for part in sorted(far)])
  return out, weights
