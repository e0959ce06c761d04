#!/usr/bin/env bash
# POPE: answers, then F1 with its standard error.   bash scripts/v1_5/eval/pope.sh 0.889 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
source scripts/v1_5/eval/common.sh

setup pope pope "$@"
generate model_vqa_loader --question-file "$BENCH/llava_pope_test.jsonl" --image-folder "$BENCH/val2014"
score
