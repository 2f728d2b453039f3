"""What all pictures share: their colours, and how they are written."""

from atst_jax.util import storage

# Okabe and Ito's, for every kind of sight
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def save(figure, path: str) -> None:
  """Writes a PNG, whole or not at all."""
  with storage.writing(path) as file:
    figure.savefig(file, format="png", dpi=110)
