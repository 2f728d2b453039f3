#!/usr/bin/env bash
# Pre-training on SLURM, one process for each node, all of whose GPUs are its own. In the checkout's root:
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh --config=configs/base.py --workdir=/shared/runs/base
#   launch/slurm.sh --dry_run --config=...       prints what every node would run
# Two minutes before its time is over the job gets SIGUSR1, saves and exits with 75: it is queued again and goes on. So
# it does after every other code but 0, 2 and 3 (a process was killed, a node or a partner did not answer), at most ten
# times in a row without a new checkpoint (launch/restarts.py). Codes and limits: launch/README.md.
#SBATCH --job-name=atst_jax
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail
started=$(date +%s)
root=${SLURM_SUBMIT_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
dry=''
if [ "${1:-}" = --dry_run ]; then
  dry=1
  shift
fi
if [ $# -eq 0 ]; then
  echo 'error: give the flags of atst_jax.main, at least --config=FILE and --workdir=DIR' >&2
  exit 2
fi
if [ ! -x "$root/launch/run.sh" ]; then
  echo "error: $root holds no launch/run.sh; submit from the checkout's root, which every node must see" >&2
  exit 2
fi
distributed=()
[ "${SLURM_NTASKS:-${SLURM_NNODES:-1}}" -gt 1 ] && distributed=(--distributed)
# Without a number a task would get one CPU; those of a node are dealt to its tasks. "2(x4)" is 2 on each of 4 nodes.
tasks=${SLURM_TASKS_PER_NODE:-1}
cpus=()
[ -n "${SLURM_CPUS_ON_NODE:-}" ] &&
  cpus=(--cpus-per-task="${SLURM_CPUS_PER_TASK:-$((SLURM_CPUS_ON_NODE / ${tasks%%[!0-9]*}))}")
# A process that has saved must not end those that are still saving; one that hangs must not keep the job for ever.
command=(srun --label --kill-on-bad-exit=0 --wait="${SLURM_WAIT:-300}" "${cpus[@]}"
  "$root/launch/run.sh" atst_jax.main "$@" "${distributed[@]}")
if [ -n "$dry" ]; then
  printf '%q ' "${command[@]}" && echo
  exit 0
fi
limit=$(squeue --noheader --job="${SLURM_JOB_ID:?}" --format=%l 2>/dev/null) || limit=UNLIMITED
"$root/launch/run.sh" launch.restarts before --limit="${limit:-UNLIMITED}" -- "$@"
"${command[@]}"
code=$?
case $code in 0 | 2 | 3) exit "$code" ;; esac
"$root/launch/run.sh" launch.restarts after --limit="${limit:-UNLIMITED}" --code="$code" --started="$started" -- "$@"
verdict=$?
# 4: no more. Another code: Python itself does not run here, but may on another node.
if [ "$verdict" -eq 0 ] || { [ "$verdict" -ne 4 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; }; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
