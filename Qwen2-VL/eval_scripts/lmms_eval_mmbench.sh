#!/usr/bin/env bash
# MMBench (test; its scores come from the benchmark's server) through lmms-eval.   bash Qwen2-VL/eval_scripts/lmms_eval_mmbench.sh 0.667 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source Qwen2-VL/eval_scripts/common.sh

evaluate mmbench_en_test "$@"
