#!/usr/bin/env bash
# OK-VQA: answers, then the VQA score with its standard error.   bash scripts/v1_5/eval/okvqa.sh 0.889 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
source scripts/v1_5/eval/common.sh

setup okvqa okvqa "$@"
generate model_vqa_okvqa --question-file "$BENCH/okvqa_val.jsonl" --image-folder "$BENCH"
score
