#!/usr/bin/env bash
# Sends launch/gke_jobset.yaml to the cluster that kubectl is set to:
#   launch/gke.sh --name=atst --image=REGISTRY/atst_jax:tpu --accelerator=tpu-v5-lite-podslice --topology=16x16 \
#     [--slices=1] [--chips=4] [--dry_run] -- --config=configs/base.py --workdir=/tmp/base \
#        --config.data.path=gs://bucket/audioset --config.checkpoint.folder=gs://bucket/runs/base
# With xpk (https://github.com/AI-Hypercomputer/xpk) the same is
#   xpk workload create --cluster=C --workload=atst --tpu-type=v5litepod-256 --docker-image=REGISTRY/atst_jax:tpu \
#     --command='launch/run.sh atst_jax.main --distributed --config=configs/base.py ...'
set -euo pipefail
NAME='' IMAGE='' ACCELERATOR='' TOPOLOGY='' SLICES=1 CHIPS=4 dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) NAME=${1#*=} ;;
    --image=*) IMAGE=${1#*=} ;;
    --accelerator=*) ACCELERATOR=${1#*=} ;;
    --topology=*) TOPOLOGY=${1#*=} ;;
    --slices=*) SLICES=${1#*=} ;;
    --chips=*) CHIPS=${1#*=} ;;
    --dry_run) dry=1 ;;
    --) shift && break ;;
    *) echo "error: $1: unknown flag; --name, --image, --accelerator, --topology, --slices, --chips, --dry_run" >&2 && exit 2 ;;
  esac
  shift
done
if [ -z "$NAME" ] || [ -z "$IMAGE" ] || [ -z "$ACCELERATOR" ] || [ -z "$TOPOLOGY" ] || [ $# -eq 0 ]; then
  echo 'error: --name, --image, --accelerator and --topology are needed, and after -- the flags of atst_jax.main' >&2
  exit 2
fi
# Before they enter arithmetic, which a shell would evaluate whatever it holds, and the manifest.
if ! [[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*)*$ && $CHIPS =~ ^[1-9][0-9]*$ && $SLICES =~ ^[1-9][0-9]*$ ]]; then
  echo "error: --topology=$TOPOLOGY --chips=$CHIPS --slices=$SLICES: numbers are needed, for example 4x4, 4 and 1" >&2
  exit 2
fi
if ! [[ $NAME =~ ^[a-z0-9-]+$ && $IMAGE =~ ^[A-Za-z0-9._:/@-]+$ && $ACCELERATOR =~ ^[a-z0-9-]+$ ]]; then
  echo "error: --name=$NAME --image=$IMAGE --accelerator=$ACCELERATOR: not names that Kubernetes knows" >&2
  exit 2
fi
chips=$((${TOPOLOGY//x/*}))
if [ $((chips % CHIPS)) -ne 0 ]; then
  echo "error: --topology=$TOPOLOGY has $chips chips, which hosts of --chips=$CHIPS cannot share" >&2
  exit 2
fi
HOSTS=$((chips / CHIPS))
FLAGS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' atst_jax.main --distributed "$@")
export NAME IMAGE ACCELERATOR TOPOLOGY SLICES CHIPS HOSTS FLAGS
filled=$(python3 -c 'import os, string, sys; print(string.Template(sys.stdin.read()).substitute(os.environ), end="")' \
  < <(grep -v '^#' "$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml"))
if [ -n "$dry" ]; then
  echo "$filled"
  exit 0
fi
# Not `apply`, which leaves a JobSet of that name that has ended as it is and succeeds.
code=0
said=$(kubectl create -f - <<<"$filled" 2>&1) || code=$?
echo "$said"
if [[ $said == *AlreadyExists* ]]; then
  echo "error: --name=$NAME: that JobSet is there and is not started again: kubectl delete jobset $NAME, or another --name" >&2
  exit 2
fi
exit "$code"
