#!/usr/bin/env bash
# Pre-training on SLURM, one process for each node, all of whose GPUs are its own. In the checkout's root:
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh --config=configs/base.py --workdir=/shared/runs/base
#   launch/slurm.sh --dry_run --config=...       prints what every node would run
# Two minutes before its time is over the job gets SIGUSR1, saves and exits with 75: it is queued again and goes on. So
# it does after 74, where a store, a disk or a partner did not answer, but for ten restarts at most.
#SBATCH --job-name=atst_jax
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail
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
# JAX would give a process only the GPU that has its number on the node.
gpus=${SLURM_GPUS_ON_NODE:-0}
if [ "$gpus" -gt 0 ]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
distributed=()
[ "${SLURM_NTASKS:-${SLURM_NNODES:-1}}" -gt 1 ] && distributed=(--distributed)
# A process that has saved must not end those that are still saving.
cpus=()
[ -n "${SLURM_CPUS_ON_NODE:-}" ] && cpus=(--cpus-per-task="$SLURM_CPUS_ON_NODE")
command=(srun --kill-on-bad-exit=0 "${cpus[@]}" "$root/launch/run.sh" atst_jax.main "$@" "${distributed[@]}")
if [ -n "$dry" ]; then
  printf '%q ' "${command[@]}" && echo
  exit 0
fi
"${command[@]}"
code=$?
if [ "$code" -eq 75 ] || { [ "$code" -eq 74 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; }; then
  scontrol requeue "${SLURM_JOB_ID:?}"
  exit 0
fi
exit "$code"
