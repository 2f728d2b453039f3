"""The device mesh and the places of arrays on it: the batch over every device, the state over
`fsdp` by shape."""

import hashlib
import json
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from atst_jax.util.config import changes
from atst_jax.util.errors import StoreError, UserError
from atst_jax.util.logs import log

MIN_SHARD_SIZE = 2**14  # elements; smaller arrays are replicated, as gathering would cost more


def mesh_shape(*, data, fsdp, count) -> tuple[int, int]:
  """(data, fsdp) of so many devices; -1 for one of them takes the other devices. Raises UserError
  with the numbers."""
  if data == -1 and fsdp > 0 and count % fsdp == 0:
    data = count // fsdp
  if fsdp == -1 and data > 0 and count % data == 0:
    fsdp = count // data
  if data < 1 or fsdp < 1 or data * fsdp != count:
    raise UserError(
      f"mesh.data={data} x mesh.fsdp={fsdp} does not use the {count} devices there are; "
      "set one of them to -1 and the other to a divisor"
    )
  return data, fsdp


def make_mesh(*, data, fsdp, devices=None) -> Mesh:
  """A mesh of all devices, or those given, as `mesh_shape` cuts it."""
  devices = jax.devices() if devices is None else devices
  data, fsdp = mesh_shape(data=data, fsdp=fsdp, count=len(devices))
  # Sorted by process, not in jax.make_mesh's order of the torus: a process supplies one block of
  # rows (`process_rows`).
  grid = np.array(sorted(devices, key=lambda d: (d.process_index, d.id))).reshape(data, fsdp)
  return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh) -> NamedSharding:
  """The first axis over all devices."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, P())


def state_shardings(mesh, abstract_state):
  """Shardings that split the largest axis that `fsdp` divides; small or indivisible arrays are
  replicated."""
  size = mesh.shape["fsdp"]

  def shard(x):
    axes = [axis for axis, n in enumerate(x.shape) if n % size == 0]
    if size == 1 or not axes or np.prod(x.shape) < MIN_SHARD_SIZE:
      return replicated(mesh)
    largest = max(axes, key=lambda axis: (x.shape[axis], -axis))
    return NamedSharding(
      mesh, P(*("fsdp" if axis == largest else None for axis in range(len(x.shape))))
    )

  return jax.tree.map(shard, abstract_state)


def process_rows(mesh, batch_size) -> tuple[int, int]:
  """The rows [start, stop) of the global batch that this process has to supply.

  Raises UserError if they are not one block: the order of data is defined by contiguous shares.
  """
  indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  spans = {
    (s[0].start or 0, batch_size if s[0].stop is None else s[0].stop)
    for s in indices
    if s is not None
  }
  start, stop = min(a for a, _ in spans), max(b for _, b in spans)
  if sum(b - a for a, b in spans) != stop - start:
    raise UserError(
      f"the devices of process {jax.process_index()} are not neighbours on the mesh; change "
      "mesh.fsdp"
    )
  return start, stop


def put_batch(mesh, local):
  """Local numpy rows of every process -> global arrays on the mesh."""
  sharding = batch_sharding(mesh)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in local.items()}


def from_process_zero(decide: Callable[[], int]) -> int:
  """Calls `decide` in process 0 and returns its result in all processes, which wait for it.

  Its errors are raised in process 0; the others raise a UserError of the same exit code.
  """
  error, value = None, 0
  if jax.process_index() == 0:
    try:
      value = decide()
    except Exception as mistake:
      error = mistake
  if jax.process_count() > 1:
    failed = getattr(error, "exit_code", 1) if error else 0
    failed, value = (int(x) for x in broadcast_one_to_all(np.array([failed, value], np.int32)))
    if failed and error is None:
      error = UserError("process 0 cannot go on; its message says why")
      error.exit_code = failed
  if error:
    raise error
  return value


def refuse_others(values: dict[str, object]) -> None:
  """Raises UserError in every process if one has other values than process 0, as JSON; that one
  says which keys differ."""
  if jax.process_count() == 1:
    return
  text = json.dumps(values, sort_keys=True).encode()
  digests = process_allgather(np.frombuffer(hashlib.sha256(text).digest(), np.uint32))
  others = [i for i, digest in enumerate(digests) if (digest != digests[0]).any()]
  if not others:
    return
  size = int(broadcast_one_to_all(np.int32(len(text))))
  first = broadcast_one_to_all(np.frombuffer(text.ljust(size)[:size], np.uint8))
  told = "their messages say which values"
  if jax.process_index() in others:
    lines = changes(json.loads(np.asarray(first).tobytes()), json.loads(text))
    told = f"process 0's and those of process {jax.process_index()}:\n  " + "\n  ".join(lines)
  raise UserError(
    f"process {', '.join(map(str, others))} has another config or other data than process 0; give "
    f"all hosts the same flags and the same data, and run the command again; {told}"
  )


def first_error(work: Callable[[], object]) -> tuple[int, int] | None:
  """Calls `work` in every process, which all wait for the slowest.

  Returns:
    The first process in which it raised an error, and the exit code of that error, one that may
    pass (StoreError) before all others; None if there is none.
  """
  code = 0
  try:
    work()
  except Exception as error:
    log.debug("process %d cannot go on", jax.process_index(), exc_info=True)
    code = getattr(error, "exit_code", 1)
  codes = [int(x) for x in np.ravel(process_allgather(np.int32(code)))]
  for wanted in (StoreError.exit_code, *codes):
    if wanted and wanted in codes:
      return codes.index(wanted), wanted
  return None
