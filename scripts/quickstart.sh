#!/usr/bin/env bash
# Trains and evaluates FAT-Tiny on small real images, from nothing but a clone:
#   bash scripts/quickstart.sh [digits|emoji|segmentation|detection]
set -euo pipefail
cd "$(dirname "$0")/.."

images=${1:-digits}
case $images in
    digits) cfg=configs/fat_quickstart.yaml ;;
    emoji) cfg=configs/fat_quickstart_emoji.yaml ;;
    segmentation) cfg=configs/segmentation/fat_quickstart_stamps.yaml images=stamps ;;
    detection) cfg=configs/detection/fat_quickstart_detection.yaml ;;
    *) echo "error: $images: unknown set of images; use digits, emoji, segmentation or detection" >&2; exit 2 ;;
esac
run=output/fat_tiny/$images
. scripts/environment.sh
use_environment requirements.txt scripts/quickstart-requirements.txt
export OMP_NUM_THREADS=1

pasted() {  # a maker of things pasted on photographs, and its folder
    python "$1" "$2" || {  # shapes say little, and need no network
        echo "going on with shapes in place of photographs of things" >&2
        python "$1" "$2" --stand-in
    }
}
case $images in
    stamps) pasted scripts/make_segmentation_data.py datasets/stamps ;;
    detection) pasted scripts/make_detection_data.py datasets/stamps_coco ;;
    *) python scripts/make_quickstart_data.py "$images" "datasets/$images" ;;
esac
python -m torch.distributed.launch --nproc_per_node 2 main.py --cfg "$cfg"
python -m torch.distributed.launch --nproc_per_node 2 main.py --cfg "$cfg" --eval --resume "$run/best.pth"
python scripts/summarize_run.py "$run"
case $images in
    stamps) python scripts/compare_segmentation.py "$run/best.pth" ;;
    detection) python scripts/compare_detection.py "$run/best.pth" ;;
esac
