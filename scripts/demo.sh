#!/usr/bin/env bash
# The main demo: creates the environment if it is missing, then the embedded model answers questions about pictures,
# dense and pruned. Options are passed on, for example: bash scripts/demo.sh --questions 600 --budgets 64,32
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh
exec .venv/bin/vlm-pruner demo-run "$@"
