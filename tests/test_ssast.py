"""SSAST against the released code's numbers (../shared/golden): encoder, masks, losses."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atst_jax.artifacts import export
from atst_jax.artifacts.torch_files import turn
from atst_jax.models.ssast import PatchTransformer, place, unfold
from atst_jax.objectives.masking import as_bool, cluster_mask, uniform_mask
from atst_jax.objectives.objective import Student
from atst_jax.objectives.ssast import Ssast, discriminative_loss
from atst_jax.pretraining import recipe
from atst_jax.pretraining.checks import check
from atst_jax.runtime.mesh import make_mesh, put_batch
from atst_jax.util.errors import UserError
from configs import real_small
from tests.drawn import drawn_encoder, first_loss
from tests.tiny import tiny_config

PATCHES = {"patch": (16, 16), "frame": (64, 4)}
ENCODER = {"width": 48, "depth": 2, "heads": 3, "drop_path": 0.0, "position_frames": 96}
HEADS = {"cpredlayer": "discriminative", "gpredlayer": "generative"}


def objective_of(kind, **changes) -> Ssast:
  mels, frames = PATCHES[kind]
  settings = {"task": "joint", "softmax": "predictions", "generative_weight": 10.0}
  settings |= {"masking": "cluster" if kind == "patch" else "uniform", "masked": 8}
  encoder = {"kind": "ssast", **ENCODER, "patch_mels": mels, "patch_frames": frames}
  section = {"ssast": settings | changes, "encoder": encoder}
  section |= {"views": {"crop_frames": 96}, "data": {"frontend": "atst"}}
  return Ssast(section)


def names_of(encoder) -> dict:
  """Name in the golden files -> path in the parameters of `ssast.Network`."""
  names = {
    name.removeprefix("module."): ("encoder", *path[1:])
    for name, path in encoder.torch_names().items()
  }
  for (theirs, ours), (index, layer) in itertools.product(
    HEADS.items(), ((0, "hidden"), (2, "out"))
  ):
    names |= {f"{theirs}.{index}.weight": (ours, layer, "kernel")}
    names |= {f"{theirs}.{index}.bias": (ours, layer, "bias")}
  return names


def tree_of(arrays, prefix, names) -> dict:
  tree: dict = {}
  for name, path in names.items():
    node = tree
    for part in path[:-1]:
      node = node.setdefault(part, {})
    node[path[-1]] = turn(arrays[f"{prefix}/{name}"])
  return tree


@pytest.mark.parametrize("kind", PATCHES)
def test_losses_and_gradients_are_the_released_code_s(golden, kind):
  arrays, objective = golden(f"ssast_{kind}"), objective_of(kind)
  encoder = PatchTransformer(
    **{k: v for k, v in objective.config["encoder"].items() if k != "kind"}
  )
  names = names_of(encoder)
  assert len(names) == sum(name.startswith("grad/") for name in arrays)
  mel = jnp.asarray(arrays["input"])
  patches = unfold(mel, *PATCHES[kind])
  assert patches.shape[1:3] == tuple(arrays["patch_grid"])
  np.testing.assert_array_equal(patches.reshape(3, -1, 256), arrays["unfolded"])
  masks = jnp.stack([arrays["mask_discriminative"], arrays["mask_generative"]], 1)
  network = objective.make_network(encoder, dtype=jnp.float32, accumulation=3)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def step(params):
    found = objective.masked_loss(Student(network, params, {}, jax.random.key(0)), mel, masks)
    return found.value, found.metrics

  params = tree_of(arrays, "param", names)
  (loss, metrics), gradients = step(params)
  found = {"nce": metrics["loss_discriminative"], "mse": metrics["loss_generative"], "loss": loss}
  for name, value in {**found, "accuracy": metrics["accuracy"]}.items():
    np.testing.assert_allclose(value, arrays[name], rtol=1e-5)
  expected = tree_of(arrays, "grad", names)
  for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))


def test_the_paper_s_softmax_chooses_among_targets():
  rng = np.random.default_rng(0)
  targets, predictions = rng.normal(size=(2, 3, 5, 7))
  products = np.einsum("bip,bjp->bij", targets, predictions)
  for softmax, axis in (("predictions", 2), ("targets", 1)):
    log = products - np.log(np.exp(products).sum(axis, keepdims=True))
    expected = -np.mean([log[b, i, i] for b in range(3) for i in range(5)])
    loss, found = discriminative_loss(jnp.asarray(targets), jnp.asarray(predictions), softmax)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(found, np.mean(log.argmax(1) == np.arange(5)), rtol=1e-6)


@pytest.mark.parametrize("masked", [100, 250, 400])
def test_clusters_are_distributed_as_the_released_code_s(golden, masked):
  """How often each patch is hidden, and how many of a clip with their right, lower and distant
  neighbours, as sides of 3, 4 and 5 make them."""
  theirs = np.asarray(golden("ssast_masks")[f"patch_512_{masked}"])
  draw = jax.jit(jax.vmap(functools.partial(cluster_mask, patches=512, stride=64, masked=masked)))
  ours = np.concatenate([draw(jax.random.split(jax.random.key(i), 1500)) for i in range(4)])
  assert ours.shape == (6000, masked) and (np.diff(ours, axis=1) > 0).all() and ours.min() > 0
  hidden = [np.zeros((len(indices), 512), bool) for indices in (ours, theirs)]
  for rows, indices in zip(hidden, (ours, theirs), strict=True):
    np.put_along_axis(rows, indices.astype(int), True, 1)
  a, b = (rows.mean(0) for rows in hidden)
  pooled = (6000 * a + 300 * b) / 6300
  deviation = np.sqrt(pooled * (1 - pooled) * (1 / 6000 + 1 / 300))
  assert (np.abs(a - b) <= 4 * deviation + 1e-9).all()
  for step in (1, 2, 3, 4, 64, 128, 192, 256):
    a, b = ((rows[:, step:] & rows[:, :-step]).sum(1) for rows in hidden)
    assert abs(a.mean() - b.mean()) <= 4 * np.sqrt(a.var() / 6000 + b.var() / 300), step


def test_uniform_masks_and_as_bool():
  draw = jax.vmap(functools.partial(uniform_mask, patches=24, masked=9))
  indices = draw(jax.random.split(jax.random.key(0), 2000))
  hidden = np.asarray(as_bool(indices, 24))
  assert (hidden.sum(1) == 9).all()
  assert np.abs(hidden.mean(0) - 9 / 24).max() < 4 * np.sqrt(9 / 24 * 15 / 24 / 2000)


def test_positions_of_other_lengths():
  """The centre of the table for shorter clips; torch's bilinear interpolation for longer ones."""
  table = np.random.default_rng(0).normal(size=(6, 2, 5)).astype(np.float32)
  found = np.asarray(place(table, jnp.array([6, 3, 2]), 6))
  np.testing.assert_array_equal(found[0], table)
  np.testing.assert_array_equal(found[1, :3], table[2:5])
  np.testing.assert_array_equal(found[2, :2], table[2:4])
  longer = np.asarray(place(table, jnp.array([9, 4]), 9))
  at = np.clip((np.arange(9) + 0.5) * 6 / 9 - 0.5, 0, 5)
  for axis in np.ndindex(2, 5):
    expected = np.interp(at, np.arange(6), table[(slice(None), *axis)])
    np.testing.assert_allclose(longer[(0, slice(None), *axis)], expected, atol=1e-6)
  np.testing.assert_array_equal(longer[1, :4], table[1:5])


def test_a_clip_in_a_batch_is_the_clip_alone():
  """Padding changes neither vector nor frames, whatever stands in it; y is the mean over
  patches."""
  encoder = PatchTransformer(**ENCODER, patch_mels=16, patch_frames=16)
  mel = np.random.default_rng(0).normal(size=(2, 96, 64)).astype(np.float32)
  variables, apply = drawn_encoder(encoder, 64), jax.jit(encoder.apply)
  y, before = apply(variables, mel, np.array([96, 50]))
  np.testing.assert_allclose(y[0], before["tokens"][0].mean(0), atol=1e-5)
  alone, found = apply(variables, mel[1:, :48])
  np.testing.assert_allclose(y[1], alone[0], atol=1e-5)
  np.testing.assert_allclose(before["frames"][1, :3], found["frames"][0], atol=1e-5)
  rows = found["tokens"].reshape(1, 4, 3, -1)
  np.testing.assert_allclose(found["frames"], rows.mean(1), atol=1e-5)


def _fbank(wave, n_mels):
  """Kaldi's, as torchaudio computes it for SSAST, a frame and a bin at a time in float64."""
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
  mel = lambda hz: 1127 * np.log(1 + hz / 700)
  low, high = mel(20), mel(8000)
  width = (high - low) / (n_mels + 1)
  out = np.empty(((len(wave) - 400) // 160 + 1, n_mels))
  for t in range(len(out)):
    frame = wave[160 * t : 160 * t + 400].astype(np.float64)
    frame = frame - frame.mean()
    frame = frame - 0.97 * np.array([frame[0], *frame[:-1]])
    power = np.abs(np.fft.rfft(hann * frame, 512)) ** 2
    for b in range(n_mels):
      centre = low + (b + 1) * width
      weight = np.maximum(0, 1 - np.abs(mel(np.arange(257) * 31.25) - centre) / width)
      out[t, b] = np.log(max(power @ weight, 2.0**-23))
  return out


def test_released_weights_are_read_and_embed_by_the_mean_over_patches(golden, tmp_path, capsys):
  """From the waveform, and back to a file of the same tensors."""
  from atst_jax.artifacts.model import load_model
  from tests.released_files import convert, torch

  arrays = golden("ssast_patch")
  state = {
    name.replace("param/", "module."): torch.from_numpy(np.array(arrays[name]))
    for name in arrays
    if name.startswith("param/")
  }
  torch.save(state, tmp_path / "released.pth")
  assert convert(tmp_path / "released.pth", tmp_path / "encoder") == 2
  assert "state --heads" in capsys.readouterr().err
  assert convert(tmp_path / "released.pth", tmp_path / "encoder", "--heads=3") == 0
  model = load_model(str(tmp_path / "encoder"))
  wave = 0.02 + np.random.default_rng(0).normal(0, 0.01, 400 + 160 * 95).astype(np.float32)
  wave[3000:9000] = 0  # down to the floor
  seen = (_fbank(wave, 64) + 4.2677393) / (2 * 4.5689974)
  variables = {"params": tree_of(arrays, "param", names_of(model.encoder))["encoder"]}
  _, before = jax.jit(model.encoder.apply)(variables, jnp.asarray(seen[None], jnp.float32))
  found = model.embed([model.log_mel(wave, 16000)])[0]
  np.testing.assert_allclose(found, before["tokens"][0].mean(0), atol=1e-4)
  assert convert(tmp_path / "encoder", tmp_path / "back.pth") == 0
  back = torch.load(tmp_path / "back.pth", weights_only=True)
  assert set(state) - set(back) == {name for name in state if "predlayer" in name}
  assert all(torch.equal(state[name], x) for name, x in back.items())
  # 130 frames: longer than the table of positions; the writer compares the graph with the model
  longer = ("--heads=3", "--chunk_seconds=1.32")
  assert convert(tmp_path / "back.pth", tmp_path / "longer", *longer) == 0
  pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e .[onnx]")
  export.export_again(str(tmp_path / "longer"), str(tmp_path / "onnx"), artifacts=("onnx",))
  for change, message in (
    ({"module.mask_embed": None}, "lacks module.mask_embed"),
    ({"module.mlp_head.0.weight": state["module.v.norm.weight"]}, "keys of another model: module."),
    ({"module.v.pos_embed": state["module.v.pos_embed"][:, :-1]}, "holds 25 positions, not 2 and"),
    ({"module.p_input_tdim": None}, "lacks the numbers module.p_input_tdim"),
  ):
    changed = {name: x for name, x in {**state, **change}.items() if x is not None}
    torch.save(changed, tmp_path / "other.pth")
    assert convert(tmp_path / "other.pth", tmp_path / "other", "--heads=3") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"encoder": real_small.get_config().encoder}, "encoder.kind=transformer does not have; set "),
    ({"views.crop_frames": 40}, "patch_frames=16 does not divide the 40 frames of views.crop_fram"),
    ({"encoder.patch_mels": 24}, "patch_mels=24 does not divide the 64 mel bins"),
    ({"ssast.masked": 1}, "masked=1: the discriminative loss tells hidden patches of a clip apart"),
    (
      {"ssast.masked": 7},
      "masked=7: a crop has 8 patches .4 of mel bins x 2 over time., of which ",
    ),
    (
      {"encoder.patch_mels": 64, "ssast.masking": "uniform", "ssast.masked": 2},
      "masked=2: a crop has 2 patches .1 of mel bins x 2 over time., of which at most 1 can be",
    ),
    ({"encoder.patch_mels": 64}, "masking=cluster needs more than one row of patches; set"),
    ({"ssast.softmax": "both"}, "ssast.softmax=both: choose one of predictions, targets"),
  ],
)
def test_what_does_not_fit_is_refused(changes, message):
  config = recipe.resolve(tiny_config("ssast.py:small", ssast__masked="4"), None)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    check(config, None, devices=8, processes=1)


@pytest.mark.parametrize("task", ["discriminative", "generative"])
def test_one_loss_alone(task):
  config = recipe.resolve(tiny_config("ssast.py:small", ssast__masked="4", ssast__task=task), None)
  init, step = recipe.build(config, ragged=False)
  state = jax.eval_shape(init, jax.random.key(0))
  batch = {"mel": np.zeros((16, 64, 64), np.float16), "length": np.full(16, 64)}
  _, metrics = jax.eval_shape(step, state, batch)
  assert {"loss_discriminative", "loss_generative"} & set(metrics) == {f"loss_{task}"}
  assert {"discriminative", "generative"} & set(state.params) == {task}


@pytest.mark.parametrize(
  "file, changes",
  [
    ("ssast.py:small", {"ssast__masked": "4"}),
    ("conformer.py:small_transformer", {"wav2vec__span": "2", "wav2vec__probability": "0.2"}),
    pytest.param(
      *("conformer.py:small", {"wav2vec__span": "2", "wav2vec__probability": "0.2"}),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_eight_devices_find_the_loss_of_one_and_steps_learn(file, changes):
  """Every draw is the clip's, whichever device it lies on, and another in every step; on one batch
  the loss falls."""
  changes |= {"encoder__depth": "1", "total_steps": "60", "optimizer__schedule": "constant"}
  config = recipe.resolve(tiny_config(file, **changes), None)
  check(config, None, devices=8, processes=1)
  rng = np.random.default_rng(0)
  tones = np.sin(np.arange(64)[:, None] / 4 + np.arange(64) / rng.uniform(2, 9, (16, 1, 1)))
  batch = {"mel": np.asarray(20 * tones - 30, np.float16), "length": np.full(16, 64, np.int32)}
  mesh = make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
  program = recipe.compile_for(config, mesh, ragged=False)
  state, batch_of_one = program.init(jax.random.key(0)), put_batch(mesh, batch)
  variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
  state, metrics = program.step(state, batch_of_one)
  eight = first_loss(config, 8, batch, variables)
  for name, value in {"loss": eight.value, **eight.metrics}.items():
    np.testing.assert_allclose(value, metrics[name], rtol=3e-4, err_msg=name)
  losses = [float(metrics["loss"])]
  for _ in range(30):
    state, metrics = program.step(state, batch_of_one)
    losses.append(float(metrics["loss"]))
  assert len(set(losses)) == 31 and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
