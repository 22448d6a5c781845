#!/usr/bin/env bash
# Evaluates a checkpoint on the GPUs of this machine: bash scripts/eval.sh CONFIG NUM_GPUS CHECKPOINT [main.py's flags]
#   bash scripts/eval.sh configs/fat_b0.yaml 8 output/fat_b0/default/best.pth --data-path /path/to/imagenet
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# -ge 3 && $2 =~ ^[1-9][0-9]*$ ]] || { echo "error: usage: bash scripts/eval.sh CONFIG NUM_GPUS CHECKPOINT [main.py's flags]" >&2; exit 2; }
exec python -m torch.distributed.launch --nproc_per_node "$2" main.py --cfg "$1" --eval --resume "$3" "${@:4}"
