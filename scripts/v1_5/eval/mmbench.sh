#!/usr/bin/env bash
# MMBench: answers, then accuracy with its standard error.   bash scripts/v1_5/eval/mmbench.sh 0.889 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
source scripts/v1_5/eval/common.sh

setup mmbench mmbench "$@"
generate model_vqa_mmbench --question-file "$BENCH/mmbench_dev_20230712.tsv" --lang en --single-pred-prompt
score --upload "${answers%.jsonl}_upload"
