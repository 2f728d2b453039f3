#!/usr/bin/env bash
# A TPU slice by queued resources: created, set up, trained on all its hosts, restarted while it can be continued.
#   launch/tpu.sh --name=atst --zone=us-west4-a --type=v5litepod-256 [--spot] [--slices=1] [--project=P] [--dry_run] \
#     -- --config=configs/base.py --workdir=runs/base --config.data.path=gs://bucket/audioset \
#        --config.checkpoint.folder=gs://bucket/runs/base
# An exit code of 75 (stopped and saved) starts the same command again; a slice that was taken back is asked for anew,
# and one that cannot be had or reached, or fails otherwise, is tried five times. 0 (done), 2 (a mistake in what was asked)
# and 3 (diverged) end it, and so does a gcloud that has not answered for ten minutes. The slice is deleted at the end unless
# --keep is given. What is committed here is copied there.
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
if ! [[ $slices =~ ^[1-9][0-9]*$ && $name =~ ^[a-z0-9-]+$ ]]; then # both enter lists of words
  echo "error: --name=$name --slices=$slices: letters, digits and '-', and a number" >&2
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

describe() { # a value of the request
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format="value($1)" 2>&1
}

state() {
  local said
  if said=$(describe state.state); then
    echo "$said" | tail -n 1
  elif [[ $said == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    echo "$said" >&2
    echo UNKNOWN
  fi
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

# A command on every host of every slice. Of several codes that of a stop counts first, and mistakes last: a partner that
# is gone looks like many things.
on_all() {
  local node said
  local pids=() code=0
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all --command="$1" &
    pids+=($!)
    [ -z "$dry" ] || wait "$!"
  done
  for pid in "${pids[@]}"; do
    said=0
    wait "$pid" || said=$?
    case $said in
      0) ;;
      75) code=75 ;;
      2 | 3) [ "$code" -ne 0 ] || code=$said ;;
      *) [ "$code" -eq 75 ] || code=$said ;;
    esac
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
  git -C "$root" archive --format=tgz --output="$archive" HEAD || return
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:atst_jax.tgz" "${where[@]}" --worker=all || return
  done
  rm -f "$archive"
  on_all 'mkdir -p atst_jax && tar -xzf atst_jax.tgz -C atst_jax && cd atst_jax && curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv -q --allow-existing --python 3.12 .venv && ~/.local/bin/uv pip install -q --python .venv/bin/python -e .[tpu,gcs]'
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
attempt() { # 255 if the hosts could not be set up
  set_up || return 255
  train "$@"
}

failures=0 unanswered=0 code=1
pause() {
  sleep "${PAUSE:-30}"
}

while :; do
  found=$(state)
  [ "$found" = UNKNOWN ] || unanswered=0
  case $found in
    UNKNOWN)
      unanswered=$((unanswered + 1))
      if [ "$unanswered" -ge 20 ]; then
        echo "error: gcloud does not answer, for the reason above; mend that, and look whether $name is still there" >&2
        exit 1
      fi
      pause
      ;;
    ABSENT) create ;;
    SUSPENDED) # taken back, which is no fault
      failures=0
      delete
      ;;
    FAILED)
      echo "$name: the request failed: $(describe state.failedData.error.message)" >&2
      failures=$((failures + 1)) code=1
      [ "$failures" -lt 5 ] || break
      delete
      pause
      ;;
    ACTIVE)
      code=0
      attempt "$@" || code=$?
      case $code in
        75) failures=0 ;;
        0 | 2 | 3) break ;;
        *)
          failures=$((failures + 1))
          [ "$failures" -lt 5 ] || break
          pause
          ;;
      esac
      ;;
    *) pause ;;
  esac
done
[ -n "$keep" ] || delete
exit "$code"
