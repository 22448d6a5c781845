#!/usr/bin/env bash
# Times inference on one device: bash scripts/throughput.sh CONFIG [main.py's flags]
#   bash scripts/throughput.sh configs/fat_b0.yaml --batch-size 64
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { echo "error: usage: bash scripts/throughput.sh CONFIG [main.py's flags]" >&2; exit 2; }
exec python main.py --cfg "$1" --throughput "${@:2}"
