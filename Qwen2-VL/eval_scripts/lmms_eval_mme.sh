#!/usr/bin/env bash
# MME through lmms-eval.   bash Qwen2-VL/eval_scripts/lmms_eval_mme.sh 0.667 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source Qwen2-VL/eval_scripts/common.sh

evaluate mme "$@"
