"""The compiled functions of a fine-tuning recipe, and its learning rates."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atst_jax.downstream.finetune import step as finetune_step
from atst_jax.downstream.finetune.classifier import make_classifier
from atst_jax.method.optimizer import cosine_schedule
from atst_jax.models.encoders import make_encoder
from atst_jax.runtime.devices import DTYPES, compiler_options, precisely, resolve_fused
from atst_jax.runtime.mesh import batch_sharding, replicated, state_shardings


def learning_rates(
  steps_per_epoch: int,
  *,
  batch_size: int,
  epochs: int,
  warmup_epochs: float,
  base_lr: float,
  reference_batch: int,
  end_lr: float,
) -> np.ndarray:
  """The rate of every step: linear over the warm-up to base_lr · batch_size / reference_batch, then
  half a cosine."""
  peak = base_lr * batch_size / reference_batch
  total, warmup = epochs * steps_per_epoch, round(warmup_epochs * steps_per_epoch)
  rate = cosine_schedule(peak, end_lr, total_steps=total, warmup_steps=warmup)
  return np.asarray(rate(jnp.arange(total)), np.float32)


class Program(NamedTuple):
  """A resolved config's functions for a mesh, jitted; `state` is abstract, with its shardings."""

  init: Callable  # (key, the encoder's variables) -> state
  step: Callable  # (state, batch, rate, seed) -> (state, metrics); the state is donated
  predict: Callable  # (params, batch_stats, batch) -> logits, on every process
  keep_best: Callable  # (state, score, epoch) -> state; the state is donated
  state: finetune_step.FinetuneState


def compile_for(
  exported: dict,
  encoder,
  mesh: Mesh,
  *,
  frames: int,
  n_mels: int,
  classes: int,
  multi_label: bool,
  padding: str,
  tail: str,
  drop_path: float | None,
  dtype: str,
  mixup: dict,
  crop: dict | None,
  optimizer: dict,
  layer_decay: float,
  compute: dict,
) -> Program:
  """The functions of a fine-tuning, which are compiled when first called.

  Args:
    exported: the export's config.
    encoder: its variables, or their shapes.
    frames: T of a batch.
    padding, tail, drop_path, dtype, …: `recipe.program_settings`.
  """
  attention, kernels = resolve_fused(
    compute["attention"],
    compute["kernels"],
    dtype=dtype,
    unsuited=make_encoder(exported["encoder"]).unsuited(),
  )
  network = make_classifier(
    exported["encoder"],
    classes=classes,
    drop_path=drop_path,
    chunk_frames=exported["chunk_frames"],
    tail=tail,
    dtype=DTYPES[dtype],
    attention=attention,
    kernels=kernels,
    remat=compute["remat"],
  )
  tx = finetune_step.make_optimizer(**optimizer)

  def init(key, encoder):
    return finetune_step.init_state(
      key, encoder, network=network, tx=tx, frames=frames, n_mels=n_mels
    )

  abstract = jax.eval_shape(init, jax.random.key(0), encoder)
  shardings, rows, whole = state_shardings(mesh, abstract), batch_sharding(mesh), replicated(mesh)
  state = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
  )
  scales = finetune_step.layer_scales(
    abstract.params, depth=exported["encoder"].get("depth", 0), decay=layer_decay
  )
  common = {"network": network, "normalization": exported["normalization"], "padding": padding}
  step = finetune_step.make_train_step(
    tx=tx,
    scales=scales,
    mixup=mixup,
    crop=crop,
    binary=multi_label or mixup["probability"] > 0,
    resize=compute["resize"],
    **common,
  )
  return Program(
    jax.jit(init, out_shardings=shardings),
    jax.jit(
      precisely(step, dtype),
      in_shardings=(shardings, rows, whole, whole),
      out_shardings=(shardings, whole),
      donate_argnums=0,
      compiler_options=compiler_options(mesh.devices.flat[0], dtype),
    ),
    jax.jit(
      precisely(finetune_step.make_predict(**common), dtype),
      in_shardings=(shardings.params, shardings.batch_stats, rows),
      out_shardings=whole,
    ),
    jax.jit(
      finetune_step.keep_best,
      in_shardings=(shardings, whole, whole),
      out_shardings=shardings,
      donate_argnums=0,
    ),
    state,
  )
