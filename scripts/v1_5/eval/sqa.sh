#!/usr/bin/env bash
# ScienceQA: answers, then accuracy on the questions with a picture with its standard error.   bash scripts/v1_5/eval/sqa.sh 0.889 0.8 16
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
source scripts/v1_5/eval/common.sh

setup scienceqa scienceqa "$@"
# The published number is of questions with a picture; ALL=1 asks the others too.
chosen=(--image-only)
if [[ -n ${ALL:-} ]]; then chosen=(); fi
generate model_vqa_science --question-file "$BENCH/llava_test_CQM-A.json" --image-folder "$BENCH/images/test" \
    --single-pred-prompt ${chosen[@]+"${chosen[@]}"}
score
