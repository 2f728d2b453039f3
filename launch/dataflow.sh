#!/usr/bin/env bash
# Preparation on Google Dataflow, from a bucket to a bucket:
#   launch/dataflow.sh --project=P --region=R --image=REGISTRY/atst_jax:beam --temp=gs://bucket/tmp [--workers=100] \
#     [--dry_run] -- --input=gs://bucket/audioset --layout=audioset --output=gs://bucket/prepared --frontend=atst
# Needs pip install -e .[dataflow] here, with the Python (3.12) and the version of Beam that the image has.
set -euo pipefail
project='' region='' image='' temp='' workers=100 dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --project=*) project=${1#*=} ;;
    --region=*) region=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --temp=*) temp=${1#*=} ;;
    --workers=*) workers=${1#*=} ;;
    --dry_run) dry=1 ;;
    --) shift && break ;;
    *) echo "error: $1: unknown flag; --project, --region, --image, --temp, --workers, --dry_run" >&2 && exit 2 ;;
  esac
  shift
done
if [ -z "$project" ] || [ -z "$region" ] || [ -z "$image" ] || [ -z "$temp" ] || [ $# -eq 0 ]; then
  echo 'error: --project, --region, --image and --temp are needed, and after -- the flags of data_pipeline.prepare' >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
# One thread a process: decoding holds Python's lock.
options=$(printf '%q ' "--project=$project" "--region=$region" "--temp_location=$temp" "--sdk_container_image=$image" \
  --experiments=use_runner_v2 "--max_num_workers=$workers" --number_of_worker_harness_threads=1)
command=("$python" -m data_pipeline.prepare "$@" --runner=DataflowRunner --beam_options="$options")
if [ -n "$dry" ]; then
  printf '%q ' "${command[@]}" && echo
else
  exec "${command[@]}"
fi
