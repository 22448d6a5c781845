#!/usr/bin/env bash
# Trains on several machines: the same command on each of them, by torchrun.
#   bash scripts/train_nodes.sh CONFIG GPUS_PER_NODE NODES HOST:PORT [main.py's flags]
#   bash scripts/train_nodes.sh configs/fat_b0.yaml 8 2 node1:29500 --data-path /path/to/imagenet
# NODES is their number, or MIN:MAX: then the run goes on with the machines that there are, and takes in those that come.
# HOST holds the rendezvous: one of the machines, by a name or address that all of them know.
# RESTARTS (3): how often all processes are started again after a fault. MEETING (600): seconds in which all machines have
# to come, after the first one. RUN_ID (fat): another one for another run at the same HOST:PORT.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "error: $*" >&2; exit 2; }
usage="usage: bash scripts/train_nodes.sh CONFIG GPUS_PER_NODE NODES|MIN:MAX HOST:PORT [main.py's flags]"
[[ $# -ge 4 && $2 =~ ^[1-9][0-9]*$ && $3 =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ && $4 =~ ^[^:]+:[1-9][0-9]*$ ]] || fail "$usage"
config=$1 processes=$2 nodes=$3 host=${4%:*} port=${4##*:} meeting=${MEETING:-600}

# torchrun would wait for a host that is not there, and then not say for which one
addresses=$(getent ahosts "$host" | awk '{print $1}' | sort -u) || fail "$host: this machine ($(hostname)) knows no such name; give an address, or add the name to /etc/hosts"
here=" $(hostname -I) 127.0.0.1 ::1 "
is_here=
for address in $addresses; do [[ $here == *" $address "* ]] && is_here=1; done
answers() { timeout 2 bash -c "exec 3<>/dev/tcp/$host/$port" 2>/dev/null; }
until [[ $is_here ]] || answers; do
  (( SECONDS < meeting )) || fail "$host:$port: does not answer $(hostname) after $meeting s; has that machine started the same command, is it HOST, and does its firewall let the port through?"
  sleep 1
done

# Without it an agent that joins later gets no address, and both end after a minute (torch 2.15)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec python -m torch.distributed.run --nnodes "$nodes" --nproc_per_node "$processes" --max_restarts "${RESTARTS:-3}" \
  --rdzv_backend c10d --rdzv_endpoint "$host:$port" --rdzv_id "${RUN_ID:-fat}" --rdzv_conf "join_timeout=$meeting" \
  main.py --cfg "$config" "${@:5}"
