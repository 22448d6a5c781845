#!/usr/bin/env bash
# Runs all tests in .venv; arguments go to pytest: bash scripts/test.sh -k fasa
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_environment requirements.txt tests/requirements.txt
exec python -m pytest tests "$@"
