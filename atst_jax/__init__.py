"""ATST and subtraction-consistent BYOL-A in JAX: self-supervised pre-training of audio encoders."""

__version__ = "0.1.0"
