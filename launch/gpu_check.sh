#!/usr/bin/env bash
# Everything that has to be seen on a real GPU, in at most 8 minutes and without TensorFlow:
#   OUT=results launch/gpu_check.sh [--small]
# Speed beside torch.compile (where PyTorch is installed), the longest kernels, the kernels against their twins,
# bfloat16 against float32, and a run that is stopped, continued, exported and used (in $OUT/gpu_check_files, which each
# check empties first). Writes $OUT/gpu_check.log as it goes, and $OUT/gpu_check.md at its end. --small takes tiny networks,
# and five times the time: the same on a machine without a GPU. PYTHON names another interpreter than .venv's or python3.
set -uo pipefail
[[ ${OUT:-/} == /* ]] || OUT=$PWD/$OUT
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export OUT=${OUT:-runs/gpu_check}
mkdir -p "$OUT"
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
"${PYTHON:-python3}" -u launch/gpu_check.py "$@" 2>&1 | tee "$OUT/gpu_check.log"
exit "${PIPESTATUS[0]}"
