#!/usr/bin/env bash
# GQA: answers, then accuracy with its standard error.   bash scripts/v1_5/eval/gqa.sh 0.889 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
source scripts/v1_5/eval/common.sh

setup gqa gqa "$@"
generate model_vqa_loader --question-file "$BENCH/llava_gqa_testdev_balanced.jsonl" --image-folder "$BENCH/data/images"
score
