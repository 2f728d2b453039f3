#!/usr/bin/env bash
# Runs a module of atst_jax with the environment of its platform (ATST_PLATFORM: cpu, gpu or tpu; gpu by default):
#   launch/run.sh atst_jax.main --config=configs/base.py --workdir=runs/base
# The process replaces this shell, so that signals and the exit code are its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python
[ -x .venv/bin/python ] && python=.venv/bin/python
settings=$("$python" -m atst_jax.util.environment "${ATST_PLATFORM:-gpu}")
eval "$settings"
exec "$python" -m "$@"
