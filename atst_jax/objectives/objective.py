"""What an objective is, and what the code around it asks of one.

Letters: B clips, T frames, F mel bins, D width of the encoder's vectors, P numbers that are
compared.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from atst_jax.method.accumulation import RANDOM
from atst_jax.method.losses import output_rank, output_std
from atst_jax.method.train_step import TrainState
from atst_jax.models.encoders import make_encoder
from atst_jax.models.layers import Encoder
from atst_jax.util.errors import UserError


class Student:
  """The network with the parameters of one step, in training mode.

  `student(*arrays, method=…)` applies the network, or a method of it. Running statistics pass from
  one call to the next, and every call has draws of its own for dropout and stochastic depth.
  """

  def __init__(self, network: nn.Module, params, batch_stats, key):
    self.network, self.params, self.batch_stats = network, params, batch_stats
    self._key, self._calls = key, 0

  def __call__(self, *arrays, method=None, **options):
    """What the network, or a method of it, returns for arrays and keyword arguments."""
    keys = jax.random.split(jax.random.fold_in(self._key, self._calls), len(RANDOM))
    self._calls += 1
    out, new = self.network.apply(
      {"params": self.params, "batch_stats": self.batch_stats},
      *arrays,
      method=method,
      mutable=["batch_stats"],
      rngs=dict(zip(RANDOM, keys, strict=True)),
      **options,
    )
    self.batch_stats = new.get("batch_stats", self.batch_stats)
    return out


class Loss(NamedTuple):
  """What an objective finds for a batch."""

  value: jax.Array  # ()
  metrics: dict[str, jax.Array]  # () float32 each; "loss_…" are its terms
  outputs: jax.Array  # (N, P): what is compared; the guard looks at their spread and rank


class Objective:
  """A self-supervised objective of pre-training. A new one overrides what it needs.

  `Objective(config)` takes a whole resolved config as a mapping and raises no error for it: what is
  wrong with it, `check` says. An objective without a teacher needs `make_network` and `loss`; one
  whose update is another, like BYOL's, overrides `build`.
  """

  name: ClassVar[str] = ""  # of `config.objective`
  # Its section of the config, named as the objective: a NamedTuple of its keys.
  settings: ClassVar[Any] = None
  # Other keys and sections of a config that only this objective reads.
  owns: ClassVar[tuple[str, ...]] = ()
  start_from: ClassVar[str] = ""  # a config file with all of them, for messages
  # What keys may be, beyond their types: dotted keys, as in `pretraining.checks`.
  positive: ClassVar[tuple[str, ...]] = ()
  choices: ClassVar[dict[str, tuple[str, ...]]] = {}
  ranges: ClassVar[dict[str, tuple[float, float]]] = {}
  has_teacher: ClassVar[bool] = False
  judged: ClassVar[str] = "student"  # whose outputs the guard looks at: std_… and rank_…
  has_views: ClassVar[bool] = False  # `figures.view_sheet` draws its views

  def __init__(self, config: Mapping):
    self.config = config
    section = config.get(self.name) if self.settings else None
    known = section is not None and set(section) == set(self.settings._fields)
    self.options: Any = self.settings(**section) if section and known else None

  @property
  def outputs(self) -> int:
    """P, numbers that are compared."""
    raise NotImplementedError

  @property
  def unit(self) -> int:
    """Clips that have to lie on one device together."""
    return 1

  def is_ragged(self, shortest_clip: int) -> bool:
    """Whether inputs may be shorter than `views.crop_frames`, so that lengths are tracked."""
    return False

  def check_section(self) -> None:
    """Raises UserError if its section of the config lacks a key, or holds one that it does not
    read."""
    if self.settings is None:
      return
    wanted, section = self.settings._fields, self.config.get(self.name)
    missing = list(wanted) if section is None else [k for k in wanted if k not in section]
    if missing:
      raise UserError(
        f"--config.objective={self.name} needs the keys "
        f"{', '.join(f'{self.name}.{key}' for key in missing)}; start from {self.start_from}"
      )
    for key in section or ():
      if key not in wanted:
        near = difflib.get_close_matches(key, wanted, n=1, cutoff=0)[0]
        raise UserError(
          f"the config sets {self.name}.{key}: no such key; did you mean {self.name}.{near}?"
        )

  def check(self, *, devices: int, clip_lengths: tuple[int, int], n_mels: int) -> None:
    """Raises UserError for a config that it cannot work with, before anything is compiled.

    Keys are there, of their type and in their range, and the encoder's section is right. So much
    has been checked; what is left is how they fit each other.

    Args:
      devices: over all processes.
      clip_lengths: frames of the data set's shortest clip and of its longest, as it is read: at
        most `data.clip_frames`.
      n_mels: F.
    """

  def make_network(self, encoder: Encoder, *, dtype, accumulation: int) -> nn.Module:
    """The network. Its submodule `encoder` is the one given: that is what is exported.

    Args:
      dtype: of the computation.
      accumulation: parts of a batch (`accumulation.in_parts`).
    """
    raise NotImplementedError

  def initialise(self, network: nn.Module, rngs: dict, n_mels: int) -> dict:
    """The network's variables; by default those that its call on crops (2, T, F) makes."""
    return dict(network.init(rngs, jnp.zeros((2, self.config["views"]["crop_frames"], n_mels))))

  def loss(self, student: Student, batch: dict, key) -> Loss:
    """The loss of a batch.

    Args:
      student: the network with the parameters that the gradient is taken of.
      batch: "mel" (B, T, F) dB, any float type, padded after "length" (B,). B is the global batch,
        whatever the devices.
      key: for draws. Those of a clip come from `fold_in(key, its index)`, so that they do not
        depend on the mesh.
    """
    raise NotImplementedError

  def build(
    self, *, tx, schedules: dict[str, Callable], n_mels: int, ragged: bool, dtype, **computing
  ):
    """(init(key) -> TrainState, train_step(state, batch) -> (state, metrics)), pure functions.

    Args:
      tx: optax transformation of the parameters.
      schedules: functions of the finished updates that are reported among the metrics.
      n_mels: F.
      ragged: `is_ragged`.
      dtype: of the computation.
      computing: how the encoder is computed (`encoders.make_encoder`).
    """
    config = self.config
    network = self.make_network(
      make_encoder(config["encoder"], dtype=dtype, **computing),
      dtype=dtype,
      accumulation=config["compute"]["accumulation"],
    )

    def init(key):
      variables = self.initialise(network, dict.fromkeys(("params", *RANDOM), key), n_mels)
      params = variables["params"]
      statistics = variables.get("batch_stats", {})
      return TrainState(jnp.zeros((), jnp.int32), params, statistics, tx.init(params), ())

    def loss_of(params, state, key, batch):
      draw_key, network_key = jax.random.split(key)
      student = Student(network, params, state.batch_stats, network_key)
      found = self.loss(student, batch, draw_key)
      return found.value, (found, student.batch_stats)

    def train_step(state: TrainState, batch):
      key = jax.random.fold_in(jax.random.key(config["seed"], impl="threefry2x32"), state.step)
      gradient = jax.value_and_grad(loss_of, has_aux=True)
      (_, (found, statistics)), grads = gradient(state.params, state, key, batch)
      updates, opt_state = tx.update(grads, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
      metrics = {"loss": found.value, **found.metrics, "grad_norm": optax.tree.norm(grads)}
      metrics |= {f"std_{self.judged}": output_std(found.outputs)}
      metrics |= {f"rank_{self.judged}": output_rank(found.outputs)}
      metrics |= {name: schedule(state.updates) for name, schedule in schedules.items()}
      return TrainState(state.step + 1, params, statistics, opt_state, (), state.guard), metrics

    return init, train_step

  def flops(self, n_mels: int) -> float:
    """Model FLOPs of one update per clip of the batch: products and convolutions, forward and
    twice that backward, nothing twice."""
    raise NotImplementedError
