#!/usr/bin/env bash
# Runs a module of atst_jax with the environment of its platform (ATST_PLATFORM: cpu, gpu or tpu; gpu by default):
#   launch/run.sh atst_jax.main --config=configs/base.py --workdir=runs/base
# The process replaces this shell, so that signals and the exit code are its own.
if [ "${1:-}" = atst_jax.main ] && [ -z "${ATST_HELD:-}" ]; then
  # A signal waits until the program answers it. Where `env` is too old (before coreutils 8.31) it ends the shell with
  # the code for "run the same command again".
  if env --block-signal=TERM true 2>/dev/null; then
    ATST_HELD=1 exec env --block-signal=TERM,INT,USR1,HUP "${BASH_SOURCE[0]}" "$@"
  fi
  trap 'exit 75' TERM INT USR1 HUP
fi
unset ATST_HELD
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python
[ -x .venv/bin/python ] && python=.venv/bin/python
settings=$("$python" -m atst_jax.util.environment "${ATST_PLATFORM:-gpu}")
eval "$settings"
exec "$python" -m "$@"
