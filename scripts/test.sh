#!/usr/bin/env bash
# Runs the tests in .venv, on all cores: bash scripts/test.sh
# --all adds the rest of the long matrices, --seconds shows what takes how long; other arguments go to pytest:
# bash scripts/test.sh -k fasa
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_environment requirements.txt tests/requirements.txt
# By itself: it asks for opencv-python, which would lie over the same files as opencv-python-headless.
python -c 'import importlib.util as util, sys; sys.exit(not util.find_spec("imagecorruptions"))' ||
    python -m pip install --quiet --no-deps imagecorruptions-imaug==1.1.5 ||
    echo "imagecorruptions-imaug: cannot be installed; the tests of ImageNet-C's images made here are left out" >&2
# Two more than cores, as tests of faults wait most of their time. More than eight would wait for one another's disks and
# memory (1.5 GiB each).
processes=$(($(nproc) + 2))
export OMP_NUM_THREADS=1
exec python -m pytest tests --numprocesses $((processes < 8 ? processes : 8)) \
    --dist loadscope --no-loadscope-reorder --max-worker-restart 0 "$@"
