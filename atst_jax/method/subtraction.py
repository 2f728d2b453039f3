"""The settings of the subtraction loss.

The difference-aware paper leaves much open (docs/paper_and_code.md), and its code was not released.
The defaults are the simplest reading. A config sets what its recipe chooses; every other key of its
section `difference` has the default that stands here.
"""

from typing import NamedTuple


class Subtraction(NamedTuple):
  """What the section `difference` of a config may hold."""

  weight: float = 0.0  # λ, the loss's share of the total; at 0 nothing of it is computed
  gamma_min: float = 0.4  # smallest γ that is drawn: the neighbour's share in a mixture
  gamma_max: float = 0.6  # largest γ that is drawn
  gamma_per: str = "clip"  # or "batch": one γ for all clips
  gamma_shared: bool = False  # by both views
  mix_domain: str = "normalized"  # Eq. 2 to the letter; or "energy"
  # or "pre_norm", for values before views.post_norm; energies do not depend on it
  mix_stage: str = "post_norm"
  # nepers of power in one unit before views.post_norm; not set: from the normalization
  mix_k: float | None = None
  # the neighbour is first brought to the clip's mean of what is mixed (energy)
  match_level: bool = False
  renormalize: str = "none"  # or "batch": mixtures are post-normalised once more
  neighbour: str = "group"  # the next clip of views.group; "batch": of the whole batch
  symmetric: bool = True  # both directions, or view 1's difference against view 2's target
  subtrahend: str = "student"  # or "teacher": whose encoding of the neighbour is subtracted
  stop_gradient: bool = False  # into the subtrahend
  rescale: bool = False  # the difference is divided by 1 - γ
  # vectors of clips, or "frame": vectors before pooling over time (encoder.kind cnn)
  level: str = "clip"
  # the projector's BatchNorm sees encodings and differences together
  joint_projector: bool = False
  # mixtures update the encoder's running statistics (encoder.kind cnn)
  track_mixtures: bool = True


SECTIONS = {"difference": Subtraction}  # of `util.config.load`
