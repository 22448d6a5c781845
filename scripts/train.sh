#!/usr/bin/env bash
# Trains on the GPUs of this machine: bash scripts/train.sh CONFIG NUM_GPUS [main.py's flags]
#   bash scripts/train.sh configs/fat_b0.yaml 8 --data-path /path/to/imagenet
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# -ge 2 && $2 =~ ^[1-9][0-9]*$ ]] || { echo "error: usage: bash scripts/train.sh CONFIG NUM_GPUS [main.py's flags]" >&2; exit 2; }
exec python -m torch.distributed.launch --nproc_per_node "$2" main.py --cfg "$1" "${@:3}"
