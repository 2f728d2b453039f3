#!/usr/bin/env bash
# Everything that has to be seen on a real GPU, in at most 8 minutes and without TensorFlow:
#   OUT=results launch/gpu_check.sh [--small]
# Speed beside torch.compile (where PyTorch is installed), the longest kernels, the kernels against their twins,
# bfloat16 against float32, and a run that is stopped, continued, exported and used. Writes $OUT/gpu_check.log as it
# goes, and $OUT/gpu_check.md at its end. --small takes tiny networks: the same on a machine without a GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export OUT=${OUT:-runs/gpu_check}
mkdir -p "$OUT"
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
"$python" -u launch/gpu_check.py "$@" 2>&1 | tee "$OUT/gpu_check.log"
exit "${PIPESTATUS[0]}"
