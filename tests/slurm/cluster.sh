#!/usr/bin/env bash
# A Slurm of two nodes on one machine, for the tests of launch/slurm.sh:
#   tests/slurm/cluster.sh up FOLDER      then: SLURM_CONF=FOLDER/slurm.conf sinfo
#   tests/slurm/cluster.sh down FOLDER
# Needs root and Debian's packages slurm-wlm and munge (`apt-get install slurm-wlm munge`). The nodes n1 and n2 have a
# network, a name, processes and mounts of their own, 4 CPUs each (however many the machine has) and 2 GPUs that are
# none. Everything lies in FOLDER; `down` ends what `up` started and leaves the folder.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,4p' "$0" >&2 && exit 2; }
net=10.213.0
bridge=atstslurm
mkdir -p "$2"
folder=$(cd "$2" && pwd)

down() {
  for file in "$folder"/*.pid; do
    # `unshare` would not end of another signal, and what runs inside ends with it
    [ -e "$file" ] && { kill -KILL "$(cat "$file")" 2>/dev/null || true; } && rm -f "$file"
  done
  for node in 1 2; do
    ip link del "atst_v$node" 2>/dev/null || true
    ip netns del "atst_n$node" 2>/dev/null || true
  done
  ip link del "$bridge" 2>/dev/null || true
}

configure() {
  cat > "$folder/slurm.conf" <<CONF
ClusterName=atst
SlurmctldHost=$(hostname -s)($net.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.own
SlurmdPidFile=$folder/slurmd.%n.own
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=20
KillWait=10
MpiDefault=none
NodeName=n1 NodeAddr=$net.11 CPUs=4 RealMemory=1000 Gres=gpu:2
NodeName=n2 NodeAddr=$net.12 CPUs=4 RealMemory=1000 Gres=gpu:2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE
CONF
  echo 'Name=gpu File=/dev/tty[1-2]' > "$folder/gres.conf"
  printf '%s\n' '127.0.0.1 localhost' "$net.1 $(hostname -s)" "$net.11 n1" "$net.12 n2" > "$folder/hosts"
  mkdir -p "$folder/state" "$folder/spool.n1" "$folder/spool.n2"
  (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
  chmod 755 "$folder"
}

network() {
  ip link add "$bridge" type bridge
  ip addr add "$net.1/24" dev "$bridge"
  ip link set "$bridge" up
  for node in 1 2; do
    ip netns add "atst_n$node"
    ip link add "atst_v$node" type veth peer name eth0 netns "atst_n$node"
    ip link set "atst_v$node" master "$bridge" up
    ip -n "atst_n$node" addr add "$net.1$node/24" dev eth0
    ip -n "atst_n$node" link set eth0 up
    ip -n "atst_n$node" link set lo up
  done
}

# start NAME COMMAND...: in the background; its process's number is in NAME.pid, what it says in NAME.out
start() {
  local name=$1
  shift
  setsid "$@" > "$folder/$name.out" 2>&1 < /dev/null &
  echo $! > "$folder/$name.pid"
}

start_node() {
  # shellcheck disable=SC2016  # the inner shell expands it
  start "node$1" nsenter --net="/run/netns/atst_n$1" unshare --uts --mount --pid --fork --kill-child --mount-proc bash -c '
    hostname "$1" && mount --bind "$2/hosts" /etc/hosts && exec slurmd -D -N "$1" -f "$2/slurm.conf"
  ' node "n$1" "$folder"
}

up() {
  down
  configure
  network
  start munged munged --foreground --force --num-threads=2 --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
    --pid-file="$folder/munged.own" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
  until [ -S "$folder/munge.socket" ]; do sleep 0.1; done
  start slurmctld slurmctld -D -f "$folder/slurm.conf"
  start_node 1
  start_node 2
  export SLURM_CONF="$folder/slurm.conf"
  for _ in $(seq 300); do
    [ "$(sinfo --noheader --Node --format=%t 2>/dev/null | grep -c idle)" -eq 2 ] && return
    sleep 0.2
  done
  echo "error: the nodes did not come up; see the logs in $folder" >&2
  tail -n 5 "$folder"/*.out "$folder"/*.log >&2
  down
  exit 1
}

case $1 in
  up) up ;;
  down) down ;;
  *) echo "error: $1: neither up nor down" >&2 && exit 2 ;;
esac
