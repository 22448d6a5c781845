#!/usr/bin/env bash
# Trains and evaluates FAT-Tiny on small real images, from nothing but a clone: bash scripts/quickstart.sh [digits|emoji|detection]
set -euo pipefail
cd "$(dirname "$0")/.."

images=${1:-digits}
case $images in
    digits) cfg=configs/fat_quickstart.yaml ;;
    emoji) cfg=configs/fat_quickstart_emoji.yaml ;;
    detection) cfg=configs/detection/fat_quickstart_detection.yaml ;;
    *) echo "error: $images: unknown set of images; use digits, emoji or detection" >&2; exit 2 ;;
esac
run=output/fat_tiny/$images
. scripts/environment.sh
use_environment requirements.txt scripts/quickstart-requirements.txt
export OMP_NUM_THREADS=1

if [ "$images" = detection ]; then
    python scripts/make_detection_data.py datasets/stamps_coco || {  # shapes say little, and need no network
        echo "going on with shapes in place of photographs of things" >&2
        python scripts/make_detection_data.py datasets/stamps_coco --stand-in
    }
else
    python scripts/make_quickstart_data.py "$images" "datasets/$images"
fi
python -m torch.distributed.launch --nproc_per_node 2 main.py --cfg "$cfg"
python -m torch.distributed.launch --nproc_per_node 2 main.py --cfg "$cfg" --eval --resume "$run/best.pth"
python scripts/summarize_run.py "$run"
if [ "$images" = detection ]; then python scripts/compare_detection.py "$run/best.pth"; fi
