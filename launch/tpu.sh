#!/usr/bin/env bash
# A TPU slice by queued resources: created, set up, trained on all its hosts, restarted while it can be continued.
#   launch/tpu.sh --name=atst --zone=us-west4-a --type=v5litepod-256 [--spot] [--slices=1] [--project=P] [--dry_run] \
#     -- --config=configs/base.py --workdir=runs/base --config.data.path=gs://bucket/audioset \
#        --config.checkpoint.folder=gs://bucket/runs/base
# An exit code of 75 (stopped and saved) starts the same command again; a slice that was taken back is asked for anew,
# and one that cannot be reached is tried five times. 0 (done), 1 and 2 (mistakes that would come again) end it. The slice
# is deleted at the end unless --keep is given. What is committed here is copied there.
set -euo pipefail
name='' zone='' type='' spot='' slices=1 dry='' keep='' project='' version=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=1 ;;
    --keep) keep=1 ;;
    --dry_run) dry=1 ;;
    --) shift && break ;;
    *) echo "error: $1: unknown flag; --name, --zone, --type, --slices, --project, --version, --spot, --keep, --dry_run" >&2 && exit 2 ;;
  esac
  shift
done
if [ -z "$name" ] || [ -z "$zone" ] || [ -z "$type" ] || [ $# -eq 0 ]; then
  echo 'error: --name, --zone and --type are needed, and after -- the flags of atst_jax.main' >&2
  exit 2
fi
if [ -z "$version" ]; then
  case $type in
    v4-*) version=tpu-ubuntu2204-base ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) echo "error: --type=$type: name its software with --version=" >&2 && exit 2 ;;
  esac
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")

run() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

create() {
  local options=(--accelerator-type="$type" --runtime-version="$version" "${where[@]}")
  [ -z "$spot" ] || options+=(--spot)
  if [ "$slices" -gt 1 ]; then
    options+=(--node-count="$slices" --node-prefix="$name")
  else
    options+=(--node-id="$name")
  fi
  run gcloud compute tpus queued-resources create "$name" "${options[@]}"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || echo ABSENT
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

on_all() { # a command on every host of every slice
  local node
  local pids=() code=0
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all --command="$1" &
    pids+=($!)
    [ -z "$dry" ] || wait "$!"
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || code=$?
  done
  return "$code"
}

nodes() {
  if [ "$slices" -gt 1 ]; then
    seq -f "$name-%g" 0 $((slices - 1))
  else
    echo "$name"
  fi
}

set_up() {
  local archive node
  archive=$(mktemp --suffix=.tgz)
  git -C "$root" archive --format=tgz --output="$archive" HEAD
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:atst_jax.tgz" "${where[@]}" --worker=all
  done
  rm -f "$archive"
  on_all 'mkdir -p atst_jax && tar -xzf atst_jax.tgz -C atst_jax && cd atst_jax && python3 -m venv .venv && .venv/bin/pip install -q -e .[tpu,gcs]'
}

train() {
  local command
  command="cd atst_jax && ATST_PLATFORM=tpu launch/run.sh atst_jax.main --distributed $(printf '%q ' "$@")"
  on_all "$command"
}

if [ -n "$dry" ]; then
  create
  set_up
  train "$@"
  [ -n "$keep" ] || delete
  exit 0
fi
failures=0
while :; do
  case $(state) in
    ABSENT) create ;;
    SUSPENDED | FAILED) delete ;;
    ACTIVE)
      code=0
      { set_up && train "$@"; } || code=$?
      case $code in
        75) failures=0 ;;
        0 | 1 | 2) break ;;
        *)
          failures=$((failures + 1))
          [ "$failures" -lt 5 ] || break
          sleep "${PAUSE:-30}"
          ;;
      esac
      ;;
    *) sleep "${PAUSE:-30}" ;;
  esac
done
[ -n "$keep" ] || delete
exit "$code"
