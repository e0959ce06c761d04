#!/usr/bin/env bash
# The paper's table of a model: dense, and every method at every budget, on nine benchmarks; runs again what is missing.
#   bash scripts/v1_5/reproduce.sh MODEL [generator flags]      for example checkpoints/llava-v1.5-7b --batch-size 8
#   MINI=1 bash scripts/v1_5/reproduce.sh                       the embedded model on its mini benchmarks
#   METHODS=all ... or --methods all [--plan]                    every method; --plan only tells what would be run
# METHODS, RATIOS and BENCHMARKS choose parts of it; --help says how. DATA is the folder of the benchmarks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${VENV_PYTHON:-}
if [[ -z $python ]]; then
    if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; else python=python; fi
fi
exec "$python" -m vlm_pruner.commands.reproduce "$@"
