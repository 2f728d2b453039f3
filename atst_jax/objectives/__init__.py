"""What is learned from: one file for each objective, all trained by the same loop on the same data.

In: a resolved config. Out: a state and a train step over it; what the code around them asks.

An objective is a subclass of `objective.Objective` and one line in `registry.OBJECTIVES`. Loop,
mesh, checkpoints, guard, online evaluation, export, plan and benchmark ask it by that interface:

- `loss(student, batch, key) -> Loss(value, metrics, outputs)`: log-mel in decibels and a key in, a
  loss out. `student(*arrays, method=…)` applies the network in training mode.
- `make_network(encoder, dtype=…, accumulation=…)`: a flax module whose submodule `encoder` is the
  given one. Its call on normalised crops (N, T, F) makes every parameter; if that cannot be,
  override `initialise`.
- `settings`: a NamedTuple of the keys of `config.NAME`, read as `self.options`. Other parts of a
  config that every objective has: `views.crop_frames` and `views.normalization` say what the
  encoder sees (`windows.take_windows` makes it), `encoder`, `optimizer`, `compute`, `batch_size`.
- `outputs`, `flops`, and `check` for what does not fit, before anything is compiled.

The state's `teacher` is () unless an objective builds its own update, as `byol` does.
"""
